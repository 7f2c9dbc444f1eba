"""Mails as the read model has them, and the foreign messages among the dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from domain.registration import Status
from entrypoints.queries.suppressions import Suppression, suppressions
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import QueryPool
from projections.mail import Mail, Mails
from projections.paging import Page, before
from projections.registrations import Registrations
from projections.strays import Stray, Strays


@dataclass(frozen=True, slots=True)
class WorthARetry:
    """Of some mails that failed, those that can still be of use.

    Attributes:
        registration_ids: pending, the failed mail being that of their current code; the latest issue first.
        others: how many mails were looked at besides.
        next_cursor: brings the next mails; None if these were the last.
    """

    registration_ids: list[UUID]
    others: int
    next_cursor: str | None


class MailQueries:
    """
    Raises (all of them):
        ValueError: malformed cursor.
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(self, pool: QueryPool) -> None:
        self._pool = pool
        self._mails, self._registrations = Mails(), Registrations()
        self._strays = Strays(self._mails.schema)

    async def search(self, *, state: str | None, cursor: str | None = None, limit: int) -> Page[Mail]:
        """Mails, the latest issue first; those in a state, or all."""
        return await self._pool.ask(
            lambda connection: self._mails.search(connection, state=state, cursor=cursor, limit=limit)
        )

    async def strays(self, *, cursor: str | None = None, limit: int) -> Page[Stray]:
        """Foreign messages, the latest first."""
        return await self._pool.ask(lambda connection: self._strays.search(connection, cursor=cursor, limit=limit))

    async def stray_messages(self) -> int:
        """How many of them wait for an operator."""
        return await self._pool.ask(self._strays.count)

    async def suppressions(self, *, cursor: str | None = None, limit: int) -> Page[Suppression]:
        """Mailboxes that are sent no more, the latest complaint first."""
        return await self._pool.ask(partial(suppressions, before_position=before(cursor), limit=limit))

    async def worth_a_retry(self, *, failures: Sequence[str] | None, cursor: str | None, limit: int) -> WorthARetry:
        """Of the next mails that failed, those for which a registration still waits.

        Args:
            failures: only mails whose last failure is one of these.
            limit: mails to look at.
        """

        async def select(connection: Connection) -> WorthARetry:
            failed = await self._mails.failed(connection, failures=failures, cursor=cursor, limit=limit)
            views, _ = await self._registrations.find(connection, [mail.registration_id for mail in failed.items])
            waiting = [
                mail.registration_id
                for mail in failed.items
                if (view := views.get(mail.registration_id)) is not None
                and (view.status, view.serial) == (Status.PENDING, mail.serial)
            ]
            return WorthARetry(waiting, len(failed.items) - len(waiting), failed.next_cursor)

        return await self._pool.ask(select)
