"""The end of the log, read and decoded once for all followers of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from domain.recorded import Position, Recorded
from infrastructure.event_store.batch import Stretch
from infrastructure.event_store.reader import RecordedRow, decoded
from infrastructure.event_store.store import EventStore

MAX_KEPT_EVENTS = 4000
"""Events kept in memory, a few MB; a follower that is further behind reads from the database."""

FETCH_EVENTS = 1000


class LogTail:
    """Reads like `EventStore.read`, from memory where this process has read the same events before.

    At the end of the log all followers want the same events within milliseconds, so one query and one decoding serve
    them all.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._rows: list[RecordedRow] = []
        self._end: Position | None = None
        self._decoded: dict[Position, Recorded] = {}
        self._fetching = asyncio.Lock()
        self._fetches_begun = 0
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
        if self._is_far_behind(after):
            return await self._store.read(after, limit, topics)
        if self._end is None or after >= self._end:
            begun_before = self._fetches_begun
            async with self._fetching:
                # Another follower may have fetched while we waited, or found nothing after it had begun later than we.
                is_asked = self._fetches_begun > begun_before and after == self._end
                if not is_asked and (self._end is None or after >= self._end):
                    self._fetches_begun += 1
                    await self._fetch(after)
        assert self._end is not None  # noqa: S101 - fetched above
        start = self._end - len(self._rows)
        if after < start:
            return await self._store.read(after, limit, topics)
        # Positions have no gaps, so they are indices.
        rows = self._rows[after - start : after - start + limit]
        seen = rows[-1].position if rows else after
        return rows if topics is None else [row for row in rows if row.topic in topics], seen

    async def stretch(
        self, after: Position, limit: int, topics: Sequence[str] | None = None, *, metadata: bool = True
    ) -> Stretch:
        """See `LogReader.stretch`; of the end of the log, each event is decoded once for all."""
        if self._is_far_behind(after):
            return await self._store.stretch(after, limit, topics, metadata=metadata)
        rows, seen = await self.read(after, limit, topics)
        return Stretch(after, seen, partial(decoded, rows, after, seen, self.decode))

    def _is_far_behind(self, after: Position) -> bool:
        """Then it reads on its own."""
        return after + MAX_KEPT_EVENTS < self._store.end_seen

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
        self._rows.extend(rows)
        self._end = seen
        surplus = len(self._rows) - MAX_KEPT_EVENTS
        if surplus > 0:
            for row in self._rows[:surplus]:
                self._decoded.pop(row.position, None)
            del self._rows[:surplus]
