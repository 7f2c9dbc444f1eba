"""The log up to a position, in large batches, of which the next two are read and decoded while one is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from domain.recorded import Position
from infrastructure.event_store.batch import Batch
from infrastructure.event_store.reader import ReadsLog, UnreadableLog


async def batches(
    log: ReadsLog,
    since: Position,
    upto: Position,
    *,
    topics: Sequence[str] | None,
    limit: int,
    metadata: bool = True,
) -> AsyncGenerator[Batch, None]:
    """What stands in the log after one position and up to another.

    Args:
        limit: maximum number of events in a batch.
        metadata: see `LogReader.events`.

    Raises:
        UnreadableLog: the log ends before `upto`.
        Unavailable: the database is away.
    """
    made: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(maxsize=1)

    async def make() -> None:
        try:
            async for batch in _decoded_batches(log, since, upto, topics, limit, metadata):
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
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)


async def _decoded_batches(
    log: ReadsLog, since: Position, upto: Position, topics: Sequence[str] | None, limit: int, metadata: bool
) -> AsyncIterator[Batch]:
    while since < upto:
        batch = await log.events(since, limit, topics, metadata=metadata)
        if batch.upto == since:
            raise UnreadableLog(f"the log ends at {since}; {upto} was expected")
        batch = batch.until(upto)
        yield batch
        since = batch.upto
