"""Rebuilds of read models on real PostgreSQL: folded beside the live one, compared with it, swapped, taken up,
undone."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from application.crash_points import armed
from application.ports import Unavailable, entries_of
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection
from infrastructure.replay import sessions
from infrastructure.replay.claim import claimed
from infrastructure.replay.comparison import MASKED, ROW
from infrastructure.replay.progress import Doing
from infrastructure.replay.rebuild import RebuildAct, Rebuilds, Rebuilt
from infrastructure.replay.sessions import replaying
from infrastructure.replay.swap import CannotReplay
from projections import PROJECTIONS
from projections.accounts import Accounts
from projections.audit import Audit
from projections.funnel import Funnel
from projections.mail import Mails
from projections.registrations import Registrations
from tests.faults.armed import at
from tests.support.facts import CLIENT, REGISTRATION, MovableClock, email_verified, eventually, registered, stream
from tests.support.log import locked
from tests.support.read_models import contents, follow, follow_all, indexes, recorded_history, rows

REGISTRATIONS = 60


class Operator:
    """Rebuilds, and keeps what was to be recorded and to be seen."""

    def __init__(self, dsn: str, store: EventStore) -> None:
        self.dsn = dsn
        self.store = store
        self.acts: list[RebuildAct] = []
        self.seen: list[Doing] = []

    async def _record(self, act: RebuildAct) -> None:
        self.acts.append(act)

    def __call__(self, **options: Any) -> Rebuilds:
        return Rebuilds(self.dsn, log=self.store, record=self._record, watch=self.seen.append, **options)

    async def rebuild(self, make: Any, **options: Any) -> Rebuilt:
        return await self().rebuild(make, **options)

    def done(self) -> list[str]:
        return [act.act for act in self.acts]


@pytest.fixture
def operator(dsn: str, store: EventStore) -> Operator:
    return Operator(dsn, store)


@pytest.fixture
async def live(store: EventStore, connection: Connection) -> None:
    """A log, and every read model at its end."""
    await recorded_history(store, registrations=REGISTRATIONS)
    await follow_all(store, connection)


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("make", PROJECTIONS, ids=lambda make: make.name)
async def test_a_rebuilt_read_model_has_the_rows_and_indexes_of_the_live_one_and_takes_its_place(
    connection: Connection, operator: Operator, make: Any
) -> None:
    schema = make().schema
    before = (await contents(connection, schema), await indexes(connection, schema))
    [(was,)] = await rows(connection, "SELECT %s::regnamespace::oid", schema)

    rebuilt = await operator.rebuild(make)

    assert (rebuilt.swapped, rebuilt.resumed, rebuilt.differences.kept) == (True, False, [])
    assert rebuilt.differences.rows == sum(len(found) for found in before[0].values()) > 0
    assert (await contents(connection, schema), await indexes(connection, schema)) == before
    assert await rows(connection, "SELECT %s::regnamespace::oid", f"{schema}__old") == [(was,)]
    assert await rows(connection, "SELECT to_regnamespace(%s)", f"{schema}__next") == [(None,)]
    assert operator.done() == ["begun", "swapped"]
    assert operator.acts[-1].decision == "equal"


@pytest.mark.usefixtures("live")
async def test_what_differs_is_named_and_nothing_is_swapped_until_it_is_accepted(
    connection: Connection, operator: Operator
) -> None:
    [(one, two)] = await rows(
        connection,
        "SELECT (array_agg(registration_id ORDER BY registration_id))[1], "
        "(array_agg(registration_id ORDER BY registration_id))[2] FROM read_registrations.progress",
    )
    right = await contents(connection, "read_registrations")
    await connection.execute(
        "UPDATE read_registrations.progress SET rejections = 99 WHERE registration_id = %s", (one,)
    )
    await connection.execute(
        "UPDATE read_registrations.registrations SET sealed = 'x' WHERE registration_id = %s", (one,)
    )
    await connection.execute("DELETE FROM read_registrations.progress WHERE registration_id = %s", (two,))
    wrong = await contents(connection, "read_registrations")

    found = await operator.rebuild(Registrations)

    [(position,)] = await rows(connection, "SELECT position FROM head")
    assert not found.swapped
    assert [(one.table, one.row, one.column, one.live) for one in found.differences.kept] == [
        ("progress", f"registration_id={one}", "rejections", 99),
        ("progress", f"registration_id={two}", ROW, "missing"),
        ("registrations", f"registration_id={one}", "sealed", MASKED),
    ]
    assert {one.position for one in found.differences.kept} == {position}
    assert "x" not in {one.live for one in found.differences.kept}
    assert await contents(connection, "read_registrations") == wrong

    accepted = await operator.rebuild(Registrations, accept=True)

    assert (accepted.swapped, accepted.resumed, accepted.differences.count) == (True, True, 3)
    assert await contents(connection, "read_registrations") == right
    assert await contents(connection, "read_registrations__old") == wrong
    assert operator.acts[-1].decision == "accepted"


@pytest.mark.usefixtures("live")
async def test_a_live_read_model_that_was_wrong_is_repaired(connection: Connection, operator: Operator) -> None:
    right = await contents(connection, "read_funnel")
    await connection.execute("UPDATE read_funnel.stages SET count = count + 1")

    rebuilt = await operator.rebuild(Funnel, repair=True)

    assert rebuilt.swapped
    assert {one.column for one in rebuilt.differences.kept} == {"count"}
    assert await contents(connection, "read_funnel") == right
    assert operator.acts[-1].decision == "repaired"


class Moody(Funnel):
    """Its fold depends on how many events come together."""

    async def apply(self, connection: Any, events: Any) -> None:
        await super().apply(connection, events)
        await connection.execute("UPDATE stages SET count = count + %s", (len(events) % 7,))


@pytest.mark.usefixtures("live")
async def test_a_fold_that_does_not_repeat_itself_repairs_nothing(
    connection: Connection, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.replay.rebuild.SMALL_BATCH", 50)
    before = await contents(connection, "read_funnel")

    rebuilt = await operator.rebuild(Moody, repair=True)

    assert not rebuilt.swapped
    assert await contents(connection, "read_funnel") == before


# --- Taken up, ended, undone --------------------------------------------------------------------


@pytest.mark.usefixtures("live")
async def test_a_rebuild_goes_on_where_it_was(operator: Operator, connection: Connection) -> None:
    class Killed(Exception):
        pass

    def watch(doing: Doing) -> None:
        if doing.reached and doing.reached >= doing.upto // 2:
            raise Killed

    with pytest.raises(Killed):
        await Rebuilds(operator.dsn, log=operator.store, record=operator._record, watch=watch, throttle=1200).rebuild(
            Audit
        )
    [(reached,)] = await rows(connection, "SELECT position FROM followers WHERE name = 'audit__next'")

    rebuilt = await operator.rebuild(Audit)

    assert (rebuilt.swapped, rebuilt.resumed) == (True, True)
    assert reached > 0
    assert operator.done() == ["begun", "begun", "swapped"]
    assert len({act.rebuild_id for act in operator.acts}) == 1


@pytest.mark.usefixtures("live")
async def test_a_copy_that_other_code_began_is_begun_anew(operator: Operator, connection: Connection) -> None:
    await connection.execute("UPDATE read_accounts.accounts SET locale = 'xx'")
    assert not (await operator.rebuild(Accounts)).swapped
    await connection.execute("UPDATE rebuilds SET fold = 'that of another release'")

    rebuilt = await operator.rebuild(Accounts, accept=True)

    assert (rebuilt.swapped, rebuilt.resumed) == (True, False)
    assert operator.done() == ["begun", "aborted", "begun", "swapped"]


@pytest.mark.usefixtures("live")
async def test_two_at_a_time_are_refused_in_one_line(operator: Operator) -> None:
    async with claimed(operator.dsn, name="rebuild mail"):
        with pytest.raises(CannotReplay, match="Another rebuild or verification is under way") as refused:
            async with claimed(operator.dsn, name="rebuild audit", patience=timedelta(0)):
                pass

    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("live")
async def test_an_aborted_rebuild_leaves_nothing_behind_and_the_live_one_as_it_was(
    operator: Operator, connection: Connection
) -> None:
    await connection.execute("UPDATE read_mail.mails SET attempts = 7")
    before = await contents(connection, "read_mail")
    assert not (await operator.rebuild(Mails)).swapped

    assert await operator().abort(Mails)

    assert await contents(connection, "read_mail") == before
    assert await rows(connection, "SELECT nspname FROM pg_namespace WHERE nspname LIKE '%%\\_\\_%%'") == []
    assert await rows(connection, "SELECT name FROM followers WHERE name LIKE '%%\\_\\_%%'") == []
    assert operator.done() == ["begun", "aborted"]
    assert not await operator().abort(Mails)
    assert operator.done() == ["begun", "aborted"]


@pytest.mark.usefixtures("live")
async def test_a_rebuild_that_runs_elsewhere_is_ended_by_an_abort(operator: Operator, connection: Connection) -> None:
    slow = asyncio.create_task(
        Rebuilds(operator.dsn, log=operator.store, record=operator._record, throttle=4).rebuild(Audit)
    )

    async def under_way() -> bool:
        return bool(await rows(connection, "SELECT FROM followers WHERE name = 'audit__next' AND position > 0"))

    await eventually(under_way)

    assert await operator().abort(Audit)

    with pytest.raises(CannotReplay, match=r"ended it \(AdminShutdown\)"):
        await slow
    assert await rows(connection, "SELECT to_regnamespace('read_audit__next')") == [(None,)]


@pytest.mark.usefixtures("live")
async def test_a_rolled_back_read_model_has_caught_up_with_what_happened_meanwhile(
    operator: Operator, connection: Connection, store: EventStore
) -> None:
    before = await contents(connection, "read_registrations")
    await connection.execute("UPDATE read_registrations.progress SET rejections = 99")
    await operator.rebuild(Registrations, accept=True)
    await store.append(entries_of(stream(REGISTRATION, registered()), CLIENT))
    await follow(store, connection, Registrations())

    position = await operator().roll_back(Registrations)

    after = await contents(connection, "read_registrations")
    assert position == await store.head()
    assert len(after["progress"]) == len(before["progress"]) + 1
    assert sum('"rejections": 99' in row for row in after["progress"]) == len(before["progress"])
    assert operator.done() == ["begun", "swapped", "rolled-back"]
    assert len({act.rebuild_id for act in operator.acts}) == 1
    with pytest.raises(CannotReplay, match="no earlier copy"):
        await operator().roll_back(Registrations)


@pytest.mark.usefixtures("live")
async def test_a_rollback_after_a_rebuild_that_was_aborted_is_that_of_the_one_before(
    operator: Operator, connection: Connection
) -> None:
    await operator.rebuild(Accounts)
    await connection.execute("UPDATE read_accounts.accounts SET locale = 'xx'")
    assert not (await operator.rebuild(Accounts)).swapped
    await operator().abort(Accounts)

    await operator().roll_back(Accounts)

    acts = [(act.act, act.rebuild_id == operator.acts[0].rebuild_id) for act in operator.acts]
    assert acts == [
        ("begun", True), ("swapped", True), ("begun", False), ("aborted", False), ("rolled-back", True)
    ]  # fmt: skip


@pytest.mark.usefixtures("live")
async def test_whatever_catches_up_keeps_to_the_limit_and_tells_how_far_it_is(
    operator: Operator, connection: Connection, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that waits for a decision, and the former tables."""
    monkeypatch.setattr("infrastructure.replay.rebuild.NEAR", 50)
    await connection.execute("UPDATE read_audit.entries SET topic = 'xx' WHERE position = 1")
    assert not (await operator.rebuild(Audit)).swapped
    since = await store.head()
    for expected in ("swapped", "rolled-back"):
        events = [event for _ in range(120) for event in stream(uuid4(), registered(), email_verified())]
        upto = await store.append(entries_of(events, CLIENT))
        await follow(store, connection, Audit())
        operator.seen.clear()

        if expected == "swapped":
            assert (await operator(throttle=800).rebuild(Audit, accept=True)).resumed
        else:
            await operator(throttle=800).roll_back(Audit)

        assert operator.done()[-1] == expected
        reached = [doing.reached for doing in operator.seen if doing.what == "filling" and doing.reached > since]
        assert len(reached) > 1
        assert max(later - earlier for earlier, later in pairwise([since, *reached])) <= 200
        assert upto - reached[-1] <= 50
        since = upto


