"""The log up to a position, in large batches, of which the next two are read and decoded while one is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from domain.recorded import Position
from infrastructure.event_store.batch import Batch, Stretch
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
        await _cancelled(making)


async def _decoded_batches(
    log: ReadsLog, since: Position, upto: Position, topics: Sequence[str] | None, limit: int, metadata: bool
) -> AsyncIterator[Batch]:
    """The database looks for the next ones while these are decoded."""

    async def read(since: Position) -> Stretch:
        stretch = await log.stretch(since, limit, topics, metadata=metadata)
        if stretch.upto == since:
            raise UnreadableLog(f"the log ends at {since}; {upto} was expected")
        return stretch

    reading = asyncio.create_task(read(since)) if since < upto else None
    try:
        while reading is not None:
            stretch = await reading
            reading = None
            if stretch.upto < upto:
                reading = asyncio.create_task(read(stretch.upto))
                await asyncio.sleep(0)  # so that it is asked for at once
            yield stretch.decoded().until(upto)
    finally:
        await _cancelled(reading)


async def _cancelled(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
