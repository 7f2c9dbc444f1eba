"""What happened to a registration, told from the log; nothing personal is opened."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from eventsourcing.persistence import MapperDeserialisationError
from eventsourcing.utils import TopicError

from application.addresses import parse_address
from application.story.telling import Story, told
from application.typed_text import trimmed
from domain.errors import UnknownRegistration
from domain.mail_saga import MailSaga
from domain.recorded import Recorded
from domain.registration import Registration
from entrypoints.queries.audit import NoSecrets
from entrypoints.queries.present import Now, now_about
from entrypoints.queries.registrations import claims_of
from infrastructure.crypto.keyring import Keyring
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.listing import OF_REGISTRATIONS, events_of, registrations_among
from infrastructure.event_store.reader import RecordedRow
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import QueryPool
from projections.audit import Audit

_MESSAGE_ID: Final = re.compile(r"<?([0-9a-f]{32})@[^@\s]+>?", re.ASCII)
"""As `infrastructure.crypto.keyring.Keyring.message_id` makes them; a registrant's address could look like one only if
its left part were 32 hexadecimal digits."""

_ISSUED: Final = Registration.OtpIssued.TOPIC
_ISSUES_AT_ONCE: Final = 10_000
_MOST_ENTRIES: Final = 10_000
"""About one registration, or one request."""


class NotFound(Exception):
    """Nothing is known by what was given; one line, fit to show."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    Attributes:
        unreadable: how many events were left out, which a newer release has recorded.
        behind: how many events the read model `audit` is behind the log; of those, acts of operators may be missing.
        parked: how many streams it has put aside; their acts are missing.
    """

    story: Story
    unreadable: int
    behind: int
    parked: int


class ExplainQueries:
    """
    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(self, pool: QueryPool, keyring: Keyring | None) -> None:
        """
        Args:
            keyring: None where the process knows no secrets.
        """
        self._pool = pool
        self._keyring = keyring
        self._codec = EventCodec()
        self._audit = Audit()

    async def registrations(self, subject: str, on_look: Callable[[int], None] = lambda _: None) -> list[UUID]:
        """The registrations that are meant by an id, an address, a Message-ID or a correlation id, the latest first.

        Args:
            on_look: called with the number of mails that were looked at for a Message-ID.

        Raises:
            NotFound: there is none.
            NoSecrets: an address or a Message-ID can be looked up only with the keys of the service.
        """
        subject = str(trimmed(subject))
        if (message_id := _MESSAGE_ID.fullmatch(subject)) is not None:
            return [await self._of_message(message_id[1], on_look)]
        if "@" in subject:
            return await self._of_address(subject)
        try:
            wanted = UUID(subject)
        except ValueError:
            raise NotFound("This is no id, mail address or Message-ID.") from None
        if found := await self._registrations_among([wanted]):
            return found
        return await self._of_request(wanted)

    async def explanation(self, registration_id: UUID) -> Explanation:
        """The story of one registration.

        Raises:
            UnknownRegistration: there is none of this id.
        """
        rows, now = await self._pool.ask(lambda connection: self._look(connection, registration_id))
        if not rows or rows[0].topic not in OF_REGISTRATIONS:
            raise UnknownRegistration
        events = [recorded for row in rows if (recorded := self._decoded(row)) is not None]
        story = told(registration_id, events, now.at, now.present)
        return Explanation(story, len(rows) - len(events), now.audit_behind, now.audit_parked)

    async def _look(self, connection: Connection, registration_id: UUID) -> tuple[list[RecordedRow], Now]:
        """Everything about it: its own stream and its saga's from the log, and what stands in other streams (its
        address's claim, acts of operators) by the read model."""
        streams = (registration_id, MailSaga.stream_id(registration_id))
        elsewhere = await self._audit.positions_about(connection, registration_id, limit=_MOST_ENTRIES)
        rows = await events_of(connection, streams, elsewhere)
        return rows, await now_about(connection, registration_id)

    def _decoded(self, row: RecordedRow) -> Recorded | None:
        try:
            event = self._codec.decode(row.stream_id, row.version, row.topic, row.state)
        except (TopicError, MapperDeserialisationError):
            return None
        return Recorded(event, row.position, row.topic, *row[5:])

    # --- Who is meant -------------------------------------------------------------------------

    async def _registrations_among(self, stream_ids: Sequence[UUID]) -> list[UUID]:
        """Those of these streams that are registrations, in the same order."""
        found = await self._pool.ask(lambda connection: registrations_among(connection, stream_ids))
        return [one for one in stream_ids if one in found]

    async def _of_address(self, subject: str) -> list[UUID]:
        try:
            email = parse_address(subject)
        except ValueError:
            raise NotFound("This is no mail address.") from None
        if self._keyring is None:
            raise NoSecrets
        claim_ids = claims_of(self._keyring, email)
        found = await self._pool.ask(lambda connection: self._audit.registrations_of(connection, claim_ids))
        if not found:
            raise NotFound("Nobody has registered with this address, as far as the read model `audit` has come.")
        return found

    async def _of_request(self, correlation_id: UUID) -> list[UUID]:
        found = await self._pool.ask(
            lambda connection: self._audit.search(connection, correlation_id=correlation_id, limit=_MOST_ENTRIES)
        )
        registrations = await self._registrations_among(
            [*dict.fromkeys(entry.registration_id for entry in found.items)]
        )
        if not registrations:
            raise NotFound("No registration and no request has this id, as far as the read model `audit` has come.")
        return registrations

    async def _of_message(self, message_id: str, on_look: Callable[[int], None]) -> UUID:
        """A Message-ID is a keyed hash of registration and issue, which no table holds: it is computed again for each
        issue, the latest first, until one fits. Some hundred thousand in a second or two."""
        if self._keyring is None:
            raise NoSecrets
        looked = 0
        async for registration_id, serial in self._issues():
            if self._keyring.message_id(registration_id, serial) == message_id:
                return registration_id
            looked += 1
            if looked % _ISSUES_AT_ONCE == 0:
                on_look(looked)
        raise NotFound(f"None of the {looked:,} mails that were ever due has this Message-ID.")

    async def _issues(self) -> AsyncIterator[tuple[UUID, int]]:
        cursor: str | None = None
        while True:
            at = cursor
            page = await self._pool.ask(
                lambda connection, at=at: self._audit.search(  # type: ignore[misc]
                    connection, topic=_ISSUED, cursor=at, limit=_ISSUES_AT_ONCE
                )
            )
            for entry in page.items:
                yield entry.registration_id, int(entry.details["serial"])
            cursor = page.next_cursor
            if cursor is None:
                return
