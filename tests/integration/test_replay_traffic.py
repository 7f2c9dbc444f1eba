"""While others append to the log, whoever folds it leaves them a processor of the server."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from domain.recorded import Position
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection
from infrastructure.replay import copies, traffic
from infrastructure.replay.copies import Copy, Filling, fill_together
from infrastructure.replay.sessions import replaying
from infrastructure.replay.traffic import Traffic
from projections import PROJECTIONS
from tests.support.facts import REGISTRATION, registered, stream
from tests.support.log import append
from tests.support.read_models import contents, follow_all, recorded_history


@pytest.fixture
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "LOOKS_EVERY", timedelta(0))


@pytest.mark.usefixtures("looks_each_time")
async def test_what_others_append_between_two_looks_is_traffic(store: EventStore, connection: Connection) -> None:
    seen = Traffic()

    found = [await seen.is_much(connection)]
    await append(store, EventCodec().encode(stream(REGISTRATION, registered())[0]))
    found += [await seen.is_much(connection), await seen.is_much(connection)]

    assert found == [False, True, False]


@pytest.mark.usefixtures("looks_each_time")
async def test_beside_others_copies_are_written_one_after_the_other_and_are_the_same(
    dsn: str, store: EventStore, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await recorded_history(store, registrations=20)
    await follow_all(store, connection)
    monkeypatch.setattr(traffic, "MUCH", -1)  # from the second look on
    monkeypatch.setattr(copies, "BATCH_BESIDE_OTHERS", 7)
    writing, sizes, at_once, first = set[str](), list[int](), list[int](), list[int]()

    def watched(make: Any) -> Any:
        class Watched(make):  # type: ignore[misc]
            async def apply(self, connection: Any, events: Any) -> None:
                writing.add(self.name)
                sizes.append(len(events))
                at_once.append(len(writing))
                await super().apply(connection, events)
                writing.discard(self.name)

        return Watched

    async def told(_: Position) -> None:
        first.append(len(sizes))

    head = await store.head()
    async with AsyncExitStack() as stack:
        fillings = []
        for make in PROJECTIONS:
            session = await stack.enter_async_context(replaying(dsn, name=make.name))
            copy = Copy(watched(make), "check")
            async with session.transaction():
                await copy.make(session)
            fillings.append(Filling(copy, session, head))
        await fill_together(store, fillings, limit=20, told=told)

    assert (max(sizes[first[0] :]), max(at_once[first[0] :])) == (7, 1)
    for filling in fillings:
        live = filling.copy.schema.removesuffix("__check")
        assert await contents(connection, filling.copy.schema) == await contents(connection, live)
