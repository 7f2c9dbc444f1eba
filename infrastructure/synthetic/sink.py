"""Where the mails of synthetic registrations end: in a row that the probe reads, and in nobody's mailbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import psycopg
import structlog

from application.ports import Letter, MailServers, Unavailable
from domain.mail_outcome import HandOver
from infrastructure.mail.composing import Composer
from infrastructure.postgres.connection import Connection, ReconnectingConnection

log = structlog.get_logger(__name__)

NAME: Final = "synthetic-sink"
"""In place of a mail server's, of a mail that none was handed."""


class Sink:
    """Implements `application.mail_delivery.SyntheticMails`."""

    def __init__(
        self, servers: MailServers, connection: ReconnectingConnection, *, sender: str, to: str | None
    ) -> None:
        """
        Args:
            sender: `MAIL_FROM`.
            to: the operator's own address that takes these mails through the mail servers; None: they are asked for all
                but the mail, and a mail to an address that there is not does not spoil their opinion of the sender.
        """
        self._servers = servers
        self._connection = connection
        self._composer = Composer(sender)
        self._to = to

    async def send(
        self,
        registration_id: UUID,
        letter: Letter,
        *,
        until: float | None = None,
        on_content: Callable[[], None] = lambda: None,
    ) -> HandOver:
        """See `application.mail_delivery.SyntheticMails`.

        Raises:
            Unavailable: the database is away, and no mail has gone out.
        """
        if self._to is None:
            accepted = replace(await self._servers.probe(until=until), provider=NAME)
        else:
            accepted = await self._servers.send(replace(letter, to=self._to), until=until, on_content=on_content)
        mail = self._composer.compose(letter, letter.to, datetime.now(UTC))

        async def store(connection: Connection) -> None:
            await connection.execute(
                "UPDATE public.synthetic_registrations SET mail = %b WHERE registration_id = %b AND outcome IS NULL",
                (mail, registration_id),
            )

        try:
            await self._connection.execute_idempotent(store)
        except (Unavailable, psycopg.Error) as error:
            if self._to is None:
                raise
            # The mail has gone out, and must not go again: the probe misses it, and says so.
            log.warning("synthetic.mail_not_kept", registration_id=str(registration_id), error=type(error).__name__)
        return accepted
