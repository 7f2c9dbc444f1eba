"""Stretches of the log, read as arrays: the same events as row by row."""

from __future__ import annotations

import pytest

from domain.recorded import Placed, Recorded
from infrastructure.event_store.batch import Unreadable
from infrastructure.event_store.reader import UnreadableLog
from infrastructure.event_store.store import EventStore
from projections.registrations import Registrations
from tests.support.log import append, happened, query
from tests.support.read_models import recorded_history

SOME = Registrations.topics


@pytest.fixture
async def end(store: EventStore) -> int:
    await recorded_history(store, registrations=10)
    return await store.head()


@pytest.mark.parametrize("topics", [None, SOME], ids=["all", "some"])
@pytest.mark.parametrize("limit", [1, 7, 10_000])
@pytest.mark.usefixtures("end")
async def test_a_stretch_is_what_its_rows_are(store: EventStore, limit: int, topics: tuple[str, ...] | None) -> None:
    rows, seen = await store.read(3, limit, topics)

    stretch = await store.stretch(3, limit, topics)
    batch = stretch.decoded()

    assert (stretch.since, stretch.upto, batch.since, batch.upto, batch.sound) == (3, seen, 3, seen, True)
    assert list(batch.events) == [store.decode(row) for row in rows]


async def test_without_metadata_the_events_are_the_same(store: EventStore, end: int) -> None:
    whole = (await store.stretch(0, end)).decoded().readable()

    events = (await store.stretch(0, end, metadata=False)).decoded().readable()

    assert events == [Placed(one.event, one.position, one.topic) for one in whole]


async def test_a_stretch_after_the_end_is_empty(store: EventStore, end: int) -> None:
    for topics in (None, SOME):
        stretch = await store.stretch(end, 10, topics)
        assert (stretch.upto, stretch.decoded().events) == (end, [])


async def test_the_end_is_that_of_the_log_where_no_event_is_wanted(store: EventStore, end: int) -> None:
    stretch = await store.stretch(0, end, ("no.such_topic",))

    assert (stretch.upto, stretch.decoded().events) == (end, [])


@pytest.mark.parametrize("metadata", [True, False])
async def test_what_cannot_be_decoded_is_told_in_its_place(
    store: EventStore, dsn: str, end: int, *, metadata: bool
) -> None:
    changed = "ALTER TABLE events DISABLE TRIGGER USER; UPDATE events SET state = %s WHERE notification_id = 4"
    await query(dsn, changed.replace("%s", "'[}'"))

    batch = (await store.stretch(0, end, metadata=metadata)).decoded()

    assert not batch.sound
    [(index, found)] = [(i, one) for i, one in enumerate(batch.events) if isinstance(one, Unreadable)]
    assert (index, found.position) == (3, 4)
    assert [one.position for one in batch.events] == list(range(1, end + 1))
    assert {type(one) for one in batch.events} == {Recorded if metadata else Placed, Unreadable}


async def test_a_stretch_with_a_gap_fails(store: EventStore, dsn: str) -> None:
    await append(store, happened(), happened(), happened())
    await query(dsn, "ALTER TABLE events DISABLE TRIGGER USER; DELETE FROM events WHERE notification_id = 2")

    with pytest.raises(UnreadableLog, match="between 0 and 3"):
        await store.stretch(0, 10)
