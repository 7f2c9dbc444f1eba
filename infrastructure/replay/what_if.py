"""The question what the saga would decide today about what is recorded.

Registrations are read some hundred at a time, each with its whole history: nothing but those is in memory, however long
the log is and however many of them are open. The sessions are read-only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from application.what_if import Difference
from domain.policy import Policy
from domain.recorded import Position
from infrastructure.event_store.reader import head_of
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.releases import deciding_release
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.replay.helpers import reviewed_by_helpers
from infrastructure.replay.histories import Window, rows
from infrastructure.replay.judging import Judge, Scope
from infrastructure.replay.moments import Moment, position_at

WINDOW = 4_000
"""Positions in which registrations are looked for at once: some hundred of them, with some thousand events."""

MANY_EVENTS = 10_000
"""From so many events on helpers are worth their start of a second. (So what they take of memory is the same for a log
of any length.)"""

_SCOPE = """
    SELECT h.position, (SELECT e.recorded_at FROM public.events AS e WHERE e.notification_id = h.position),
        coalesce((SELECT f.position FROM public.followers AS f WHERE f.name = %(saga)s), 0),
        ARRAY(SELECT DISTINCT p.stream_id FROM public.parked_events AS p WHERE p.follower = %(saga)s)
    FROM public.head AS h
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

    def __init__(self, dsn: str, *, statement_timeout: timedelta) -> None:
        self._dsn = dsn
        self._statement_timeout = statement_timeout
        self._connection = ReconnectingConnection(
            dsn, name="what-if", statement_timeout=statement_timeout, read_only=True
        )

    async def close(self) -> None:
        await self._connection.close()

    async def head(self) -> Position:
        """Position of the last event."""
        return await self._connection.execute_idempotent(head_of)

    async def deciding_release(self) -> tuple[str, Position] | None:
        """The release that decided last, and the position after which it began; None if none has been noted."""
        return await self._connection.execute_idempotent(deciding_release)

    async def position_at(self, when: Moment) -> Position:
        """See `infrastructure.replay.moments.position_at`."""
        return await self._connection.execute_idempotent(lambda connection: position_at(connection, when))

    async def review(self, policy: Policy, *, since: Position, until: Position | None) -> AsyncIterator[Reviewed]:
        """Review the decisions after one position and up to another; None: to the end of the log.

        Raises:
            CannotReplay: one line.
            Unavailable: the database is away.
        """
        scope = await self._scope()
        last = scope.head if until is None else min(until, scope.head)
        windows = [
            Window(since, last, after, min(after + WINDOW, last), scope.head) for after in range(since, last, WINDOW)
        ]
        if last - since < MANY_EVENTS:
            reviewed = self._reviewed(windows, policy, scope)
        else:
            reviewed = reviewed_by_helpers(windows, self._dsn, self._statement_timeout, policy, scope)
        async with aclosing(reviewed):
            async for window, registrations, found in reviewed:
                yield Reviewed([one for one in found if since < one.position <= last], registrations, window.upto)

    async def _reviewed(
        self, windows: Sequence[Window], policy: Policy, scope: Scope
    ) -> AsyncGenerator[tuple[Window, int, list[Difference]]]:
        judge = Judge(policy, scope)
        for window in windows:
            yield (window, *await judge.review(self._connection, window))

    async def _scope(self) -> Scope:
        [row] = await rows(self._connection, _SCOPE, {"saga": ProcessManager.name})
        return Scope(row[0], row[1], row[2], frozenset(row[3]))
