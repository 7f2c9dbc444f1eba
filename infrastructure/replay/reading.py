"""The log up to a position, in large batches, the next one read and decoded while this one is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from typing import NamedTuple

from domain.recorded import Position, Recorded
from infrastructure.event_store.reader import ReadsLog, RecordedRow, UnreadableLog

SLICE_EVENTS = 500
"""Events decoded in one go: in between, the event loop sees to the session that writes."""


class Entry(NamedTuple):
    """A stored event, with its decoded form or the error that decoding raised."""

    row: RecordedRow
    event: Recorded | Exception


class Batch(NamedTuple):
    """Events in order, after one position and up to another, between which there are no others that were asked for."""

    entries: Sequence[Entry]
    since: Position
    upto: Position


async def batches(
    log: ReadsLog,
    since: Position,
    upto: Position,
    *,
    topics: Sequence[str] | None,
    limit: int,
    without: Collection[Position] = (),
) -> AsyncIterator[Batch]:
    """What stands in the log after one position and up to another.

    Args:
        limit: maximum number of events in a batch.
        without: the positions of events to leave out.

    Raises:
        UnreadableLog: the log ends before `upto`.
        Unavailable: the database is away.
    """

    async def read(since: Position) -> Batch:
        rows, seen = await log.read(since, limit, topics)
        if seen == since:
            raise UnreadableLog(f"the log ends at {since}; {upto} was expected")
        wanted = [row for row in rows if row.position <= upto and row.position not in without]
        entries: list[Entry] = []
        for start in range(0, len(wanted), SLICE_EVENTS):
            entries += [_entry(log, row) for row in wanted[start : start + SLICE_EVENTS]]
            await asyncio.sleep(0)
        return Batch(entries, since, min(seen, upto))

    ahead = asyncio.create_task(read(since)) if since < upto else None
    try:
        while ahead is not None:
            batch = await ahead
            ahead = asyncio.create_task(read(batch.upto)) if batch.upto < upto else None
            yield batch
    finally:
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)


def _entry(log: ReadsLog, row: RecordedRow) -> Entry:
    try:
        return Entry(row, log.decode(row))
    except Exception as error:  # noqa: BLE001 - raised where the event is applied, which parks its stream
        return Entry(row, error)
