"""The log up to a position, in large batches: while one is written, the next is decoded, and the one after it read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, cast
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


async def batches(
    log: ReadsLog,
    since: Position,
    upto: Position,
    *,
    topics: Sequence[str] | None,
    limit: int,
) -> AsyncIterator[Batch]:
    """What stands in the log after one position and up to another.

    Args:
        limit: maximum number of events in a batch.

    Raises:
        UnreadableLog: the log ends before `upto`.
        Unavailable: the database is away.
    """

    fetching: asyncio.Task[tuple[list[RecordedRow], Position]] | None = None

    async def fetch(since: Position) -> tuple[list[RecordedRow], Position]:
        rows, seen = await log.read(since, limit, topics)
        if seen == since:
            raise UnreadableLog(f"the log ends at {since}; {upto} was expected")
        return rows, seen

    async def make(since: Position) -> Batch:
        nonlocal fetching
        assert fetching is not None  # noqa: S101 - there is one as long as there is more to read
        rows, seen = await fetching
        # The database looks for the next ones while these are decoded.
        fetching = asyncio.create_task(fetch(seen)) if seen < upto else None
        return await _batch(log, rows, since, min(seen, upto))

    if since >= upto:
        return
    fetching = asyncio.create_task(fetch(since))
    making: asyncio.Task[Batch] | None = asyncio.create_task(make(since))
    try:
        while making is not None:
            batch = await making
            making = asyncio.create_task(make(batch.upto)) if batch.upto < upto else None
            yield batch
    finally:
        ahead = [task for task in (making, fetching) if task is not None]
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


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
