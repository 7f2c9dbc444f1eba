"""While others append to the log, whoever folds it leaves them a processor of the server."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection
from infrastructure.replay import copies, traffic
from infrastructure.replay.copies import Copy, Filling, fill_together
from infrastructure.replay.sessions import replaying
from infrastructure.replay.traffic import Traffic
from projections import PROJECTIONS
from projections.registrations import Registrations
from tests.support.facts import REGISTRATION, registered, stream
from tests.support.log import append
from tests.support.read_models import contents, follow_all, recorded_history


@pytest.fixture
def an_event_this_hour_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "LATELY", timedelta(hours=1))
    monkeypatch.setattr(traffic, "MUCH", 0)


@pytest.mark.usefixtures("an_event_this_hour_is_much")
async def test_what_was_recorded_lately_is_traffic_at_the_first_look(store: EventStore, connection: Connection) -> None:
    found = [await Traffic().is_much(connection)]
    await append(store, EventCodec().encode(stream(REGISTRATION, registered())[0]))
    found += [await Traffic().is_much(connection)]

    assert found == [False, True]


async def test_what_was_recorded_before_is_no_traffic(
    store: EventStore, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "MUCH", 0)
    monkeypatch.setattr(traffic, "LATELY", timedelta(0))
    await append(store, EventCodec().encode(stream(REGISTRATION, registered())[0]))

    assert not await Traffic().is_much(connection)


@pytest.mark.usefixtures("an_event_this_hour_is_much")
async def test_beside_others_copies_are_written_one_after_the_other_and_are_the_same(
    dsn: str, store: EventStore, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await recorded_history(store, registrations=20)
    await follow_all(store, connection)
    monkeypatch.setattr(copies, "BATCH_BESIDE_OTHERS", 7)
    writing, sizes, at_once = set[str](), list[int](), list[int]()

    def watched(make: Any) -> Any:
        class Watched(make):  # type: ignore[misc]
            async def apply(self, connection: Any, events: Any) -> None:
                writing.add(self.name)
                sizes.append(len(events))
                at_once.append(len(writing))
                await super().apply(connection, events)
                writing.discard(self.name)

        return Watched

    head = await store.head()
    async with AsyncExitStack() as stack:
        fillings = []
        for make in PROJECTIONS:
            session = await stack.enter_async_context(replaying(dsn, name=make.name))
            copy = Copy(watched(make), "check")
            async with session.transaction():
                await copy.make(session)
            fillings.append(Filling(copy, session, head))
        await fill_together(store, fillings, limit=20)

    assert (max(sizes), max(at_once)) == (7, 1)
    for filling in fillings:
        live = filling.copy.schema.removesuffix("__check")
        assert await contents(connection, filling.copy.schema) == await contents(connection, live)


@pytest.mark.usefixtures("an_event_this_hour_is_much")
async def test_what_is_a_batch_in_all_is_written_at_once_whatever_others_do(
    dsn: str, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await recorded_history(store, registrations=2)
    monkeypatch.setattr(copies, "BATCH_BESIDE_OTHERS", 1)
    sizes, head = list[int](), await store.head()

    class Watched(Registrations):
        async def apply(self, connection: Any, events: Any) -> None:
            sizes.append(len(events))
            await super().apply(connection, events)

    async with replaying(dsn, name="test") as session:
        copy = Copy(Watched, "check")
        async with session.transaction():
            await copy.make(session)
        await copy.fill(session, store, head, limit=head)

    assert len(sizes) == 1