class Longer:
    """A limit that is a millisecond longer each time."""

    def __init__(self) -> None:
        self.asked = 0

    def total_seconds(self) -> float:
        self.asked += 1
        return self.asked / 1000


@pytest.mark.usefixtures("live")
async def test_a_swap_that_holds_readers_up_for_too_long_is_undone_wherever_it_is_and_made_again(
    operator: Operator, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await contents(connection, "read_registrations")
    limit = Longer()
    monkeypatch.setattr("infrastructure.replay.swap.LONGEST_HOLD", limit)
    monkeypatch.setattr("infrastructure.replay.swap.PAUSE", timedelta(0))

    rebuilt = await operator.rebuild(Registrations)

    assert rebuilt.swapped
    assert limit.asked > 2
    assert await contents(connection, "read_registrations") == before
    assert operator.done() == ["begun", "swapped"]


@pytest.mark.usefixtures("live")
async def test_the_copy_before_the_last_is_dropped(operator: Operator, connection: Connection) -> None:
    for _ in range(3):
        assert (await operator.rebuild(Accounts)).swapped

    found = await rows(
        connection, "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'read_accounts%%' ORDER BY 1"
    )
    assert found == [("read_accounts",), ("read_accounts__old",)]


# --- What has become of it, whatever ends the command -----------------------------------------------


@pytest.mark.usefixtures("live")
async def test_a_swap_is_recorded_though_somebody_reads_the_copy_before_the_last(
    operator: Operator, connection: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "LONGEST_WAIT", timedelta(seconds=1))  # for whoever reads, in vain
    gone = "SELECT to_regnamespace('read_accounts__gone') IS NOT NULL"
    await operator.rebuild(Accounts)
    async with locked(dsn, "SET idle_in_transaction_session_timeout = 0") as reader:
        await reader.execute("SELECT FROM read_accounts__old.accounts")

        assert (await operator.rebuild(Accounts)).swapped

        assert operator.done() == ["begun", "swapped"] * 2
        assert await rows(connection, gone) == [(True,)]
        assert not (await rows(connection, "SELECT FROM rebuilds WHERE NOT recorded"))

    rebuilt = await operator.rebuild(Accounts)

    assert (rebuilt.swapped, rebuilt.resumed) == (True, False)
    assert await rows(connection, gone) == [(False,)]


@pytest.mark.usefixtures("live")
async def test_a_command_whose_session_ends_after_the_swap_says_that_it_was_swapped(
    operator: Operator, connection: Connection, dsn: str
) -> None:
    def end() -> None:
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE application_name LIKE 'registrar rebuild accounts' AND datname = current_database()"
            )

    [(was,)] = await rows(connection, "SELECT 'read_accounts'::regnamespace::oid")
    for act, says in (
        (operator.rebuild, "accounts has been swapped; `registrar projections rebuild accounts` records that"),
        (operator().roll_back, "accounts has been rolled back; `registrar projections rebuild accounts --rollback`"),
    ):
        with armed(at("rebuild.after_swap", 1, end)), pytest.raises(CannotReplay, match=says):
            await act(Accounts)
        [(serves,)] = await rows(connection, "SELECT 'read_accounts'::regnamespace::oid")
        await act(Accounts)
        assert await rows(connection, "SELECT 'read_accounts'::regnamespace::oid") == [(serves,)]

    assert serves == was
    assert operator.done() == ["begun", "swapped", "rolled-back"]


