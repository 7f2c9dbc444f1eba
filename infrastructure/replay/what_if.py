"""Reads what is recorded about each registration, for the question what the saga would decide about it today.

Registrations are read some hundred at a time, each with its whole history: nothing but those is in memory, however long
the log is and however many of them are open. The session is read-only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from application.mail_saga import SOURCES
from application.what_if import Difference
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Position
from domain.registration import Registration
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.releases import deciding_release
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.replay.judging import Judges, Row, Scope, Stored
from infrastructure.replay.moments import Moment, position_at

REGISTRATIONS_EACH = 400
"""Registrations in one reading, so some thousand events."""

HELPERS = 2
"""Processes that decide beside the one that reads."""

MANY_EVENTS = 50_000
"""From so many events on helpers are worth their start of about a second."""

WINDOW = 5_000
"""Positions looked through at once for registrations that were begun before `since`."""

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
        e.causation_position, e.actor,
        CASE WHEN e.topic = 'registration.user_registered'
            THEN (convert_from(e.state, 'UTF8')::jsonb ->> 'claim_id')::uuid END
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

    async def head(self) -> Position:
        """Position of the last event."""
        return (await self._scope()).head

    async def deciding_release(self) -> tuple[str, Position] | None:
        """The release that decided last, and the position after which it began; None if none has been noted."""
        return await self._connection.execute_idempotent(deciding_release)

    async def position_at(self, when: Moment) -> Position:
        """See `infrastructure.replay.moments.position_at`."""
        return await self._connection.execute_idempotent(lambda connection: position_at(connection, when))

    async def review(self, policy: Policy, *, since: Position, until: Position | None) -> AsyncIterator[Reviewed]:
        """Review the decisions after one position and up to another; None: to the end of the log.

        Raises:
            Unavailable: the database is away.
        """
        scope = await self._scope()
        last = scope.head if until is None else min(until, scope.head)
        judges = Judges(policy, scope, helpers=HELPERS if last - since >= MANY_EVENTS else 0)
        pages = self._registrations(since, last)
        under_way: deque[tuple[asyncio.Task[list[Difference]], int, Position]] = deque()
        reading = asyncio.create_task(self._read_ahead(pages, scope))
        try:
            while (page := await reading) is not None:
                reading = asyncio.create_task(self._read_ahead(pages, scope))
                histories, upto = page
                under_way.append((asyncio.create_task(judges.review(histories)), len(histories), upto))
                if len(under_way) > HELPERS:
                    yield await _reviewed(under_way, since, last)
            while under_way:
                yield await _reviewed(under_way, since, last)
        finally:
            tasks = [reading, *(task for task, _, _ in under_way)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await judges.close()
            await pages.aclose()

    async def _scope(self) -> Scope:
        row = await self._one(_SCOPE, {"saga": ProcessManager.name})
        assert row is not None  # noqa: S101 - the head has a row
        return Scope(row[0], row[1], row[2], frozenset(row[3]))

    # --- Which registrations ------------------------------------------------------------------

    async def _registrations(self, since: Position, last: Position) -> AsyncGenerator[tuple[list[UUID], Position]]:
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
        self, pages: AsyncIterator[tuple[list[UUID], Position]], scope: Scope
    ) -> tuple[list[Stored], Position] | None:
        async for registrations, upto in pages:
            return await self._histories(registrations, scope.head), upto
        return None

    # --- Their histories ----------------------------------------------------------------------

    async def _histories(self, registrations: Sequence[UUID], head: Position) -> list[Stored]:
        sagas = [MailSaga.stream_id(one) for one in registrations]
        streams: dict[UUID, list[Row]] = {}
        claims: dict[UUID, UUID] = {}
        for row in await self._all(_HISTORIES, {"registrations": list(registrations), "sagas": sagas, "head": head}):
            streams.setdefault(row[0], []).append(Row._make(row[1:8]))
            if row[8] is not None:
                claims[row[0]] = row[8]
        return [
            Stored(one, streams[one], saga, streams.get(saga, ()), claims[one], streams.get(claims[one], ()))
            for one, saga in zip(registrations, sagas, strict=True)
            if one in claims
        ]

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


async def _reviewed(
    under_way: deque[tuple[asyncio.Task[list[Difference]], int, Position]], since: Position, last: Position
) -> Reviewed:
    """What came of the oldest page, in the stretch that is asked about."""
    found = await under_way[0][0]
    _, registrations, upto = under_way.popleft()
    return Reviewed([one for one in found if since < one.position <= last], registrations, upto)
