"""The end of the log, read and decoded once for all followers of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from domain.recorded import Position, Recorded
from infrastructure.event_store.reader import RecordedRow
from infrastructure.event_store.store import EventStore

KEPT = 4000
"""Events kept: a follower that is further behind reads for itself. A few MB."""

FETCH = 1000


class LogTail:
    """Reads like `EventStore.read`, from memory where somebody in this process has read the same before.

    At the end of the log all followers want the same events within milliseconds: one query and one decoding serve
    them all.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._rows: list[RecordedRow] = []
        self._end: Position | None = None
        self._decoded: dict[Position, Recorded] = {}
        self._fetching = asyncio.Lock()
        self._forgotten = 0

    async def read(
        self, after: Position, limit: int, topics: Sequence[str] | None = None
    ) -> tuple[list[RecordedRow], Position]:
        """Events after a position in order, and the position up to which nothing is left out.

        Args:
            limit: greatest number of events.
            topics: only events of these; the position answered moves on over the others.

        Raises:
            Unavailable: the database is away.
        """
        if after + KEPT < self._store.end_seen:
            return await self._store.read(after, limit, topics)  # on its way alone, it reads what it needs
        if self._end is None or after >= self._end:
            async with self._fetching:
                # Somebody else may have fetched while we waited.
                if self._end is None or after >= self._end:
                    await self._fetch(after)
        assert self._end is not None  # noqa: S101 - fetched above
        begin = self._end - len(self._rows)
        if after < begin:
            return await self._store.read(after, limit, topics)
        # Positions have no gaps, so they are indices.
        rows = self._rows[after - begin : after - begin + limit]
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
        """Whether it is this very row that is kept: its position alone may hold another event by now."""
        if self._end is None:
            return False
        index = row.position - 1 - (self._end - len(self._rows))
        return 0 <= index < len(self._rows) and self._rows[index] is row

    def forget(self) -> None:
        """Read anew from the database: after a failover, positions may hold other events than before."""
        self._rows, self._decoded, self._end = [], {}, None
        self._forgotten += 1

    async def _fetch(self, after: Position) -> None:
        while True:
            since = self._forgotten
            rows, seen = await self._store.read(after, FETCH)
            if len(rows) == FETCH:
                await self._store.head()  # how far is there to go?
            if since == self._forgotten:  # else these may be the rows of a log that is no more
                break
        if self._end != after:  # a first look, or one beyond what is kept: begin anew from there
            self._rows, self._decoded = [], {}
        self._rows.extend(rows)
        self._end = seen
        surplus = len(self._rows) - KEPT
        if surplus > 0:
            for row in self._rows[:surplus]:
                self._decoded.pop(row.position, None)
            del self._rows[:surplus]
