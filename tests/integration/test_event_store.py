"""The event store on PostgreSQL: what is recorded together, what is refused, and what the log says afterwards."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.persistence import DatetimeAsISO, JSONTranscoder, Mapper
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg.conninfo import conninfo_to_dict

from application.ports import Checkpoint, Conflict, Context, Overloaded, Unavailable, WrappedKey, entries_of
from domain.email_claim import EmailClaim
from domain.registration import Registration, Status
from infrastructure.event_store.chain import event_digest
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import connect
from tests.support.facts import (
    CLAIM,
    CLIENT,
    REGISTRATION,
    email_claimed,
    email_dispatch_failed,
    email_released,
    eventually,
    mail_requested,
    otp_issued,
    registered,
    saga_started,
    stream,
)
from tests.support.log import (
    append,
    broken_blocks,
    by_way_of,
    happened,
    in_one_batch,
    locked,
    log_of,
    placed,
    proxy_to,
    query,
    until_waiting_for_a_lock,
)
from tests.support.memory_log import log_contract

BLOCKS = "SELECT first_position, last_position FROM blocks ORDER BY last_position"


# --- Recorded whole, in order -----------------------------------------------------------------


async def test_what_was_appended_can_be_loaded_and_read(store: EventStore) -> None:
    events = [*stream(REGISTRATION, registered(), otp_issued()), *stream(CLAIM, email_claimed())]
    assert await store.append(entries_of(events, CLIENT)) == 3

    loaded = await store.load(REGISTRATION, CLAIM)
    registration = loaded.get(Registration, REGISTRATION)
    assert registration
    assert registration.status is Status.PENDING
    assert registration.version == 2
    assert loaded.position(REGISTRATION) == 2
    assert loaded.position(CLAIM) == 3

    rows, seen = await store.read(0, 100)
    assert [store.decode(row).event for row in rows] == events
    assert seen == 3
    assert await store.head() == 3


async def test_a_stream_that_never_was_is_none_at_position_zero(store: EventStore) -> None:
    loaded = await store.load(REGISTRATION)

    assert loaded.get(Registration, REGISTRATION) is None
    assert loaded.position(REGISTRATION) == 0
    assert await store.read(0, 100) == ([], 0)


async def test_a_stream_of_another_kind_is_not_mistaken(store: EventStore) -> None:
    await store.append(entries_of(stream(CLAIM, email_claimed()), CLIENT))

    with pytest.raises(TypeError):
        (await store.load(CLAIM)).get(Registration, CLAIM)


async def test_each_caller_gets_aggregates_of_its_own(store: EventStore) -> None:
    await store.append(entries_of(stream(CLAIM, email_claimed()), CLIENT))

    one, other = await asyncio.gather(store.load(CLAIM), store.load(CLAIM))
    assert one.get(EmailClaim, CLAIM) == other.get(EmailClaim, CLAIM)
    assert one.get(EmailClaim, CLAIM) is not other.get(EmailClaim, CLAIM)


async def test_positions_are_gapless_and_every_append_keeps_together(store: EventStore, dsn: str) -> None:
    other = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    appends = [[happened(stream_id := uuid4()), happened(stream_id, 2), happened()][: 1 + n % 3] for n in range(120)]
    try:
        answers = await asyncio.gather(*(append((store, other)[n % 2], *events) for n, events in enumerate(appends)))
    finally:
        await other.close()

    log = await log_of(dsn)
    assert [position for position, *_ in log] == list(range(1, 1 + sum(map(len, appends))))
    for events, answer in zip(appends, answers, strict=True):
        assert [entry[1:] for entry in log[answer - len(events) : answer]] == [entry[1:] for entry in placed(*events)]


async def test_an_append_of_several_streams_is_all_or_nothing(store: EventStore, dsn: str) -> None:
    there = happened()
    await append(store, there)

    for events in ([happened(), there], [there, happened()], [happened(), there, happened()]):
        with pytest.raises(Conflict):
            await append(store, *events)
    assert await log_of(dsn) == placed(there)


@pytest.mark.parametrize("versions", [(2,), (4, 5), (3, 5), (4, 3)])
async def test_a_version_that_does_not_follow_the_one_before_is_refused(
    store: EventStore, dsn: str, versions: tuple[int, ...]
) -> None:
    stream_id = uuid4()
    there = [happened(stream_id, 1), happened(stream_id, 2)]
    await append(store, *there)

    with pytest.raises(Conflict):
        await append(store, happened(), *(happened(stream_id, version) for version in versions))
    assert await log_of(dsn) == placed(*there)


async def test_a_stream_that_never_was_does_not_begin_in_the_middle(store: EventStore, dsn: str) -> None:
    with pytest.raises(Conflict):
        await append(store, happened(version=2))
    with pytest.raises(Conflict):
        await append(store, one := happened(), one)
    assert await log_of(dsn) == []


async def test_an_append_of_nothing_is_refused(store: EventStore) -> None:
    with pytest.raises(ValueError, match="needs an event"):
        await append(store)


# --- Neighbours in a batch --------------------------------------------------------------------


async def test_appends_that_wait_for_each_other_are_one_block(store: EventStore, dsn: str) -> None:
    answers = await in_one_batch(store, dsn, *(append(store, happened(), happened()) for _ in range(20)))

    assert answers == list(range(3, 43, 2))
    assert await query(dsn, BLOCKS) == [(1, 1), (2, 41)]


async def test_a_conflict_never_fails_its_neighbours(store: EventStore, dsn: str) -> None:
    taken = happened()
    await append(store, taken)
    answers = await in_one_batch(
        store,
        dsn,
        append(store, happened()),
        append(store, happened(), taken),
        append(store, happened()),
        append(store, happened(version=2)),
        append(store, happened()),
    )

    assert [answer if isinstance(answer, int) else type(answer) for answer in answers] == [3, Conflict, 4, Conflict, 5]
    assert await query(dsn, BLOCKS) == [(1, 1), (2, 2), (3, 5)]
    assert len(await log_of(dsn)) == 5


async def test_of_two_in_one_batch_the_earlier_wins(store: EventStore, dsn: str) -> None:
    contested = uuid4()
    answers = await in_one_batch(
        store,
        dsn,
        append(store, happened(contested, state=b"first")),
        append(store, happened(contested, state=b"second"), happened()),
        append(store, happened(contested, state=b"third")),
    )

    assert [type(answer) for answer in answers] == [int, Conflict, Conflict]
    assert await query(dsn, "SELECT state FROM events WHERE originator_id = %s", contested) == [(b"first",)]
    assert len(await log_of(dsn)) == 2


async def test_an_append_that_lost_in_its_batch_takes_nobody_with_it(store: EventStore, dsn: str) -> None:
    a, b, c = happened(), happened(), happened()
    answers = await in_one_batch(store, dsn, append(store, a), append(store, a, b), append(store, b, c))

    assert [type(answer) for answer in answers] == [int, Conflict, int]
    assert [entry[1] for entry in (await log_of(dsn))[1:]] == [a.originator_id, b.originator_id, c.originator_id]


POISON = {
    "a NUL in a text": {"context": Context("nul \0", correlation_id=uuid4())},
    "half a character": {"context": Context("\ud800", correlation_id=uuid4())},
    "a key that is there": {"keys": [WrappedKey(REGISTRATION, b"another")]},
    "a number out of range": {"context": Context("client", correlation_id=uuid4(), causation_position=2**63)},
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
async def test_an_append_that_cannot_be_recorded_fails_alone_and_soon(
    store: EventStore, dsn: str, poison: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.event_store.appender.RESOLVE_WITHIN", timedelta(hours=1))  # not waited for
    there = happened()
    await append(store, there, keys=[WrappedKey(REGISTRATION, b"wrapped")])
    before, after = [happened(), happened()], [happened()]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(
            append(store, *before),
            append(store, happened(), **poison),  # type: ignore[arg-type]
            append(store, *after),
            return_exceptions=True,
        )

    assert [type(answer) for answer in answers[::2]] == [int, int]
    assert isinstance(answers[1], Exception)
    assert not isinstance(answers[1], Conflict | Unavailable)
    assert await log_of(dsn) == placed(there, *before, *after)
    assert await query(dsn, "SELECT wrapped FROM personal_keys") == [(b"wrapped",)]


# --- In the commit of the events --------------------------------------------------------------


async def test_a_key_is_stored_and_destroyed_in_the_commit_of_the_events(store: EventStore, dsn: str) -> None:
    keys = "SELECT registration_id, wrapped FROM personal_keys"
    kept = uuid4()
    await append(store, happened(), keys=[WrappedKey(REGISTRATION, b"wrapped"), WrappedKey(kept, b"other")])
    assert sorted(await query(dsn, keys)) == sorted([(REGISTRATION, b"wrapped"), (kept, b"other")])

    await append(store, happened(), keys=[WrappedKey(REGISTRATION, None)])
    assert await query(dsn, keys) == [(kept, b"other")]


async def test_an_append_that_lost_neither_stores_nor_destroys_a_key(store: EventStore, dsn: str) -> None:
    taken, kept = happened(), uuid4()
    await append(store, taken, keys=[WrappedKey(kept, b"kept")])
    answers = await in_one_batch(
        store,
        dsn,
        append(store, taken, keys=[WrappedKey(REGISTRATION, b"wrapped"), WrappedKey(kept, None)]),
        append(store, happened()),
    )

    assert [type(answer) for answer in answers] == [Conflict, int]
    assert await query(dsn, "SELECT registration_id FROM personal_keys") == [(kept,)]


async def follower(dsn: str, name: str = "saga") -> int | None:
    rows = await query(dsn, "SELECT position FROM followers WHERE name = %s", name)
    return rows[0][0] if rows else None


async def test_a_follower_moves_in_the_commit_of_the_events(store: EventStore, dsn: str) -> None:
    first, second = happened(), happened()
    await append(store, first, moved=Checkpoint("saga", 0, 5))
    await append(store, second, moved=Checkpoint("saga", 5, 6))

    assert await follower(dsn) == 6
    assert await log_of(dsn) == placed(first, second)


async def test_a_follower_that_was_moved_by_somebody_else_records_nothing(store: EventStore, dsn: str) -> None:
    there = happened()
    await append(store, there, moved=Checkpoint("saga", 0, 5))

    for since in (0, 4, 6):
        with pytest.raises(Conflict):
            await append(store, happened(), moved=Checkpoint("saga", since, 7))
    assert await follower(dsn) == 5
    assert await log_of(dsn) == placed(there)


async def test_a_follower_stays_when_its_events_conflict(store: EventStore, dsn: str) -> None:
    taken = happened()
    await append(store, taken, moved=Checkpoint("saga", 0, 5))

    with pytest.raises(Conflict):
        await append(store, taken, moved=Checkpoint("saga", 5, 6))
    assert await follower(dsn) == 5


async def test_a_follower_stays_when_its_events_lose_to_a_neighbour(store: EventStore, dsn: str) -> None:
    contested = happened()
    answers = await in_one_batch(
        store,
        dsn,
        append(store, contested),
        append(store, contested, moved=Checkpoint("saga", 0, 1)),
        append(store, happened(), moved=Checkpoint("saga", 1, 2)),
        append(store, happened(), moved=Checkpoint("other", 0, 1)),
    )

    # The third stood on the second, which was lost.
    assert [type(answer) for answer in answers] == [int, Conflict, Conflict, int]
    assert (await follower(dsn) or 0, await follower(dsn, "other")) == (0, 1)


async def test_of_two_that_move_a_follower_from_the_same_place_the_earlier_wins(store: EventStore, dsn: str) -> None:
    answers = await in_one_batch(
        store,
        dsn,
        append(store, happened(), moved=Checkpoint("saga", 0, 1)),
        append(store, happened(), moved=Checkpoint("saga", 0, 2)),
        append(store, happened(), moved=Checkpoint("saga", 1, 3)),
    )

    assert [type(answer) for answer in answers] == [int, Conflict, int]
    assert await follower(dsn) == 3
    assert len(await log_of(dsn)) == 3


async def test_what_is_written_beside_an_event_is_as_given(store: EventStore, dsn: str) -> None:
    [(before,)] = await query(dsn, "SELECT clock_timestamp()")
    asked = Context("operator", uuid4(), causation_position=7, trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa-01")
    bare = Context("client", uuid4())
    await store.append(list(zip(stream(CLAIM, email_claimed(), email_released()), (asked, bare), strict=True)))
    [(after,)] = await query(dsn, "SELECT clock_timestamp()")

    rows, _ = await store.read(0, 10)
    assert [(row.correlation_id, row.causation_position, row.actor, row.trace) for row in rows] == [
        (context.correlation_id, context.causation_position, context.actor, context.trace) for context in (asked, bare)
    ]
    assert before < rows[0].recorded_at == rows[1].recorded_at < after
    decoded = store.decode(rows[0])
    assert (decoded.position, decoded.topic, decoded.actor) == (1, "email_claim.email_claimed", "operator")
    assert (decoded.correlation_id, decoded.causation_position) == (asked.correlation_id, 7)
    assert (decoded.trace, decoded.recorded_at) == (asked.trace, rows[0].recorded_at)


async def test_every_append_brings_the_databases_time_along(dsn: str) -> None:
    class Told(DatabaseClock):
        times: list[object]

        def set(self, told: object, *, asked_ago: timedelta = timedelta(0)) -> None:
            self.times.append(told)

    clock = Told()
    clock.times = []
    store = EventStore(dsn, codec=EventCodec(), clock=clock)
    try:
        await append(store, happened())
        [(recorded_at,)] = await query(dsn, "SELECT recorded_at FROM events")
        assert clock.times == [recorded_at]
    finally:
        await store.close()


# --- The hash chain, and what is for ever -----------------------------------------------------


async def a_log(store: EventStore, dsn: str) -> None:
    """Blocks of one and of several events, with every column filled and empty, and the marks of a lost append."""
    await append(store, happened(), context=Context("operator", uuid4(), causation_position=0, trace="t"))
    there = happened(state="ü€😀".encode(), topic="tést")
    await in_one_batch(store, dsn, append(store, there, happened()), append(store, there), append(store, happened()))
    await append(store, happened(state=b""), context=Context("ädmin", uuid4(), trace=""))


async def test_the_hash_chain_covers_every_block(store: EventStore, dsn: str) -> None:
    await a_log(store, dsn)

    assert await query(dsn, BLOCKS) == [(1, 1), (2, 2), (3, 5), (6, 6)]
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        assert await broken_blocks(connection) == []


async def test_the_database_makes_the_digests_of_events_that_were_sent_with_them(store: EventStore, dsn: str) -> None:
    await a_log(store, dsn)

    made = await query(dsn, "SELECT event_digest(e) FROM events AS e ORDER BY notification_id")
    rows, _ = await store.read(0, 10)
    assert made == [
        (
            event_digest(
                row.stream_id,
                row.version,
                row.topic,
                row.state,
                row.correlation_id,
                row.causation_position,
                row.actor,
                row.trace,
            ),
        )
        for row in rows
    ]


@pytest.mark.parametrize("position", [1, 4, 6])
async def test_the_hash_chain_shows_any_change(store: EventStore, dsn: str, position: int) -> None:
    await a_log(store, dsn)
    changes = [
        "UPDATE events SET state = state || '\\x00' WHERE notification_id = %s",
        "UPDATE events SET topic = topic || '.' WHERE notification_id = %s",
        "UPDATE events SET actor = 'X' || substr(actor, 2) WHERE notification_id = %s",
        "UPDATE events SET trace_context = nullif(concat(trace_context, 'x'), 'tx') WHERE notification_id = %s",
        "UPDATE events SET causation_position = coalesce(causation_position + 1, 0) WHERE notification_id = %s",
        "UPDATE events SET recorded_at = recorded_at + interval '1 microsecond' WHERE notification_id = %s",
        "UPDATE events SET correlation_id = gen_random_uuid() WHERE notification_id = %s",
        "UPDATE events SET originator_id = gen_random_uuid() WHERE notification_id = %s",
        "UPDATE events SET originator_version = originator_version + 1 WHERE notification_id = %s",
        "UPDATE events SET topic = left(topic, -1), state = right(topic, 1)::bytea || state WHERE notification_id = %s",
        "DELETE FROM events WHERE notification_id = %s",
        "UPDATE blocks SET hash = sha256(hash) WHERE last_position >= %s",
    ]
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        for change in changes:
            await connection.execute("ALTER TABLE events DISABLE TRIGGER USER")  # an owner passes triggers
            await connection.execute("ALTER TABLE blocks DISABLE TRIGGER USER")
            cursor = await connection.execute(change.encode(), (position,))
            assert cursor.rowcount >= 1, change
            assert await broken_blocks(connection), change
            await connection.rollback()
        assert await broken_blocks(connection) == []


@pytest.mark.parametrize("table", ["events", "blocks"])
@pytest.mark.parametrize("change", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {}", "TRUNCATE {} CASCADE"])
async def test_the_database_refuses_to_change_what_was_recorded(
    store: EventStore, dsn: str, table: str, change: str
) -> None:
    await append(store, happened())
    before = await query(dsn, f"SELECT * FROM {table}")
    column = {"events": "state", "blocks": "hash"}[table]

    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="stays"):
        await query(dsn, change.format(table, column, column))
    assert await query(dsn, f"SELECT * FROM {table}") == before


# --- Limits and locks -------------------------------------------------------------------------


async def test_a_full_queue_refuses_and_recovers(dsn: str) -> None:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock(), max_waiting=3)
    await store.open()
    events = [happened() for _ in range(6)]
    try:
        async with locked(dsn):
            under_way = asyncio.create_task(append(store, events[0]))
            await until_waiting_for_a_lock(dsn)
            waiting = [asyncio.create_task(append(store, event)) for event in events[1:4]]
            await eventually(lambda: store.waiting == 3)
            with pytest.raises(Overloaded):
                await append(store, events[4])
        assert await asyncio.gather(under_way, *waiting) == [1, 2, 3, 4]
        assert await append(store, events[5]) == 5
    finally:
        await store.close()
    assert await log_of(dsn) == placed(*events[:4], events[5])


@pytest.mark.fault("B12")
async def test_while_somebody_else_holds_the_log_appends_are_refused_within_the_lock_timeout(
    store: EventStore, dsn: str
) -> None:
    async with locked(dsn), asyncio.timeout(60):  # held all the time
        answers = await asyncio.gather(*(append(store, happened()) for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable] * 3
    assert await log_of(dsn) == []

    event = happened()
    assert await append(store, event) == 1
    assert await log_of(dsn) == placed(event)


@pytest.mark.fault("B11")
async def test_while_the_table_is_locked_everybody_is_refused_in_time_and_nothing_piles_up(
    store: EventStore, dsn: str
) -> None:
    async with locked(dsn, "LOCK TABLE events IN ACCESS EXCLUSIVE MODE"), asyncio.timeout(60):  # held all the time
        answers = await asyncio.gather(
            append(store, happened()), store.load(uuid4()), store.load(uuid4()), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [Unavailable] * 3
    assert await log_of(dsn) == []

    assert await append(store, happened()) == 1
    assert await store.head() == 1


@pytest.mark.fault("B12")
@pytest.mark.slow
async def test_a_session_of_ours_that_idles_on_the_log_is_ended_and_the_others_proceed(
    store: EventStore, dsn: str
) -> None:
    idle = await connect(dsn, name="idle", statement_timeout=timedelta(seconds=10))
    await idle.execute("BEGIN")
    await idle.execute("SELECT FROM head FOR UPDATE")

    async def append_succeeds() -> bool:
        try:
            return await append(store, happened()) > 0
        except Unavailable:
            return False

    await eventually(append_succeeds, within=60)
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
        await idle.execute("SELECT")
    await idle.close()
    assert len(await log_of(dsn)) == 1


async def test_only_what_was_recorded_or_lost_a_race_shows_that_the_log_takes_appends(
    store: EventStore, dsn: str
) -> None:
    taken = happened()
    await append(store, taken)
    assert store.accepts
    with pytest.raises(Conflict):
        await append(store, taken)
    assert store.accepts

    await eventually(lambda: not store.accepts)  # an append shows it for a second
    await query(dsn, "ALTER FUNCTION append_batch_v2 RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await append(store, happened())
    assert not store.accepts


async def test_closing_finishes_what_was_taken_and_refuses_the_rest(dsn: str) -> None:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    events = [happened() for _ in range(3)]
    async with locked(dsn):
        first = asyncio.create_task(append(store, events[0]))
        await until_waiting_for_a_lock(dsn)
        others = [asyncio.create_task(append(store, event)) for event in events[1:]]
        await eventually(lambda: store.waiting == 2)
        closing = asyncio.create_task(store.close())
        late = asyncio.create_task(append(store, happened()))  # tasks begin in this order
        with pytest.raises(Unavailable):
            await late
    await closing

    assert await asyncio.gather(first, *others) == [1, 2, 3]
    assert await log_of(dsn) == placed(*events)


# --- Reading ----------------------------------------------------------------------------------


async def test_a_load_brings_the_claim_and_its_holder(store: EventStore) -> None:
    earlier, holder = uuid4(), uuid4()
    await store.append(
        entries_of(
            [
                *stream(earlier, registered()),
                *stream(CLAIM, email_claimed(earlier), email_released(earlier), email_claimed(holder)),
                *stream(holder, registered(), otp_issued()),
            ],
            CLIENT,
        ),
    )
    loaded = await store.load(holders_of=[CLAIM])

    claim = loaded.get(EmailClaim, CLAIM)
    assert claim
    assert claim.holder == holder
    registration = loaded.get(Registration, holder)
    assert registration
    assert registration.version == 2
    assert loaded.get(Registration, earlier) is None


async def test_a_load_is_one_round_trip_for_any_number_of_callers(store: EventStore, dsn: str) -> None:
    await store.append(entries_of([*stream(CLAIM, email_claimed()), *stream(REGISTRATION, registered())], CLIENT))
    async with proxy_to(dsn) as proxy:
        through = EventStore(by_way_of(proxy, dsn), codec=EventCodec(), clock=DatabaseClock())
        await through.load(REGISTRATION)
        proxy.delay(0)
        loaded = await asyncio.gather(*(through.load(uuid4(), REGISTRATION, holders_of=[CLAIM]) for _ in range(20)))
        await through.close()
        assert proxy.effects["delay"] <= 2 + 1  # the question, the answer, and the good-bye of `close`

    for each in loaded:
        assert each.get(EmailClaim, CLAIM)
        assert each.get(Registration, REGISTRATION)


async def test_reading_goes_on_from_a_position_as_far_as_asked(store: EventStore) -> None:
    events = [happened() for _ in range(5)]
    await append(store, *events)

    rows, seen = await store.read(1, 3)
    assert [row.position for row in rows] == [2, 3, 4]
    assert [row.stream_id for row in rows] == [event.originator_id for event in events[1:4]]
    assert seen == 4
    assert [row.position for row in (await store.read(seen, 3))[0]] == [5]
    assert await store.read(5, 3) == ([], 5)
    assert await store.read(9, 3) == ([], 9)


async def test_reading_some_topics_moves_on_over_the_others(store: EventStore) -> None:
    for topic in ("a", "b", "a", "b", "b", "c"):
        await append(store, happened(topic=topic))

    async def positions(after: int, limit: int, *topics: str) -> tuple[list[int], int]:
        rows, seen = await store.read(after, limit, topics)
        return [row.position for row in rows], seen

    assert await positions(0, 2, "a") == ([1, 3], 3)
    assert await positions(0, 3, "a") == ([1, 3], 6)
    assert await positions(0, 1, "c") == ([], 4)
    assert await positions(0, 2, "b") == ([2, 4], 4)
    assert await positions(3, 100, "a") == ([], 6)
    assert await positions(0, 100, "c", "a") == ([1, 3, 6], 6)
    assert await positions(0, 100) == ([], 6)
    assert await positions(6, 100, "a") == ([], 6)


async def test_the_work_of_an_append_and_a_load_does_not_grow_with_the_log(dsn: str) -> None:
    """The statements are planned while the log is empty; none may come to scan it when it is not."""
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    known, claim = uuid4(), uuid4()
    await store.append(entries_of(stream(claim, email_claimed(known)), CLIENT))
    for version in range(1, 11):
        await append(store, happened(known, version), happened())
        await store.load(known, holders_of=[claim])
    for _ in range(5):
        await append(store, *(happened() for _ in range(1000)))
    for version in range(11, 31):
        await asyncio.gather(append(store, happened(known, version), happened()), append(store, happened()))
        await store.load(uuid4(), holders_of=[claim])
    await store.close()

    async def rows_looked_at() -> int:
        [(looked_at, inserted)] = await query(
            dsn,
            "SELECT seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'events'),"
            " n_tup_ins FROM pg_stat_user_tables WHERE relname = 'events'",
        )
        return int(looked_at) if inserted == 5081 else 0

    # 30 loads of up to 31 events, one look for each stream of an append; a scan alone is 5,000.
    assert await eventually(rows_looked_at) < 2000


# --- The library's own eyes -------------------------------------------------------------------


async def test_a_stock_application_of_the_library_reads_our_log(store: EventStore, dsn: str) -> None:
    saga = uuid4()
    events = [
        *stream(REGISTRATION, registered(), otp_issued(), email_dispatch_failed(reply_code=None, reply_status=None)),
        *stream(CLAIM, email_claimed(), email_released()),
        *stream(saga, saga_started(), mail_requested()),
    ]
    await store.append(entries_of(events, CLIENT))

    to = conninfo_to_dict(dsn)
    transcoder = JSONTranscoder()
    transcoder.register(DatetimeAsISO())
    mapper: Mapper[UUID] = Mapper(transcoder)
    with PostgresDatastore(
        dbname=str(to["dbname"]), host=str(to["host"]), port=str(to["port"]), user=str(to["user"]), password=""
    ) as datastore:
        recorder = PostgresApplicationRecorder(datastore, events_table_name="events")
        assert recorder.max_notification_id() == 7
        notifications = recorder.select_notifications(start=1, limit=100)
        of_a_stream = recorder.select_events(REGISTRATION, desc=True, limit=1)

    assert [notification.id for notification in notifications] == [1, 2, 3, 4, 5, 6, 7]
    assert [mapper.to_domain_event(notification) for notification in notifications] == events
    assert [mapper.to_domain_event(one) for one in of_a_stream] == [events[2]]
    assert [mapper.to_stored_event(event).state for event in events] != [], "the library can write them, too"


async def test_the_store_keeps_the_promises_of_the_port_that_the_tests_fake_keeps(store: EventStore) -> None:
    await log_contract(store)
