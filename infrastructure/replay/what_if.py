"""Reads what is recorded about each registration, for the question what the saga would decide about it today.

Registrations are read some hundred at a time, each with its whole history: nothing but those is in memory, however long
the log is and however many of them are open. The session is read-only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from application.mail_saga import SOURCES
from application.what_if import Difference, End, History, differences
from domain.email_claim import EmailClaim
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Position, Recorded
from domain.registration import Registration
from infrastructure.event_store.codec import EventCodec
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.releases import deciding_release
from infrastructure.postgres.connection import Connection, ReconnectingConnection

REGISTRATIONS_EACH = 400
"""Registrations in one reading, so some thousand events."""

SLICE = 50
"""Registrations reviewed in one go: in between, the event loop sees to the next reading, and to Ctrl-C."""

WINDOW = 5_000
"""Positions looked through at once for registrations that were begun before `since`."""

_UNKNOWN: Final = UUID(int=0)

_SCOPE = """
    SELECT h.position, (SELECT e.recorded_at FROM public.events AS e WHERE e.notification_id = h.position),
        coalesce((SELECT f.position FROM public.followers AS f WHERE f.name = %(saga)s), 0),
        ARRAY(SELECT DISTINCT p.stream_id FROM public.parked_events AS p WHERE p.follower = %(saga)s)
    FROM public.head AS h
"""

_BEGUN = """
    SELECT originator_id, notification_id FROM public.events
    WHERE notification_id > %(after)s AND notification_id <= %(until)s AND topic = %(topic)s
    ORDER BY notification_id LIMIT %(limit)s
"""

# A registration that was begun earlier is met at the first event of its own after `since`, or, where there is none, at
# the first note of its saga.
_MET = """
    SELECT DISTINCT originator_id FROM public.events AS e
    WHERE notification_id > %(after)s AND notification_id <= %(upto)s AND topic = ANY (%(sources)s)
        AND NOT EXISTS (
            SELECT FROM public.events AS earlier
            WHERE earlier.originator_id = e.originator_id AND earlier.topic = ANY (%(sources)s)
                AND earlier.notification_id > %(since)s AND earlier.notification_id <= %(after)s)
    UNION
    SELECT registration_id FROM (
        SELECT originator_id, (convert_from(state, 'UTF8')::jsonb ->> 'registration_id')::uuid AS registration_id
        FROM public.events
        WHERE notification_id > %(after)s AND notification_id <= %(upto)s AND starts_with(topic, 'mail_saga.')
    ) AS note
    WHERE NOT EXISTS (
            SELECT FROM public.events AS own
            WHERE own.originator_id = note.registration_id AND own.topic = ANY (%(sources)s)
                AND own.notification_id > %(since)s AND own.notification_id <= %(until)s)
        AND NOT EXISTS (
            SELECT FROM public.events AS earlier
            WHERE earlier.originator_id = note.originator_id
                AND earlier.notification_id > %(since)s AND earlier.notification_id <= %(after)s)
"""

# The streams of registrations and their sagas, and those of the claims to their addresses.
_HISTORIES = """
    SELECT e.originator_id, e.originator_version, e.topic, e.state, e.notification_id, e.recorded_at,
        e.causation_position, e.actor
    FROM (
        SELECT unnest(%(registrations)b::uuid[] || %(sagas)b::uuid[]) AS id
        UNION
        SELECT (convert_from(first.state, 'UTF8')::jsonb ->> 'claim_id')::uuid FROM public.events AS first
        WHERE first.originator_id = ANY (%(registrations)b::uuid[]) AND first.originator_version = 1
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT * FROM public.events AS s
        WHERE s.originator_id = wanted.id AND s.notification_id <= %(head)s ORDER BY s.originator_version
    ) AS e
"""

_AT = "SELECT recorded_at FROM public.events WHERE notification_id = %s"


class _Row(NamedTuple):
    """An event of which only what is beside it may be needed; see `application.what_if.history.Mark`."""

    stream_id: UUID
    version: int
    topic: str
    state: bytes
    position: Position
    recorded_at: datetime
    causation_position: Position | None
    actor: str


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What came of some registrations.

    Attributes:
        upto: the position up to which every registration begun, or met again, has been reviewed.
    """

    differences: Sequence[Difference]
    registrations: int
    upto: Position


