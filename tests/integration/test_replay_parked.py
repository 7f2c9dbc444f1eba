"""Swaps and rollbacks beside a projector that has parked a stream, which waits for the swap's locks in the worst
moments: every event is applied once, and in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from application.ports import entries_of
from domain.recorded import Position
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers import parked as parking
from infrastructure.followers.leadership import lead
from infrastructure.followers.projector import Projector
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import Notifications
from infrastructure.replay import swap
from infrastructure.replay.rebuild import RebuildAct, Rebuilds
from infrastructure.replay.verification import verify
from projections.funnel import Funnel
from projections.registrations import Registrations
from tests.support.facts import CLIENT, REGISTRATION, email_verified, eventually, registered, stream
from tests.support.read_models import follow, recorded_history, rows

REGISTERED = "SELECT sum(count)::int FROM read_funnel.stages WHERE stage = 'registered'"


class _Refuses:
    """The real read model, with a bug about one registration until it is mended."""

    mended = False

    async def apply(self, connection: Any, events: Any) -> None:
        if not self.mended and any(one.event.originator_id == REGISTRATION for one in events):
            raise LookupError("never heard of it")
        await super().apply(connection, events)  # type: ignore[misc]


class RefusingFunnel(_Refuses, Funnel):
    pass


class RefusingRegistrations(_Refuses, Registrations):
    pass


@pytest.fixture(autouse=True)
def _retries_when_told_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "PARKED_RETRY_INTERVAL", timedelta(days=1))


@pytest.fixture
def rebuilds(dsn: str, store: EventStore) -> Rebuilds:
    async def record(_: RebuildAct) -> None:
        pass

    return Rebuilds(dsn, log=store, record=record)


@asynccontextmanager
async def followed(dsn: str, store: EventStore, projection: Any) -> AsyncIterator[Projector]:
    notifications = Notifications(dsn)
    projector = Projector(projection, store=LogTail(store), notifications=notifications)
    tasks = [asyncio.create_task(work) for work in (notifications.run(), lead(projector, dsn))]
    try:
        yield projector
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def parked(
    dsn: str, store: EventStore, connection: Connection, monkeypatch: pytest.MonkeyPatch, make: Any
) -> AsyncIterator[Projector]:
    """The projector of a live read model, which has parked one stream. The bug is mended by now."""
    monkeypatch.setattr(_Refuses, "mended", False)
    await recorded_history(store, registrations=10)
    await follow(store, connection, make())
    await store.append(entries_of(stream(REGISTRATION, registered()), CLIENT))
    async with followed(dsn, store, make()) as projector:
        await eventually(lambda: streams_of(connection, make.name))
        monkeypatch.setattr(_Refuses, "mended", True)
        yield projector


async def streams_of(connection: Connection, name: str) -> list[tuple[Any, ...]]:
    return await rows(connection, "SELECT DISTINCT stream_id FROM parked_events WHERE follower = %s", name)


async def is_at(connection: Connection, name: str, position: Position) -> None:
    async def there() -> bool:
        return bool(await rows(connection, "SELECT FROM followers WHERE name = %s AND position >= %s", name, position))

    await eventually(there)


def amid_the_swap(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], Awaitable[Any]]) -> None:
    """The swap has its locks when this is done, and goes on when the projector waits for them."""
    locked, done = swap._locked, False

    async def held(connection: Connection, schema: str, incoming: Any) -> Position:
        nonlocal done
        position = await locked(connection, schema, incoming)
        if not done:
            await act()
            done = True

        async def waits() -> bool:
            waiting = "SELECT FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            return bool(await rows(connection, waiting, f"registrar {name}"))

        await eventually(waits)
        return position

    monkeypatch.setattr(swap, "_locked", held)
    monkeypatch.setattr(swap, "LONGEST_HOLD", timedelta(minutes=1))


def next_event(store: EventStore) -> Callable[[], Awaitable[Any]]:
    return lambda: store.append(entries_of(stream(REGISTRATION, email_verified(), after=1), CLIENT))


async def nobody_is_deposed(*_: object) -> None:
    """As where the server is slow to end a session."""


@pytest.mark.parametrize("make", [RefusingFunnel])
@pytest.mark.parametrize("deposed", [True, False])
async def test_a_retry_that_waits_for_the_swap_applies_nothing_that_the_copy_contains(
    dsn: str,
    store: EventStore,
    connection: Connection,
    rebuilds: Rebuilds,
    monkeypatch: pytest.MonkeyPatch,
    parked: Projector,
    make: Any,
    deposed: bool,
) -> None:
    [(others,)] = await rows(connection, REGISTERED)
    if not deposed:
        monkeypatch.setattr(swap, "depose", nobody_is_deposed)

    async def all_are_due() -> None:
        parked._parked._all_due = 0.0

    amid_the_swap(monkeypatch, make.name, all_are_due)

    assert (await rebuilds.rebuild(make, repair=True)).swapped

    await is_at(connection, make.name, await store.append(entries_of(stream(uuid4(), registered()), CLIENT)))
    assert await rows(connection, REGISTERED) == [(others + 2,)]
    assert await streams_of(connection, make.name) == []
    assert (await verify(dsn, make, log=store)).kept == []


@pytest.mark.parametrize("make", [RefusingRegistrations])
@pytest.mark.usefixtures("parked")
async def test_a_stream_that_the_swap_has_cured_is_not_parked_by_the_batch_that_waits_for_it(
    dsn: str, store: EventStore, connection: Connection, rebuilds: Rebuilds, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    amid_the_swap(monkeypatch, make.name, next_event(store))

    assert (await rebuilds.rebuild(make, repair=True)).swapped

    await is_at(connection, make.name, await store.head())
    assert await streams_of(connection, make.name) == []
    assert (await verify(dsn, make, log=store)).kept == []


@pytest.mark.parametrize("make", [RefusingRegistrations])
@pytest.mark.usefixtures("parked")
async def test_after_a_rollback_the_batch_that_waited_for_it_goes_behind_the_events_that_are_parked_there(
    dsn: str, store: EventStore, connection: Connection, rebuilds: Rebuilds, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    assert (await rebuilds.rebuild(make, repair=True)).swapped
    assert await streams_of(connection, make.name) == []
    assert await streams_of(connection, f"{make.name}__old") == [(REGISTRATION,)]
    # A leader that knows of no parked stream.
    await is_at(connection, make.name, await store.append(entries_of(stream(uuid4(), registered()), CLIENT)))
    amid_the_swap(monkeypatch, make.name, next_event(store))

    await rebuilds.roll_back(make)

    await is_at(connection, make.name, await store.head())

    async def retried() -> bool:
        return await streams_of(connection, make.name) == []

    await eventually(retried)
    assert (await verify(dsn, make, log=store)).kept == []
