"""The log in batches that are read and decoded ahead of who writes them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from infrastructure.event_store.batch import Batch
from infrastructure.event_store.reader import UnreadableLog
from infrastructure.event_store.store import EventStore
from infrastructure.replay.reading import batches
from projections.registrations import Registrations
from tests.support.facts import eventually
from tests.support.read_models import recorded_history

LIMIT = 7


@pytest.fixture
async def end(store: EventStore) -> int:
    """Of a log of many batches."""
    await recorded_history(store, registrations=10)
    return await store.head()


@pytest.mark.parametrize("topics", [None, Registrations.topics], ids=["all", "some"])
async def test_every_event_comes_once_and_in_order_however_far_ahead_it_was_read(
    store: EventStore, end: int, topics: tuple[str, ...] | None
) -> None:
    rows, _ = await store.read(2, end, topics)
    wanted = [row.position for row in rows if row.position < end]

    found, at = list[int](), 2
    async for batch in batches(store, 2, end - 1, topics=topics, limit=LIMIT):
        assert (batch.since, batch.sound) == (at, True)
        assert len(batch.events) <= LIMIT
        await asyncio.sleep(0)  # as who writes it does; the next ones are made meanwhile
        found += [event.position for event in batch.events]
        at = batch.upto

    assert (found, at) == (wanted, end - 1)


@pytest.mark.parametrize("most", [1, 3, 7, 10, 11])
async def test_the_parts_of_a_batch_are_all_of_it(store: EventStore, end: int, most: int) -> None:
    [batch] = [one async for one in batches(store, 5, 15, topics=None, limit=10)]

    parts = list(batch.in_parts(most))

    assert [event for part in parts for event in part.events] == list(batch.events)
    assert [part.since for part in parts] == [5, *(part.upto for part in parts[:-1])]
    assert parts[-1].upto == 15
    assert all(0 < len(part.events) <= most for part in parts)


def test_a_batch_without_events_still_moves_on() -> None:
    assert list(Batch([], 5, 15).in_parts(3)) == [Batch([], 5, 15)]


@pytest.mark.usefixtures("end")
async def test_who_stops_early_leaves_nobody_reading(store: EventStore, end: int) -> None:
    before = asyncio.all_tasks()

    async with aclosing(batches(store, 0, end, topics=None, limit=LIMIT)) as reading:
        await anext(reading)
        await eventually(lambda: asyncio.all_tasks() - before)

    assert asyncio.all_tasks() == before


async def test_what_goes_wrong_ahead_is_told_after_the_batches_before_it(store: EventStore, end: int) -> None:
    reached = list[int]()

    async def read() -> None:
        async for batch in batches(store, 0, end + 100, topics=None, limit=LIMIT):
            reached.append(batch.upto)

    with pytest.raises(UnreadableLog, match=f"the log ends at {end}; {end + 100} was expected"):
        await read()

    assert reached[-1] == end
