"""Followers: one leads, all is applied once and in order, what cannot be applied waits, and the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import StoredEvent

from application.ports import Checkpoint
from domain.recorded import Position, Recorded
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers import projector
from infrastructure.followers.leadership import lead
from infrastructure.followers.parked import ATTEMPTS_BEFORE_PARKING
from infrastructure.followers.projector import Projector, read_scripts, rest_after
from infrastructure.postgres import notifications as notifications_module
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.notifications import FOLLOWERS, HEAD, LISTENED_FOR, Notifications, Watch
from infrastructure.postgres.schema import bring_up_to_date
from tests.support.facts import CLIENT, email_claimed, email_released, eventually, stream
from tests.support.interruptions import interrupt, nothing_left_behind, wait_as_under_load
from tests.support.log import append, happened, locked, query

SESSION = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"


class Tally:
    """Writes down every event that it is given, and by which of us; fails and waits as told."""

    name = "tally"
    schema = "read_tally"
    topics: tuple[str, ...] | None = None
    tables: tuple[str, ...] = (
        "CREATE TABLE IF NOT EXISTS seen (number serial, position bigint, stream_id uuid, who text)",
    )
    metadata = False

    def __init__(self, who: str = "one") -> None:
        self.who = who
        self.attempts = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: Callable[[Recorded], bool] = lambda _: False

    async def apply(self, connection: Connection, events: Sequence[Recorded]) -> None:
        self.attempts += 1
        await connection.execute("SET LOCAL lock_timeout = '20ms'")
        for event in events:
            await connection.execute(
                "INSERT INTO seen (position, stream_id, who) VALUES (%s, %s, %s)",
                (event.position, event.event.originator_id, self.who),
            )
            if self.fails(event):
                raise ZeroDivisionError("a bug of the projection, with somebody@example.org in it")
        await self.gate.wait()


@pytest.fixture(autouse=True)
async def _tables(dsn: str) -> None:
    async with await connect(dsn, name="tables", statement_timeout=timedelta(seconds=10)) as connection:
        await bring_up_to_date(connection, read_scripts(Tally()))


@pytest.fixture
async def notifications(dsn: str) -> AsyncIterator[Notifications]:
    notifications = Notifications(dsn)
    async with running(notifications.run()):
        await eventually(lambda: query(dsn, SESSION, "registrar listen"))
        yield notifications


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def following(
    tally: Tally, store: EventStore, notifications: Notifications, dsn: str, *, announced: bool = False
) -> Coroutine[Any, Any, None]:
    return lead(Projector(tally, store=store, notifications=notifications, announced=announced), dsn)


async def positions(dsn: str) -> list[Position]:
    """What was applied, in the order in which it was."""
    return [row[0] for row in await query(dsn, "SELECT position FROM read_tally.seen ORDER BY number")]


async def appliers(dsn: str) -> list[str]:
    """By whom it was applied."""
    return [row[0] for row in await query(dsn, "SELECT who FROM read_tally.seen ORDER BY number")]


async def place(dsn: str) -> Position:
    rows = await query(dsn, "SELECT position FROM followers WHERE name = 'tally'")
    return rows[0][0] if rows else 0


async def parked(dsn: str) -> list[tuple[UUID, Position, str]]:
    return await query(
        dsn, "SELECT stream_id, position, error FROM parked_events WHERE follower = 'tally' ORDER BY position"
    )


async def until_at(dsn: str, position: Position) -> None:
    async def is_there() -> bool:
        return await place(dsn) == position

    await eventually(is_there)


async def end(dsn: str, application: str) -> None:
    """End the session of this name (and the one with which a standby may just be trying); proves that there was one."""
    ended = await query(dsn, SESSION.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"), application)
    assert set(ended) == {(True,)}


def claimed(stream_id: UUID | None = None, version: int = 1) -> StoredEvent:
    """An event that can be decoded; of a stream's second and later it is the release."""
    fact = email_claimed() if version == 1 else email_released()
    return EventCodec().encode(stream(stream_id or uuid4(), fact, after=version - 1)[0])


