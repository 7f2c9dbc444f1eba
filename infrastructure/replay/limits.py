"""Limits, tried on what the log says was asked. The session is read-only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime, timedelta
from typing import Final

from eventsourcing.utils import get_topic

from domain.recorded import Position
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.limits.simulation import Trial, tell_all
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.replay.moments import position_at
from infrastructure.replay.reading import batches

BATCH_EVENTS: Final = 1000

_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""No log has older events."""


class PastRequests:
    """What was asked of the service, as far as the log has it."""

    def __init__(self, dsn: str, *, statement_timeout: timedelta) -> None:
        self._connection = ReconnectingConnection(
            dsn, name="limits", statement_timeout=statement_timeout, read_only=True
        )
        self._log = LogReader(self._connection, EventCodec())

    async def close(self) -> None:
        await self._log.close()

    async def put_to(
        self, trials: Collection[Trial], *, since: datetime, until: datetime
    ) -> AsyncIterator[tuple[Position, Position]]:
        """Try the limits on all that was asked from one time until another; yields how much of the log is read, and how
        much there is to read. What came before counts as far as a limit remembers it, and is not in the tallies.

        Raises:
            Unavailable: the database is away.
        """
        before = max((trial.remembers for trial in trials), default=timedelta(0))
        first, last = await self._position_at(max(since, _FIRST + before) - before), await self._position_at(until)
        topics = sorted({get_topic(kind) for trial in trials for kind in trial.kinds})
        read = batches(self._log, first, last, topics=topics, limit=BATCH_EVENTS)
        async for batch in read:
            for recorded in batch.readable():
                tell_all(trials, recorded.event, since, until)
            yield batch.upto - first, last - first

    async def _position_at(self, when: datetime) -> Position:
        async def found(connection: Connection) -> Position:
            return await position_at(connection, when)

        return await self._connection.execute_idempotent(found)
