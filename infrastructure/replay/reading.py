"""The log up to a position, in large batches, of which the next two are read and decoded while one is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple, cast
from uuid import UUID

from domain.recorded import Position, Recorded
from infrastructure.event_store.reader import ReadsLog, RecordedRow, UnreadableLog

SLICE_EVENTS = 500
"""Events decoded in one go: in between, the event loop sees to the session that writes."""


class Unreadable(NamedTuple):
    """An event that could not be decoded."""

    position: Position
    topic: str
    stream_id: UUID
    error: Exception


class Batch(NamedTuple):
    """Events in order, after one position and up to another, between which there are no others that were asked for.

    Attributes:
        sound: whether all of them could be decoded.
    """

    events: Sequence[Recorded | Unreadable]
    since: Position
    upto: Position
    sound: bool = True

    def readable(self) -> Sequence[Recorded]:
        """The events of a batch that is sound."""
        assert self.sound  # noqa: S101 - the caller has looked
        return cast("Sequence[Recorded]", self.events)

    def in_parts(self, most: int) -> Iterator[Batch]:
        """Batches of so many events at most that are this one together."""
        since = self.since
        for end in range(most, len(self.events), most):
            part = self.events[end - most : end]
            yield Batch(part, since, part[-1].position, self.sound)
            since = part[-1].position
        left = len(self.events) % most or min(most, len(self.events))
        yield Batch(self.events[len(self.events) - left :], since, self.upto, self.sound)


async def batches(
    log: ReadsLog,
    since: Position,
    upto: Position,
    *,
    topics: Sequence[str] | None,
    limit: int,
) -> AsyncGenerator[Batch, None]:
    """What stands in the log after one position and up to another.

    Args:
        limit: maximum number of events in a batch.

    Raises:
        UnreadableLog: the log ends before `upto`.
        Unavailable: the database is away.
    """
    made: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(maxsize=1)

    async def make() -> None:
        try:
            async for batch in _decoded_batches(log, since, upto, topics, limit):
                await made.put(batch)
        except Exception as error:  # noqa: BLE001 - raised in its turn, after the batches before it
            await made.put(error)
        else:
            await made.put(None)

    making = asyncio.create_task(make())
    try:
        while (batch := await made.get()) is not None:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        await _cancelled(making)


async def _decoded_batches(
    log: ReadsLog, since: Position, upto: Position, topics: Sequence[str] | None, limit: int
) -> AsyncIterator[Batch]:
    """The database looks for the next rows while these are decoded."""

    async def fetch(since: Position) -> tuple[list[RecordedRow], Position]:
        rows, seen = await log.read(since, limit, topics)
        if seen == since:
            raise UnreadableLog(f"the log ends at {since}; {upto} was expected")
        return rows, seen

    fetching = asyncio.create_task(fetch(since)) if since < upto else None
    try:
        while fetching is not None:
            rows, seen = await fetching
            fetching = asyncio.create_task(fetch(seen)) if seen < upto else None
            batch = await _batch(log, rows, since, min(seen, upto))
            yield batch
            since = batch.upto
    finally:
        await _cancelled(fetching)


async def _cancelled(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _batch(log: ReadsLog, rows: Sequence[RecordedRow], since: Position, upto: Position) -> Batch:
    wanted = [row for row in rows if row.position <= upto]
    events: list[Recorded | Unreadable] = []
    sound = True
    for start in range(0, len(wanted), SLICE_EVENTS):
        some = wanted[start : start + SLICE_EVENTS]
        try:
            events += [log.decode(row) for row in some]
        except Exception:  # noqa: BLE001 - told apart below, and raised where the event is applied, which parks its stream
            events += [_decoded(log, row) for row in some]
            sound = False
        await asyncio.sleep(0)
    return Batch(events, since, upto, sound)


def _decoded(log: ReadsLog, row: RecordedRow) -> Recorded | Unreadable:
    try:
        return log.decode(row)
    except Exception as error:  # noqa: BLE001 - see above
        return Unreadable(row.position, row.topic, row.stream_id, error)
