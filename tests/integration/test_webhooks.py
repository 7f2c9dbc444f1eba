"""Webhooks follow the log: in order per registration, at least once, and no endpoint holds up another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from ipaddress import ip_network
from uuid import UUID

import pytest
import standardwebhooks

from application.integration_events import encode, integration_event
from application.ports import entries_of
from infrastructure.event_store.reader import head_of
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers.leadership import lead
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import Notifications
from infrastructure.settings.addresses import Reachable
from infrastructure.webhooks import delivery as delivery_module
from infrastructure.webhooks import records
from infrastructure.webhooks.calls import Calls
from infrastructure.webhooks.delivery import Delivery, Message
from infrastructure.webhooks.follower import Webhooks
from infrastructure.webhooks.records import Standing
from tests.support.endpoint_stub import SECRET, EndpointStub, endpoint
from tests.support.facts import (
    CLIENT,
    T0,
    MovableClock,
    account_activated,
    email_verified,
    eventually,
    otp_issued,
    registered,
    stream,
)
from tests.support.webhook_stub import Call

LIFE = ["accepted", "verified", "activated"]


@pytest.fixture
async def stub() -> AsyncIterator[EndpointStub]:
    async with EndpointStub() as stub:
        yield stub


@asynccontextmanager
async def sending(
    dsn: str,
    store: EventStore,
    clock: MovableClock,
    *,
    first_pause: timedelta = timedelta(milliseconds=5),
    **stubs: EndpointStub,
) -> AsyncIterator[None]:
    """A process that sends to these endpoints, by name."""
    notifications = Notifications(dsn)
    networks = Reachable((ip_network("127.0.0.0/8"),))
    webhooks = Webhooks(
        tail=LogTail(store),
        notifications=notifications,
        endpoints={name: Calls(endpoint(one.url, name=name), networks) for name, one in stubs.items()},
        clock=clock,
        first_pause=first_pause,
    )
    tasks = [asyncio.create_task(work) for work in (notifications.run(), lead(webhooks, dsn))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def lives(store: EventStore, count: int, *, first: int = 1) -> list[UUID]:
    """Registrations that were all activated, their events mixed."""
    ids = [UUID(int=first + number) for number in range(count)]
    for facts, after in (((registered(), otp_issued()), 0), ((email_verified(),), 2), ((account_activated(),), 3)):
        await asyncio.gather(*(store.append(entries_of(stream(one, *facts, after=after), CLIENT)) for one in ids))
    return ids


async def standing(connection: Connection, name: str = "app") -> Standing:
    return (await records.standings(connection))[name]


async def up_to_date(connection: Connection, *names: str) -> bool:
    found = await records.standings(connection)
    head = await head_of(connection)
    return all(name in found and found[name].position == head for name in names or ("app",))


def told(stub: EndpointStub) -> Mapping[str, list[str]]:
    return stub.told


def of(registration_id: UUID, call: Call) -> bool:
    return bool(call.json["subject"] == str(registration_id))


# --- What comes -----------------------------------------------------------------------------------


async def test_registrations_lives_are_told_in_order_as_on_the_broker(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    await records.begin(connection, ["app"])
    ids = await lives(store, 100)
    async with sending(dsn, store, clock, app=stub):
        await eventually(lambda: up_to_date(connection))

    assert told(stub) == {str(one): LIFE for one in ids}
    assert len(stub.calls) == 300
    assert 1 < stub.most <= 64
    bodies = {call.body for call in stub.calls}
    rows, _ = await store.read(0, 1000)
    assert bodies == {encode(event) for row in rows if (event := integration_event(store.decode(row)))}
    for call in stub.calls:
        standardwebhooks.Webhook(SECRET).verify(call.body, dict(call.headers))


async def test_an_id_is_that_of_the_event_without_a_full_stop(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    await records.begin(connection, ["app"])
    await lives(store, 1)
    async with sending(dsn, store, clock, app=stub):
        await eventually(lambda: up_to_date(connection))

    assert stub.ids == [call.json["id"].replace(".", "-") for call in stub.calls]


async def test_a_new_endpoint_gets_what_is_recorded_from_now_on(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    await lives(store, 1)
    async with sending(dsn, store, clock, app=stub):
        await eventually(lambda: up_to_date(connection))
        [later] = await lives(store, 1, first=7)
        await eventually(lambda: str(later) in told(stub) and told(stub)[str(later)] == LIFE)

    assert told(stub) == {str(later): LIFE}


# --- Failures -------------------------------------------------------------------------------------


@pytest.mark.fault("X20")
async def test_an_endpoint_that_is_away_holds_up_no_other(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    async with EndpointStub() as dead, EndpointStub() as hangs:
        hangs.answer = lambda _: "hang"
        await records.begin(connection, ["app", "dead", "hangs"])
        dead._server.close()
        async with sending(dsn, store, clock, app=stub, dead=dead, hangs=hangs):
            ids = await lives(store, 30)
            await eventually(lambda: up_to_date(connection))
            assert told(stub) == {str(one): LIFE for one in ids}
            await eventually(lambda: _fails(connection, "dead"))
            found = await standing(connection, "dead")
            assert (found.position, found.failure, found.failing_since) == (0, "no connection", T0)
            for task in hangs._tasks:  # or the stop would wait for them
                task.cancel()


async def _fails(connection: Connection, name: str) -> bool:
    return (await standing(connection, name)).failing_since is not None


@pytest.mark.fault("X21")
async def test_what_an_endpoint_missed_while_it_was_away_comes_once_and_in_order(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    away = True
    stub.answer = lambda _: "503 Away" if away else "204 Back"
    await records.begin(connection, ["app"])
    ids = await lives(store, 50)
    async with sending(dsn, store, clock, app=stub):
        await eventually(lambda: _fails(connection, "app"))
        missed = len(stub.calls)
        away = False
        await eventually(lambda: up_to_date(connection))
        await eventually(lambda: _is_well(connection))

    taken = stub.calls[missed:]
    assert len({call.headers["webhook-id"] for call in taken}) == 150
    assert told(stub) == {str(one): LIFE for one in ids}


async def _is_well(connection: Connection) -> bool:
    found = await standing(connection)
    return found.failing_since is None and found.failure is None and found.retry_at is None


@pytest.mark.fault("X21")
async def test_an_endpoint_that_takes_nothing_is_asked_by_one_call_at_a_time(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    stub.answer = lambda _: "500 No"
    await records.begin(connection, ["app"])
    await lives(store, 100)
    async with sending(dsn, store, clock, app=stub):
        await eventually(lambda: len(stub.calls) > 66)
        stub.most = 0
        begun = len(stub.calls)
        await eventually(lambda: len(stub.calls) > begun + 2)
        assert stub.most == 1
    assert (await standing(connection)).position == 0


@pytest.mark.fault("X25")
async def test_a_registration_whose_event_is_refused_holds_up_itself_and_no_other(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    refuses = True
    bad = UUID(int=3)
    stub.answer = lambda call: "500 No" if refuses and of(bad, call) else "204 Yes"
    await records.begin(connection, ["app"])
    ids = await lives(store, 40)
    async with sending(dsn, store, clock, app=stub):
        await eventually(
            lambda: len(told(stub)) == 40 and all(told(stub)[str(one)] == LIFE for one in ids if one != bad)
        )
        await eventually(lambda: _fails(connection, "app"))
        assert told(stub)[str(bad)] == ["accepted"]
        held_up = (await standing(connection)).position
        first = next(call.json["data"]["position"] for call in stub.calls if of(bad, call))
        assert held_up == first - 1

        refuses = False
        await eventually(lambda: up_to_date(connection))
    assert told(stub)[str(bad)] == LIFE


@pytest.mark.fault("X25")
async def test_no_more_than_a_window_is_sent_beyond_what_is_refused(
    dsn: str,
    connection: Connection,
    store: EventStore,
    clock: MovableClock,
    stub: EndpointStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery_module, "WINDOW", 50)
    bad = UUID(int=1)
    stub.answer = lambda call: "500 No" if of(bad, call) else "204 Yes"
    await records.begin(connection, ["app"])
    await lives(store, 300)
    async with sending(dsn, store, clock, app=stub):
        await eventually(lambda: sum(of(bad, call) for call in stub.calls) > 5)
        sent = {call.headers["webhook-id"] for call in stub.calls}
    assert 50 <= len(sent) <= 50 + 200  # and what was read together with the last of it


async def test_an_endpoint_that_asks_for_a_rest_gets_it(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    stub.answer = lambda _: "429 Slowly\r\nRetry-After: 3600"
    await records.begin(connection, ["app"])
    await lives(store, 1)
    async with sending(dsn, store, clock, app=stub):
        await eventually(lambda: _fails(connection, "app"))
        assert (await standing(connection)).retry_at == T0 + timedelta(hours=1)
    async with sending(dsn, store, clock, app=stub):  # and after a restart
        await eventually(lambda: _leads(connection))
        await lives(store, 1, first=9)
    assert len(stub.calls) == 1


async def test_after_its_rest_an_endpoint_has_no_next_try_while_the_call_is_under_way(
    clock: MovableClock, stub: EndpointStub
) -> None:
    stub.answer = lambda _: "429 Slowly\r\nRetry-After: 0" if len(stub.calls) == 1 else "hang"
    calls = Calls(endpoint(stub.url), Reachable((ip_network("127.0.0.0/8"),)))
    next_tries: list[datetime | None] = []
    delivery = Delivery(
        calls,
        Standing("app", 0, 1),
        clock=clock,
        on_change=lambda: next_tries.append(delivery.standing.retry_at),
        first_pause=timedelta(milliseconds=5),
    )
    delivery.add([Message(1, UUID(int=1), "m-1", b"{}")], 1)

    await eventually(lambda: len(stub.calls) == 2)

    [next_try] = next_tries
    assert next_try is not None
    assert delivery.standing.retry_at is None
    assert delivery.standing.failing_since == T0
    calls.drop()


async def test_the_next_try_of_what_is_refused_is_noted_and_a_call_that_is_taken_makes_it_now(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    stub.answer = lambda _: "500 No"
    await records.begin(connection, ["app"])
    ids = await lives(store, 2)
    async with sending(dsn, store, clock, app=stub, first_pause=timedelta(minutes=1)):
        await eventually(lambda: _fails(connection, "app"))
        await eventually(lambda: len(stub.calls) == 2)
        await eventually(lambda: _tries(connection, 2))
        found = await standing(connection)
        assert found.retry_at is None, "others would not wait"
        assert found.next_try_at is not None
        assert timedelta(seconds=40) <= found.next_try_at - T0 <= timedelta(seconds=60)

        stub.answer = lambda _: "204 Yes"
        assert await records.wake(connection, "app")
        await eventually(lambda: up_to_date(connection))
        assert (await standing(connection)).next_try_at is None
        assert not await records.wake(connection, "app")
    assert told(stub) == {str(one): LIFE for one in ids}


async def _tries(connection: Connection, failures: int) -> bool:
    return (await standing(connection)).failures == failures


def test_for_ten_minutes_there_is_a_try_a_minute() -> None:
    tries, since = 0, timedelta(0)
    while since < timedelta(minutes=10):
        tries += 1
        pause = delivery_module.pause_after(tries)
        assert pause <= timedelta(minutes=1)
        since += pause
    assert timedelta(minutes=24) <= delivery_module.pause_after(tries + 20) <= timedelta(minutes=36)


async def _leads(connection: Connection) -> bool:
    cursor = await connection.execute(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'registrar webhooks' AND datname = current_database()"
    )
    return await cursor.fetchone() is not None


@pytest.mark.fault("X23")
async def test_an_endpoint_that_is_gone_is_called_no_more_and_loses_nothing(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    stub.answer = lambda _: "410 Gone"
    await records.begin(connection, ["app"])
    ids = await lives(store, 1)
    async with sending(dsn, store, clock, app=stub):
        await eventually(lambda: _is_disabled(connection))
        found = await standing(connection)
        assert (found.disabled_by, found.position, found.failure) == ("endpoint", 0, "status 410")
        calls = len(stub.calls)
        stub.answer = lambda _: "204 Yes"
        await records.enable(connection, "app")
        await eventually(lambda: up_to_date(connection))
    assert calls == 1
    assert told(stub) == {str(one): LIFE for one in ids}


async def _is_disabled(connection: Connection) -> bool:
    return (await standing(connection)).disabled_at is not None


# --- What operators do ----------------------------------------------------------------------------


async def test_a_disabled_endpoint_gets_what_it_missed_when_it_is_enabled(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    await records.begin(connection, ["app"])
    async with sending(dsn, store, clock, app=stub):
        assert await records.disable(connection, "app", "operator")
        async with EndpointStub() as other:
            ids = await lives(store, 2)
            assert not other.calls
        assert not await records.disable(connection, "app", "operator")
        assert await records.enable(connection, "app")
        await eventually(lambda: up_to_date(connection))
    assert told(stub) == {str(one): LIFE for one in ids}


async def test_a_replay_sends_again_from_a_position_with_the_same_ids(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    await records.begin(connection, ["app"])
    await lives(store, 2)
    async with sending(dsn, store, clock, app=stub):
        await eventually(lambda: up_to_date(connection))
        first, since = list(stub.ids), stub.calls[2].json["data"]["position"]
        assert await records.replay(connection, "app", since) == since
        await eventually(lambda: len(stub.calls) >= 10)
        await eventually(lambda: up_to_date(connection))

    again = stub.ids[6:]
    assert sorted(again) == sorted(one for one in first if int(one.rpartition("-")[2]) >= since)


async def test_a_replay_from_beyond_the_end_skips_to_the_end(connection: Connection, store: EventStore) -> None:
    await records.begin(connection, ["app"])
    await lives(store, 1)
    head = await head_of(connection)
    assert await records.replay(connection, "app", 10**9) == head + 1
    assert await records.replay(connection, "unknown", 1) is None


async def test_what_was_under_way_before_an_act_saves_nothing_any_more(connection: Connection) -> None:
    await records.begin(connection, ["app"])
    before = await standing(connection)
    await records.replay(connection, "app", 1)
    with pytest.raises(records.TermIsOver):
        await records.save(connection, before)


# --- Two processes, and one that comes back -------------------------------------------------------


@pytest.mark.fault("X26")
async def test_of_two_processes_one_sends_and_the_other_goes_on_where_it_was(
    dsn: str, connection: Connection, store: EventStore, clock: MovableClock, stub: EndpointStub
) -> None:
    await records.begin(connection, ["app"])
    async with sending(dsn, store, clock, app=stub), sending(dsn, store, clock, app=stub):
        await eventually(lambda: _leads(connection))
        ids = await lives(store, 20)
        await eventually(lambda: up_to_date(connection))
        assert len(stub.calls) == 60
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND objid = hashtext('webhooks')::oid AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        more = await lives(store, 20, first=1000)
        await eventually(lambda: up_to_date(connection))

    assert told(stub) == {str(one): LIFE for one in (*ids, *more)}
    assert len(set(stub.ids)) == 120
