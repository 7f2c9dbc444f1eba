"""The end of the log, read and decoded once for all followers of a process."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

from domain.recorded import Position, Recorded
from infrastructure.event_store.reader import RecordedRow
from infrastructure.event_store.store import EventStore

MAX_KEPT_EVENTS = 4000
"""Events kept in memory, a few MB; a follower that is further behind reads from the database."""

FETCH_EVENTS = 1000

BUSY: Final = 700.0
"""Events a second from which on the end of the log is read at a pace: some hundred registrations."""

LATELY: Final = 1.0
"""Seconds over which events are counted for that."""


class LogTail:
    """Reads like `EventStore.read`, from memory where this process has read the same events before.

    At the end of the log all followers want the same events within milliseconds, so one query and one decoding serve
    them all. Where there are many, they come in few large batches, to all followers at once: whatever a batch costs
    each of them and the database is then paid for many events. An event after a quiet time is read at once.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        pace: timedelta = timedelta(0),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            pace: minimum time between two reads of the end of the log while it is busy (`BUSY`).
            sleep: waits, in seconds.
        """
        self._store = store
        self._pace = pace.total_seconds()
        self._sleep = sleep
        self._flow = _Flow()
        self._rows: list[RecordedRow] = []
        self._end: Position | None = None
        self._decoded: dict[Position, Recorded] = {}
        self._fetching = asyncio.Lock()
        self._times_forgotten = 0

    async def read(
        self, after: Position, limit: int, topics: Sequence[str] | None = None
    ) -> tuple[list[RecordedRow], Position]:
        """Return events after a position, in order, and the position up to which they are complete.

        Args:
            limit: maximum number of events.
            topics: only events of these; the returned position skips the others.

        Raises:
            Unavailable: the database is away.
        """
        if after + MAX_KEPT_EVENTS < self._store.end_seen:
            return await self._store.read(after, limit, topics)  # far behind the others: it reads on its own
        if self._end is None or after >= self._end:
            async with self._fetching:
                # Another follower may have fetched while we waited.
                if self._end is None or after >= self._end:
                    if rest := self._flow.rest(self._pace):
                        await self._sleep(rest)
                    await self._fetch(after)
        assert self._end is not None  # noqa: S101 - fetched above
        start = self._end - len(self._rows)
        if after < start:
            return await self._store.read(after, limit, topics)
        # Positions have no gaps, so they are indices.
        rows = self._rows[after - start : after - start + limit]
        seen = rows[-1].position if rows else after
        return rows if topics is None else [row for row in rows if row.topic in topics], seen

    def decode(self, row: RecordedRow) -> Recorded:
        """See `EventStore.decode`; events are immutable, so followers share them."""
        if not self._holds(row):  # read before a failover, or by a follower that is behind
            return self._store.decode(row)
        found = self._decoded.get(row.position)
        if found is None:
            found = self._decoded[row.position] = self._store.decode(row)
        return found

    def _holds(self, row: RecordedRow) -> bool:
        """Whether this very row is kept: its position alone may belong to another event by now."""
        if self._end is None:
            return False
        index = row.position - 1 - (self._end - len(self._rows))
        return 0 <= index < len(self._rows) and self._rows[index] is row

    def forget(self) -> None:
        """Drop what is kept: after a failover, positions may hold different events than before."""
        self._rows, self._decoded, self._end = [], {}, None
        self._times_forgotten += 1

    async def _fetch(self, after: Position) -> None:
        while True:
            forgotten_before = self._times_forgotten
            rows, seen = await self._store.read(after, FETCH_EVENTS)
            if len(rows) == FETCH_EVENTS:
                await self._store.head()  # updates `end_seen`: there is more to read
            if forgotten_before == self._times_forgotten:  # otherwise the rows may be from before a failover
                break
        if self._end != after:  # the first read, or one beyond what is kept: start again from there
            self._rows, self._decoded = [], {}
        self._flow.note(len(rows))
        self._rows.extend(rows)
        self._end = seen
        surplus = len(self._rows) - MAX_KEPT_EVENTS
        if surplus > 0:
            for row in self._rows[:surplus]:
                self._decoded.pop(row.position, None)
            del self._rows[:surplus]


class _Flow:
    """How many events came lately, and when the latest ones did."""

    def __init__(self) -> None:
        self._lately = 0.0  # events, each counting for less as it ages
        self._noted_at = -math.inf
        self._is_end = False

    def note(self, events: int) -> None:
        """So many were read just now."""
        now = asyncio.get_running_loop().time()
        self._lately = self._lately * math.exp((self._noted_at - now) / LATELY) + events
        self._noted_at = now
        self._is_end = events < FETCH_EVENTS

    def rest(self, pace: float) -> float:
        """Seconds to wait before the next read, for so many between two: none at a quiet time, nor before the end."""
        if self._lately < BUSY * LATELY or not self._is_end:
            return 0.0
        return max(0.0, self._noted_at + pace - asyncio.get_running_loop().time())