class WhatIf:
    """Compares today's decisions of the mail saga with the recorded ones."""

    def __init__(self, connection: ReconnectingConnection) -> None:
        """
        Args:
            connection: read-only.
        """
        self._connection = connection
        self._codec = EventCodec()

    async def head(self) -> Position:
        """Position of the last event."""
        return (await self._scope()).head

    async def deciding_release(self) -> tuple[str, Position] | None:
        """The release that decided last, and the position after which it began; None if none has been noted."""
        return await self._connection.execute_idempotent(deciding_release)

    async def position_before(self, time: datetime) -> Position:
        """The position of the last event recorded before this time, 0 if there is none."""
        low, high = 0, await self.head()
        while low < high:
            middle = (low + high + 1) // 2
            row = await self._one(_AT, (middle,))
            if row is not None and row[0] < time:
                low = middle
            else:
                high = middle - 1
        return low

    async def review(self, policy: Policy, *, since: Position, until: Position | None) -> AsyncIterator[Reviewed]:
        """Review the decisions after one position and up to another; None: to the end of the log.

        Raises:
            Unavailable: the database is away.
        """
        scope = await self._scope()
        last = scope.head if until is None else min(until, scope.head)
        pages = self._registrations(since, last)
        ahead = asyncio.create_task(self._read_ahead(pages, scope))
        try:
            while (page := await ahead) is not None:
                ahead = asyncio.create_task(self._read_ahead(pages, scope))
                histories, upto = page
                found: list[Difference] = []
                for start in range(0, len(histories), SLICE):
                    for history in histories[start : start + SLICE]:
                        found += self._differences(history, policy, scope)
                    await asyncio.sleep(0)
                wanted = [one for one in found if since < one.position <= last]
                yield Reviewed(wanted, len(histories), upto)
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
            await pages.aclose()  # type: ignore[attr-defined]

    async def _scope(self) -> _Scope:
        row = await self._one(_SCOPE, {"saga": ProcessManager.name})
        assert row is not None  # noqa: S101 - the head has a row
        return _Scope(row[0], row[1], row[2], frozenset(row[3]))

    # --- Which registrations ------------------------------------------------------------------

    async def _registrations(self, since: Position, last: Position) -> AsyncIterator[tuple[list[UUID], Position]]:
        """Each registration that something was decided about, once; and the position up to which these are all."""
        position = since
        while position < last:
            if since == 0:
                of = {"after": position, "until": last, "topic": Registration.UserRegistered.TOPIC}
                rows = await self._all(_BEGUN, {**of, "limit": REGISTRATIONS_EACH})
                position = rows[-1][1] if len(rows) == REGISTRATIONS_EACH else last
            else:
                upto = min(position + WINDOW, last)
                window = {"since": since, "after": position, "upto": upto, "until": last, "sources": list(SOURCES)}
                rows = await self._all(_MET, window)
                position = upto
            yield [row[0] for row in rows], position

    async def _read_ahead(
        self, pages: AsyncIterator[tuple[list[UUID], Position]], scope: _Scope
    ) -> tuple[list[_Stored], Position] | None:
        async for registrations, upto in pages:
            return await self._histories(registrations, scope.head), upto
        return None

    # --- Their histories ----------------------------------------------------------------------

    async def _histories(self, registrations: Sequence[UUID], head: Position) -> list[_Stored]:
        sagas = [MailSaga.stream_id(one) for one in registrations]
        streams: dict[UUID, list[_Row]] = {}
        for row in await self._all(_HISTORIES, {"registrations": list(registrations), "sagas": sagas, "head": head}):
            streams.setdefault(row[0], []).append(_Row._make(row))
        return [
            _Stored(streams[one], streams.get(saga, []), streams)
            for one, saga in zip(registrations, sagas, strict=True)
            if one in streams
        ]

    def _differences(self, stored: _Stored, policy: Policy, scope: _Scope) -> list[Difference]:
        registration_id = stored.registration[0].stream_id
        try:
            registration = [self._decoded(row) for row in stored.registration]
            saga = [self._decoded(row) for row in stored.saga]
            first = registration[0].event
            if not isinstance(first, Registration.UserRegistered):
                return []
            claim = stored.others.get(UUID(first.claim_id), [])
            handled = 0 if registration_id in scope.parked else scope.handled
            history = History(registration, saga, claim, self._fold_of(claim))
            return differences(history, policy, End(handled, scope.at))
        except _Unreadable as error:
            return [_unreadable(registration_id, error.row)]

    def _decoded(self, row: _Row) -> Recorded:
        try:
            event = self._codec.decode(*row[:4])
        except Exception:  # noqa: BLE001 - told with the event's position
            raise _Unreadable(row) from None
        return Recorded(
            event, row.position, row.topic, row.recorded_at, _UNKNOWN, row.causation_position, row.actor, None
        )

    def _fold_of(self, claim: Sequence[_Row]) -> Callable[[Position], EmailClaim | None]:
        def fold(upto: Position) -> EmailClaim | None:
            state: Any = None
            for row in claim:
                if row.position > upto:
                    break
                state = self._decoded(row).event.mutate(state)
            folded: EmailClaim | None = state
            return folded

        return fold

    # --- The database -------------------------------------------------------------------------

    async def _all(self, query: str, parameters: Mapping[str, Any] | Sequence[Any]) -> list[tuple[Any, ...]]:
        async def select(connection: Connection) -> list[tuple[Any, ...]]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(query.encode(), parameters)
            return await cursor.fetchall()

        return await self._connection.execute_idempotent(select)

    async def _one(self, query: str, parameters: Mapping[str, Any] | Sequence[Any]) -> tuple[Any, ...] | None:
        rows = await self._all(query, parameters)
        return rows[0] if rows else None


@dataclass(frozen=True, slots=True)
class _Scope:
    """What there is to review, all at one moment."""

    head: Position
    at: datetime
    handled: Position
    parked: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class _Stored:
    """The streams of a registration and its saga; `others` has its claim's."""

    registration: Sequence[_Row]
    saga: Sequence[_Row]
    others: Mapping[UUID, list[_Row]]


class _Unreadable(Exception):
    def __init__(self, row: _Row) -> None:
        super().__init__(row.topic)
        self.row = row


def _unreadable(registration_id: UUID, row: _Row) -> Difference:
    return Difference(
        registration_id,
        row.position,
        row.topic,
        "recorded",
        "cannot be read by this release: the saga would park the registration",
        f"on {row.topic}: then recorded, now unreadable",
    )
