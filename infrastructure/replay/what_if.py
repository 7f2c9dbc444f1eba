"""Reads what is recorded about each registration, for the question what the saga would decide about it today.

Registrations are read some hundred at a time, each with its whole history: nothing but those is in memory, however long
the log is and however many of them are open. The session is read-only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from application.mail_saga import SOURCES
from application.what_if import Difference
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Position
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.releases import deciding_release
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.replay.judging import Judge, Row, Scope, Streams
from infrastructure.replay.moments import Moment, position_at

WINDOW = 4_000
"""Positions looked through at once for registrations: some hundred of them, with some thousand events."""

SLICE = 10
"""Registrations reviewed in one go: in between, the event loop sees to the next reading, and to Ctrl-C."""

_SCOPE = """
    SELECT h.position, (SELECT e.recorded_at FROM public.events AS e WHERE e.notification_id = h.position),
        coalesce((SELECT f.position FROM public.followers AS f WHERE f.name = %(saga)s), 0),
        ARRAY(SELECT DISTINCT p.stream_id FROM public.parked_events AS p WHERE p.follower = %(saga)s)
    FROM public.head AS h
"""

_BEGUN = """
    SELECT originator_id FROM public.events
    WHERE notification_id > %(after)s AND notification_id <= %(upto)s AND topic = 'registration.user_registered'
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


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What came of some registrations.

    Attributes:
        upto: the position up to which every registration begun, or met again, has been reviewed.
    """

    differences: Sequence[Difference]
    registrations: int
    upto: Position


class _Page(NamedTuple):
    registrations: Sequence[UUID]
    streams: Streams
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
        judge = Judge(policy, scope)
        async with aclosing(self._pages(since, last, scope.head)) as pages:
            async for page in pages:
                found: list[Difference] = []
                for number, registration_id in enumerate(page.registrations):
                    if number % SLICE == 0:
                        await asyncio.sleep(0)
                    found += judge.differences(registration_id, page.streams)
                found = [one for one in found if since < one.position <= last]
                yield Reviewed(found, len(page.registrations), page.upto)

    async def _scope(self) -> Scope:
        row = await self._one(_SCOPE, {"saga": ProcessManager.name})
        assert row is not None  # noqa: S101 - the head has a row
        return Scope(row[0], row[1], row[2], frozenset(row[3]))

    # --- Histories ----------------------------------------------------------------------------

    async def _pages(self, since: Position, last: Position, head: Position) -> AsyncGenerator[_Page]:
        """All that something was decided about, each once; the next page is read while this one is reviewed."""

        def read(after: Position) -> asyncio.Task[_Page] | None:
            return asyncio.create_task(self._page(since, after, last, head)) if after < last else None

        ahead = read(since)
        try:
            while ahead is not None:
                page = await ahead
                ahead = read(page.upto)
                yield page
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def _page(self, since: Position, after: Position, last: Position, head: Position) -> _Page:
        upto = min(after + WINDOW, last)
        window = {"since": since, "after": after, "upto": upto, "until": last, "sources": list(SOURCES)}
        registrations = [row[0] for row in await self._all(_MET if since else _BEGUN, window)]
        sagas = [MailSaga.stream_id(one) for one in registrations]
        streams: dict[UUID, list[Row]] = {}
        for row in await self._all(_HISTORIES, {"registrations": registrations, "sagas": sagas, "head": head}):
            streams.setdefault(row[0], []).append(Row._make(row))
        return _Page(registrations, streams, upto)

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
