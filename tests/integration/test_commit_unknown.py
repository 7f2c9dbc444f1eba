"""The connection dies around the commit: the store finds out what became of it and answers truthfully (B3, B4, B5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from application.ports import Checkpoint, Conflict, Context, Unavailable
from domain.recorded import Position
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from tests.faults.database import ANSWER_LOST, LOST, REQUEST, SESSIONS, Inject, Killer
from tests.support.facts import eventually
from tests.support.log import append, broken_blocks, by_way_of, happened, locked, log_of, placed, proxy_to, query
from tests.support.tcp_proxy import TO_CLIENT, TO_SERVER, TcpProxy


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[TcpProxy]:
    async with proxy_to(dsn) as proxy:
        yield proxy


@pytest.fixture
async def store(proxy: TcpProxy, dsn: str) -> AsyncIterator[EventStore]:
    """A store that reaches its database through the proxy; it cuts the connection 1.5 s after a question."""
    store = EventStore(
        by_way_of(proxy, dsn), codec=EventCodec(), clock=DatabaseClock(), statement_timeout=timedelta(seconds=0.5)
    )
    await store.open()
    yield store
    await store.close()


@pytest.mark.fault("B4", "B5")
@pytest.mark.parametrize("inject", LOST.values(), ids=LOST)
async def test_an_append_whose_connection_was_cut_is_recorded_once_and_answered(
    store: EventStore, proxy: TcpProxy, dsn: str, inject: Inject
) -> None:
    before, event, after = happened(), happened(), happened()
    await append(store, before)
    inject(proxy)

    assert await append(store, event) == 2
    assert await append(store, after) == 3
    assert await log_of(dsn) == placed(before, event, after)
    assert proxy.is_effective


@pytest.mark.fault("B4", "B5")
@pytest.mark.parametrize("inject", LOST.values(), ids=LOST)
async def test_each_append_of_a_batch_whose_connection_was_cut_gets_its_own_true_answer(
    store: EventStore, proxy: TcpProxy, dsn: str, inject: Inject
) -> None:
    taken, contested, a, b, c, d = (happened() for _ in range(6))
    await append(store, taken, moved=Checkpoint("saga", 0, 1))
    inject(proxy)
    answers = await asyncio.gather(
        append(store, a),
        append(store, taken),
        append(store, b, contested),
        append(store, contested),  # ends with the very event that its neighbour recorded
        append(store, happened(), moved=Checkpoint("saga", 0, 9)),
        append(store, c, moved=Checkpoint("saga", 1, 2)),
        append(store, c),  # the same event as its neighbour's
        append(store, d),
        return_exceptions=True,
    )

    assert [answer if isinstance(answer, int) else type(answer) for answer in answers] == [
        *(2, Conflict, 4, Conflict, Conflict, 5, Conflict, 6)
    ]
    assert await log_of(dsn) == placed(taken, a, b, contested, c, d)
    assert await query(dsn, "SELECT position FROM followers") == [(2,)]
    assert await query(dsn, "SELECT first_position, last_position FROM blocks ORDER BY 1") == [(1, 1), (2, 6)]
    assert proxy.is_effective


@pytest.mark.fault("B4", "B5")
@pytest.mark.parametrize("inject", LOST.values(), ids=LOST)
async def test_a_conflict_whose_connection_was_cut_is_still_a_conflict(
    store: EventStore, proxy: TcpProxy, dsn: str, inject: Inject
) -> None:
    taken = happened()
    await append(store, taken)
    inject(proxy)

    with pytest.raises(Conflict):
        await append(store, happened(), taken)
    assert await log_of(dsn) == placed(taken)
    assert proxy.is_effective


@pytest.mark.fault("B5")
async def test_a_request_that_arrives_after_its_fate_was_asked_for_is_not_recorded(
    store: EventStore, proxy: TcpProxy, dsn: str
) -> None:
    event, neighbour = happened(), happened()
    proxy.hold(TO_SERVER, REQUEST)
    assert [*await asyncio.gather(append(store, event), append(store, neighbour))] == [1, 2]
    assert await log_of(dsn) == placed(event, neighbour)

    proxy.heal()  # what was held is delivered now
    proxy.cut(TO_CLIENT, b"was given up before it arrived", forward=False)
    await eventually(lambda: proxy.effects["cut"])
    assert await log_of(dsn) == placed(event, neighbour)
    assert proxy.is_effective


@pytest.mark.fault("B5")
@pytest.mark.slow
async def test_a_request_held_while_its_caller_was_refused_is_not_recorded_later(
    store: EventStore, proxy: TcpProxy, dsn: str
) -> None:
    """As before, but the stream is free: only the fence stands between the late request and the log."""
    proxy.hold(TO_SERVER, REQUEST)
    async with locked(dsn, "LOCK TABLE events IN ACCESS EXCLUSIVE MODE"):  # so what follows the fate is refused
        with pytest.raises(Unavailable):
            await append(store, happened())
    assert proxy.effects["hold to server"]

    proxy.heal()
    proxy.cut(TO_CLIENT, b"was given up before it arrived", forward=False)
    await eventually(lambda: proxy.effects["cut"])
    assert await log_of(dsn) == []
    assert proxy.is_effective


@pytest.mark.fault("B4")
async def test_a_commit_that_fails_after_its_answer_is_not_taken_for_one_that_succeeded(
    store: EventStore, dsn: str
) -> None:
    await query(dsn, "CREATE SEQUENCE commits")
    await query(
        dsn,
        "CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "  IF nextval('commits') = 1 THEN RAISE 'not this time' USING ERRCODE = 'serialization_failure'; END IF;"
        "  RETURN NULL; END $$",
    )
    await query(
        dsn,
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION fail_once()",
    )
    event = happened()

    assert await append(store, event) == 1
    assert await log_of(dsn) == placed(event)
    assert await query(dsn, "SELECT last_value FROM commits") == [(2,)]


@pytest.mark.slow
async def test_a_database_that_is_read_only_for_now_is_unavailable(store: EventStore, dsn: str) -> None:
    writable = make_conninfo(dsn, options="-c default_transaction_read_only=off")
    [(database,)] = await query(dsn, "SELECT current_database()")

    async def set_read_only(value: str) -> None:
        await query(writable, f"ALTER DATABASE {database} SET default_transaction_read_only = {value}")
        await query(dsn, f"{SESSIONS} AND application_name = 'registrar append'")

    await set_read_only("on")
    with pytest.raises(Unavailable):
        await append(store, happened())
    assert await log_of(dsn) == []

    await set_read_only("off")
    assert await append(store, happened()) == 1


# --- Away for good ----------------------------------------------------------------------------


async def fails_within(seconds: float, *appends: Any) -> list[type]:
    async with asyncio.timeout(seconds):
        return [type(answer) for answer in await asyncio.gather(*appends, return_exceptions=True)]


@pytest.mark.fault("B4", "B5", "B10")
@pytest.mark.slow
@pytest.mark.parametrize("lost", ["the whole answer", "the whole request"])
async def test_a_database_that_goes_away_for_good_is_unavailable_soon(
    store: EventStore, proxy: TcpProxy, dsn: str, lost: str
) -> None:
    there, event = happened(), happened()
    await append(store, there)
    LOST[lost](proxy)
    proxy.refuse()

    # Whether it was recorded is unknown: neither a success nor a conflict may be told.
    assert await fails_within(3, append(store, event)) == [Unavailable]
    # From now on it is known to be away, and nobody waits.
    assert await fails_within(1, *(append(store, happened()) for _ in range(50))) == [Unavailable] * 50
    assert proxy.is_effective

    recorded = await log_of(dsn)
    assert recorded == (placed(there, event) if lost in ANSWER_LOST else placed(there))
    proxy.heal()
    assert await eventually(lambda: succeeds(append(store, happened()))) == len(recorded) + 1


async def succeeds(attempt: Any) -> Position | None:
    try:
        position: Position = await attempt
    except Unavailable:
        return None
    return position


@pytest.mark.fault("B9")
@pytest.mark.slow
@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
async def test_a_black_hole_is_unavailable_within_the_timeouts_and_heals(
    store: EventStore, proxy: TcpProxy, dsn: str, direction: Any
) -> None:
    there = happened()
    await append(store, there)
    proxy.hold(direction)

    # 1.5 s for the statement, then 2 s for a new connection to ask what became of it.
    assert await fails_within(6, append(store, happened())) == [Unavailable]
    assert proxy.is_effective
    proxy.heal()
    position = await eventually(lambda: succeeds(append(store, happened())))
    assert position == len(await log_of(dsn))


# --- Sessions killed again and again ----------------------------------------------------------


@pytest.mark.fault("B3")
async def test_whatever_is_killed_what_was_acknowledged_is_there_once_and_what_was_refused_is_not(dsn: str) -> None:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    contested = [uuid4() for _ in range(30)]
    sizes: dict[UUID, int] = {}
    told: dict[UUID, Position | Exception] = {}

    def enough() -> bool:
        return killer.killed > 20 and sum(isinstance(answer, int) for answer in told.values()) > 100

    async def write(first: int) -> None:
        for number in count(first, 6):
            if number >= 300 and enough():  # a fast machine has written much before many are killed
                return
            context = Context("client", correlation_id=uuid4())
            events = [happened(), happened()]
            if number % 3 == 0:
                events.append(happened(contested[number % len(contested)]))
            sizes[context.correlation_id] = len(events)
            try:
                told[context.correlation_id] = await append(store, *events, context=context)
            except (Conflict, Unavailable) as error:
                told[context.correlation_id] = error
            killer.answered.set()

    async with Killer(dsn) as killer:
        await asyncio.gather(*(write(worker) for worker in range(6)))
    await store.close()

    recorded: dict[UUID, list[Position]] = {}
    for correlation_id, position in await query(dsn, "SELECT correlation_id, notification_id FROM events ORDER BY 2"):
        recorded.setdefault(correlation_id, []).append(position)
    for correlation_id, answer in told.items():
        positions, whole = recorded.pop(correlation_id, []), sizes[correlation_id]
        if isinstance(answer, int):
            assert positions == list(range(answer - whole + 1, answer + 1))
        elif isinstance(answer, Conflict):
            assert positions == []
            assert whole == 3, "a conflict for what nobody else wrote"
        else:
            assert len(positions) in (0, whole)
    assert recorded == {}

    answers = list(told.values())
    assert len(answers) >= 300
    assert any(isinstance(answer, Conflict) for answer in answers)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        assert await broken_blocks(connection) == []