# --- Following --------------------------------------------------------------------------------


async def test_all_there_was_and_all_that_comes_is_applied_once_and_in_order(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    await append(store, *(claimed() for _ in range(1200)))
    tally = Tally()
    async with running(following(tally, store, notifications, dsn)):
        await until_at(dsn, 1200)
        assert tally.attempts == 2  # a thousand at a time
        await asyncio.gather(*(append(store, claimed()) for _ in range(50)))
        await until_at(dsn, 1250)

    assert await positions(dsn) == list(range(1, 1251))
    assert await parked(dsn) == []


async def test_a_projection_of_some_topics_moves_on_over_the_others(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    stream_id = uuid4()
    await append(store, claimed(stream_id), claimed(stream_id, 2), claimed(), happened())
    tally = Tally()
    tally.topics = ("email_claim.email_released",)
    async with running(following(tally, store, notifications, dsn)):
        await until_at(dsn, 4)

    assert await positions(dsn) == [2]


async def test_a_follower_goes_on_where_it_was(store: EventStore, notifications: Notifications, dsn: str) -> None:
    await append(store, claimed(), claimed())
    async with running(following(Tally(), store, notifications, dsn)):
        await until_at(dsn, 2)
    await append(store, claimed())
    async with running(following(Tally("again"), store, notifications, dsn)):
        await until_at(dsn, 3)

    assert await positions(dsn) == [1, 2, 3]
    assert await appliers(dsn) == ["one", "one", "again"]


# --- Leadership -------------------------------------------------------------------------------


@pytest.mark.fault("B21")
async def test_when_the_leaders_session_is_killed_the_other_takes_over(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(following(Tally("one"), store, notifications, dsn)))
        await append(store, claimed())
        await until_at(dsn, 1)
        await stack.enter_async_context(running(following(Tally("two"), store, notifications, dsn)))
        for number in range(2, 20):
            await append(store, claimed())
            await until_at(dsn, number)
        assert set(await appliers(dsn)) == {"one"}

        await end(dsn, "registrar tally")
        await append(store, claimed())
        await until_at(dsn, 20)
        await append(store, claimed())
        await until_at(dsn, 21)

    assert await positions(dsn) == list(range(1, 22))
    assert (await appliers(dsn))[19:] == ["two", "two"]


async def test_a_leader_that_is_killed_in_the_middle_of_a_batch_leaves_nothing_of_it(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    tally = Tally()
    tally.gate.clear()
    await append(store, claimed(), claimed())
    async with running(following(tally, store, notifications, dsn)):
        await eventually(lambda: tally.attempts == 1)
        await end(dsn, "registrar tally")
        tally.gate.set()
        await until_at(dsn, 2)

    assert tally.attempts == 2
    assert await positions(dsn) == [1, 2]


@pytest.mark.fault("B21")
async def test_a_leader_that_slept_while_somebody_else_moved_on_applies_nothing_twice(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    sleeper = Tally("sleeper")
    sleeper.gate.clear()
    await append(store, claimed(), claimed())
    async with running(following(sleeper, store, notifications, dsn)):
        await eventually(lambda: sleeper.attempts == 1)
        # Somebody else applies the same batch, as one does who took over meanwhile.
        await query(dsn, "INSERT INTO read_tally.seen (position, who) VALUES (1, 'other'), (2, 'other')")
        await query(dsn, "UPDATE followers SET position = 2 WHERE name = 'tally'")
        sleeper.gate.set()
        await append(store, claimed())
        await until_at(dsn, 3)

    assert await positions(dsn) == [1, 2, 3]
    assert await appliers(dsn) == ["other", "other", "sleeper"]
    assert await parked(dsn) == []


class NothingMore(Notifications):
    """Stops a follower where it would wait for more."""

    reached = False

    async def wait_past(self, who: str, position: Position, *, within: timedelta = timedelta(0)) -> bool:
        self.reached = True
        raise asyncio.CancelledError


@pytest.mark.parametrize("times", [1, 2])
async def test_a_leader_stops_wherever_it_is_told_to_and_leaves_nothing_behind(
    store: EventStore, dsn: str, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr("infrastructure.followers.leadership.STAND_BY", timedelta(seconds=0.01))
    await append(store, claimed())
    wait_as_under_load(monkeypatch)
    with nothing_left_behind(monkeypatch):
        for at in count(1):
            await query(dsn, "TRUNCATE followers, read_tally.seen")
            end = NothingMore(dsn)
            interrupted = await interrupt(following(Tally(), store, end, dsn), at=at, times=times)
            assert interrupted or end.reached
            assert len(await positions(dsn)) == await place(dsn)  # both or neither
            if not interrupted:
                break

    assert at > 20  # it waits around each message of the session and of the batch
    assert await positions(dsn) == [1]


# --- What cannot be applied -------------------------------------------------------------------


async def test_what_cannot_be_applied_parks_its_stream_and_the_others_go_on(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    poisoned, other = uuid4(), uuid4()
    tally = Tally()
    tally.fails = lambda event: event.event.originator_id == poisoned and event.event.originator_version == 2
    await append(store, claimed(other), claimed(poisoned), claimed(poisoned, 2), claimed(other, 2), claimed())
    async with running(following(tally, store, notifications, dsn)):
        await until_at(dsn, 5)
        assert await parked(dsn) == [(poisoned, 3, "ZeroDivisionError")]

        tally.fails = lambda _: False
        await append(store, claimed(poisoned, 3), claimed(other, 3), claimed(poisoned, 4))
        await until_at(dsn, 8)
    assert await positions(dsn) == [1, 2, 4, 5, 7]

    # It stays parked, in order, for who comes after, as long as it cannot be applied.
    again = Tally("again")
    again.fails = lambda event: event.event.originator_id == poisoned
    async with running(following(again, store, notifications, dsn)):
        await append(store, claimed(poisoned, 5), claimed(other, 4))
        await until_at(dsn, 10)
    assert await positions(dsn) == [1, 2, 4, 5, 7, 10]
    assert [(stream_id, position) for stream_id, position, _ in await parked(dsn)] == [
        (poisoned, position) for position in (3, 6, 8, 9)
    ]
    assert "example.org" not in str(await parked(dsn))


async def test_what_this_version_cannot_read_parks_its_stream(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    of_the_future, broken = happened(topic="email_claim.email_lent"), claimed()
    broken = StoredEvent(broken.originator_id, 1, broken.topic, b"{not json")
    await append(store, claimed(), of_the_future, broken, claimed())
    async with running(following(Tally(), store, notifications, dsn)):
        await until_at(dsn, 4)

    assert await positions(dsn) == [1, 4]
    assert [row[:2] for row in await parked(dsn)] == [(of_the_future.originator_id, 2), (broken.originator_id, 3)]
    assert (await parked(dsn))[0][2] == "TopicError"


async def test_what_fails_twice_and_then_succeeds_is_not_parked(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    tally = Tally()
    tally.fails = lambda _: tally.attempts < 3
    await append(store, claimed(), claimed())
    async with running(following(tally, store, notifications, dsn)):
        await until_at(dsn, 2)

    assert tally.attempts == 3
    assert await positions(dsn) == [1, 2]
    assert await parked(dsn) == []


async def test_a_read_model_that_is_locked_for_a_while_is_tried_again_and_nothing_is_parked(
    store: EventStore, notifications: Notifications, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.followers.leadership.STAND_BY", timedelta(seconds=0.05))
    tally = Tally()
    async with running(following(tally, store, notifications, dsn)):
        await append(store, claimed())
        await until_at(dsn, 1)
        async with locked(dsn, "LOCK TABLE read_tally.seen IN ACCESS EXCLUSIVE MODE"):
            await append(store, claimed())
            # Failed by the lock timeout and begun again, more often than what is at fault itself would be.
            await eventually(lambda: tally.attempts > 1 + 2 * ATTEMPTS_BEFORE_PARKING)
            assert await place(dsn) == 1
        await until_at(dsn, 2)

    assert await positions(dsn) == [1, 2]
    assert await parked(dsn) == []


# --- Notifications ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("took", "rests"),
    [
        pytest.param(0.0, 0.2, id="a small one: the rest of its pace"),
        pytest.param(0.05, 0.15, id="one of a quarter of its pace"),
        pytest.param(0.2, 0.6, id="a large one: three times what it took"),
        pytest.param(15.0, 1.0, id="one that a stopped database held up: a second, no more"),
    ],
)
def test_a_projector_rests_by_what_a_batch_took_and_never_for_long(took: float, rests: float) -> None:
    rest = rest_after(timedelta(seconds=took), timedelta(milliseconds=200))
    assert rest.total_seconds() == pytest.approx(rests)


async def test_a_read_model_that_clients_wait_for_leaves_what_nobody_requested_until_something_was(
    store: EventStore, notifications: Notifications, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "LEFT_FOR", timedelta(hours=1))
    tally, tail, looked = Tally(), LogTail(store), set()
    read = tail.stretch

    async def stretch(after: Position, *arguments: Any, **options: Any) -> Any:
        found = await read(after, *arguments, **options)
        looked.add((after, found.upto))
        return found

    monkeypatch.setattr(tail, "stretch", stretch)
    following_it = Projector(tally, store=tail, notifications=notifications, announced=True)
    async with running(lead(following_it, dsn)):
        await append(store, claimed())
        await until_at(dsn, 1)
        await append(store, claimed(), context=replace(CLIENT, causation_position=1))
        await eventually(lambda: (1, 2) in looked)
        await append(store, claimed())
        await until_at(dsn, 3)

    assert await positions(dsn) == [1, 2, 3]
    assert tally.attempts == 2


async def test_a_process_without_followers_is_not_woken_by_what_is_appended(
    store: EventStore, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications_module, "LOOK_AGAIN", timedelta(hours=1))
    waiting = Notifications(dsn, hears=[FOLLOWERS])
    async with running(waiting.run()):
        await eventually(lambda: waiting.patience == LISTENED_FOR)
        await append(store, claimed())
        await query(dsn, "INSERT INTO followers (name, position) VALUES ('tally', 1)")
        await query(dsn, "SELECT pg_notify('registrar_follower', 'tally:1')")
        assert await waiting.wait_past("tally", 0, within=timedelta(seconds=20))

        assert not await waiting.wait_past(HEAD, 0, within=timedelta(0))


async def test_a_follower_that_never_hears_anything_looks_all_the_same(store: EventStore, dsn: str) -> None:
    async with running(following(Tally(), store, Notifications(dsn), dsn)):
        await append(store, claimed())
        await until_at(dsn, 1)
        await append(store, claimed())
        await until_at(dsn, 2)


async def test_what_was_read_while_a_failover_was_told_is_read_anew(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(store, claimed())
    tail, read, reads = LogTail(store), store.read, count()

    async def read_as_it_is_told(*arguments: Any) -> Any:
        found = await read(*arguments)
        if next(reads) == 0:
            tail.forget()
        return found

    monkeypatch.setattr(store, "read", read_as_it_is_told)

    rows, seen = await tail.read(0, 10)

    assert ([row.position for row in rows], seen, next(reads)) == ([1], 1, 2)


async def test_followers_that_look_at_once_for_more_share_a_look(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(store, claimed())
    tail, read, reads = LogTail(store), store.read, count()
    await tail.read(0, 10)

    async def read_as_before(*arguments: Any) -> Any:
        next(reads)
        return await read(*arguments)

    monkeypatch.setattr(store, "read", read_as_before)

    found = await asyncio.gather(*(tail.read(1, 10) for _ in range(9)))

    # One had begun before the others came, and may have missed what they are to see.
    assert (found, next(reads)) == ([([], 1)] * 9, 2)


@pytest.mark.parametrize("lost_first", [True, False])
async def test_what_was_read_before_a_failover_is_not_taken_for_what_the_log_holds_since(
    store: EventStore, lost_first: bool
) -> None:
    await append(store, claimed())
    tail = LogTail(store)
    [row], _ = await tail.read(0, 10)
    lost = row._replace(stream_id=uuid4())  # held this position before, and is decoded only now
    tail.forget()
    [row], _ = await tail.read(0, 10)

    for one in (lost, row, lost) if lost_first else (row, lost, row):
        assert tail.decode(one).event.originator_id == one.stream_id
    assert tail.decode(row) is tail.decode(row)  # decoded once for all followers


async def test_a_follower_whose_announcements_are_cut_off_catches_up_and_they_come_back(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    async with running(following(Tally(), store, notifications, dsn)):
        await append(store, claimed())
        await until_at(dsn, 1)
        await end(dsn, "registrar listen")
        await append(store, claimed())
        await until_at(dsn, 2)

        # The line is made again, and carries.
        await eventually(lambda: query(dsn, SESSION, "registrar listen"))
        hearing = asyncio.create_task(notifications.wait_past(HEAD, 2, within=timedelta(seconds=30)))
        await append(store, claimed())
        assert await hearing
        await until_at(dsn, 3)


async def test_what_was_announced_while_nobody_listened_is_known_afterwards(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    await end(dsn, "registrar listen")
    await append(store, happened(), moved=Checkpoint("saga", 0, 7))

    assert await notifications.wait_past(HEAD, 0, within=timedelta(seconds=30))
    assert await notifications.wait_past("saga", 6, within=timedelta(seconds=30))


async def test_an_append_wakes_everybody_who_waits_for_it_at_once(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    waiting = [asyncio.create_task(notifications.wait_past(HEAD, 0, within=timedelta(seconds=30))) for _ in range(5)]
    patient = asyncio.create_task(notifications.wait_past(HEAD, 1, within=timedelta(seconds=30)))
    gone, *others = waiting
    await asyncio.sleep(0)
    gone.cancel()
    await append(store, happened())

    assert [*await asyncio.gather(*others)] == [True] * 4
    assert not patient.done()
    await append(store, happened())
    assert await patient


async def test_a_followers_progress_is_announced_to_other_processes(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    other_process = Notifications(dsn)
    async with running(following(Tally(), store, other_process, dsn, announced=True)):
        await append(store, claimed())
        assert await notifications.wait_past("tally", 0, within=timedelta(seconds=30))


async def test_what_nobody_announces_is_found_by_looking(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    await append(store, claimed(), claimed(), moved=Checkpoint("tally", 0, 1))
    assert await notifications.wait_past(HEAD, 1, within=timedelta(seconds=30))
    await query(dsn, "SELECT move_on('tally', 1, 2, false)")

    assert await notifications.wait_past("tally", 1, within=timedelta(seconds=30))


async def test_what_is_announced_while_the_listening_session_asks_something_is_heard_at_once(
    store: EventStore, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.postgres.notifications.LOOK_AGAIN", timedelta(hours=1))

    async def announce(connection: Connection) -> None:
        await connection.execute("SELECT pg_notify('registrar_follower', 'tally:7')")

    notifications = Notifications(dsn, watches=[Watch("registrar_tally", announce)])
    async with running(notifications.run()):
        assert await notifications.wait_past("tally", 6, within=timedelta(seconds=30))


async def test_nobody_waits_longer_than_told(notifications: Notifications) -> None:
    assert not await notifications.wait_past(HEAD, 99, within=timedelta(seconds=0.05))
    assert not await notifications.wait_past(HEAD, 99, within=timedelta(0))


async def test_a_read_model_whose_table_is_missing_parks_nothing_and_goes_on_once_it_is_there(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    await append(store, claimed(), claimed())
    await query(dsn, "ALTER TABLE read_tally.seen RENAME TO elsewhere")
    tally = Tally()
    async with running(following(tally, store, notifications, dsn)):
        await eventually(lambda: tally.attempts >= 2)
        assert await parked(dsn) == []
        await query(dsn, "ALTER TABLE read_tally.elsewhere RENAME TO seen")
        await until_at(dsn, 2)

    assert await positions(dsn) == [1, 2]


async def test_what_was_parked_is_applied_in_order_once_it_can_be(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    stream_id = uuid4()
    await append(store, claimed(stream_id))
    tally = Tally()
    tally.fails = lambda _: True
    async with running(following(tally, store, notifications, dsn)):
        await until_at(dsn, 1)
        await append(store, claimed(stream_id, version=2))
        await until_at(dsn, 2)
    assert [position for _, position, _ in await parked(dsn)] == [1, 2]

    mended = Tally()
    async with running(following(mended, store, notifications, dsn)):

        async def nothing_is_parked() -> bool:
            return await parked(dsn) == []

        await eventually(nothing_is_parked)
        await append(store, claimed())
        await until_at(dsn, 3)

    assert await positions(dsn) == [1, 2, 3]


@pytest.mark.parametrize("payload", ["not a number", "", "\u0667", "9" * 20, "9" * 5000])
async def test_an_announcement_that_is_no_position_does_not_cost_the_connection(
    store: EventStore, notifications: Notifications, dsn: str, payload: str
) -> None:
    [(listening,)] = await query(dsn, SESSION, "registrar listen")
    await query(dsn, "SELECT pg_notify('registrar_log', %s)", payload)
    await append(store, claimed())

    assert await notifications.wait_past(HEAD, 0, within=timedelta(seconds=30))
    assert await query(dsn, SESSION, "registrar listen") == [(listening,)]
    assert not await notifications.wait_past(HEAD, 1, within=timedelta(0))


@pytest.mark.parametrize(
    ("channel", "payload", "who"),
    [
        pytest.param("registrar_log", str(2**63 - 1), HEAD, id="far beyond the log"),
        pytest.param("registrar_log", "2", HEAD, id="one beyond the log"),
        pytest.param("registrar_follower", "tally:2", "tally", id="beyond a follower"),
        pytest.param("registrar_follower", "nobody:2", "nobody", id="a follower that is none"),
    ],
)
async def test_what_was_announced_and_is_not_so_is_forgotten_and_the_truth_is_heard_again(
    store: EventStore, notifications: Notifications, dsn: str, channel: str, payload: str, who: str
) -> None:
    await append(store, claimed(), moved=Checkpoint("tally", 0, 1))
    await announced(dsn, notifications, channel, payload, who)  # any role of the database may

    await eventually(lambda: not_beyond(notifications, who, 1))
    hearing = asyncio.create_task(notifications.wait_past(HEAD, 1, within=timedelta(seconds=30)))
    await append(store, claimed())
    assert await hearing
    await query(dsn, "SELECT move_on('tally', 1, 2, true)")
    assert await notifications.wait_past("tally", 1, within=timedelta(seconds=30))


async def test_what_this_process_knows_for_itself_is_not_taken_back(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    await announced(dsn, notifications, "registrar_log", "2", HEAD)
    notifications.note_position(HEAD, 3)
    await announced(dsn, notifications, "registrar_follower", "nobody:2", "nobody")
    await eventually(lambda: not_beyond(notifications, "nobody", 0))

    assert await notifications.wait_past(HEAD, 2, within=timedelta(0))


async def test_after_a_reconnect_nobody_goes_by_a_position_that_the_log_does_not_have(
    store: EventStore, notifications: Notifications, dsn: str
) -> None:
    await append(store, claimed())
    notifications.note_position(HEAD, 999_999_999)  # it was so until a failover, or a restore
    await end(dsn, "registrar listen")

    await eventually(lambda: not_beyond(notifications, HEAD, 1))
    assert await notifications.wait_past(HEAD, 0, within=timedelta(seconds=30))


async def announced(dsn: str, notifications: Notifications, channel: str, payload: str, who: str) -> None:
    """Announce a position beyond 1 that is not true. Waited for from before: what is untrue is soon forgotten again."""
    hearing = asyncio.create_task(notifications.wait_past(who, 1, within=timedelta(seconds=30)))
    await query(dsn, "SELECT pg_notify(%s, %s)", channel, payload)
    assert await hearing


async def not_beyond(notifications: Notifications, who: str, position: Position) -> bool:
    return not await notifications.wait_past(who, position, within=timedelta(0))