# --- Events that cannot be applied ----------------------------------------------------------------


async def test_a_stream_that_cannot_be_folded_is_parked_with_the_copy_and_the_others_go_on(
    store: EventStore, connection: Connection, operator: Operator
) -> None:
    await recorded_history(store, registrations=10)
    await store.append(entries_of(stream(REGISTRATION, registered(), email_verified()), CLIENT))
    await follow_all(store, connection)

    class Picky(Registrations):
        async def apply(self, connection: Any, events: Any) -> None:
            if any(event.event.originator_id == REGISTRATION for event in events):
                raise LookupError("never heard of it")
            await super().apply(connection, events)

    rebuilt = await operator.rebuild(Picky, accept=True)

    assert rebuilt.swapped
    assert {one.row for one in rebuilt.differences.kept} == {f"registration_id={REGISTRATION}"}
    head = await store.head()
    parked = await rows(connection, "SELECT follower, position, error FROM parked_events ORDER BY position")
    assert parked == [("registrations", head - 1, "LookupError"), ("registrations", head, "stream is parked")]
    [(code,), (behind,)] = await rows(connection, "SELECT code FROM parked_events ORDER BY position")
    assert "infrastructure/replay/copies.py" in code
    assert behind is None


async def test_what_the_live_one_had_parked_is_not_told_to_it_again_after_the_swap(
    store: EventStore, connection: Connection, operator: Operator
) -> None:
    await recorded_history(store, registrations=10)
    await follow_all(store, connection)
    await store.append(entries_of(stream(REGISTRATION, registered()), CLIENT))
    await connection.execute(
        "INSERT INTO parked_events (follower, stream_id, position, error) SELECT 'registrations', %s, position, 'LookupError'"
        " FROM head",
        (REGISTRATION,),
    )
    await connection.execute("UPDATE followers SET position = (SELECT position FROM head)")

    rebuilt = await operator.rebuild(Registrations, repair=True)

    assert rebuilt.swapped
    assert {one.column for one in rebuilt.differences.kept} == {ROW}
    assert await rows(connection, "SELECT follower FROM parked_events") == [("registrations__old",)]


# --- No side effects ------------------------------------------------------------------------------


@pytest.mark.usefixtures("live")
async def test_the_database_refuses_an_event_from_a_session_that_replays(dsn: str, clock: MovableClock) -> None:
    async with replaying(dsn, name="test") as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="this session replays"):
            await connection.execute("INSERT INTO events SELECT * FROM events LIMIT 1")

    store = EventStore(f"{dsn}&options=-c%20registrar.replays%3Don", codec=EventCodec(), clock=clock)
    await store.open()
    with pytest.raises(Unavailable):
        await store.append(entries_of(stream(REGISTRATION, registered()), CLIENT))
    await store.close()
