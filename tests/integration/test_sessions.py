"""Our sessions read what the server sends, whatever else it was told to send, and outlive the server's own timeouts."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout

from application.ports import Unavailable
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import UnreadableLog
from infrastructure.event_store.store import EventStore
from infrastructure.followers import leadership
from infrastructure.followers.leadership import lead
from infrastructure.postgres import addresses, notifications, session
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection, ReconnectingConnection, connect, pipeline
from infrastructure.postgres.notifications import Notifications
from infrastructure.postgres.pool import QueryPool
from infrastructure.postgres.session import Terms, UnfitSession
from tests.support.facts import eventually
from tests.support.http import ADMIN, open_api, problem_of
from tests.support.interruptions import interrupt, nothing_left_behind, wait_as_under_load
from tests.support.log import append, happened, locked, log_of, placed, query

OF_A_DATABASE = {
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Kolkata",
    "bytea_output": "escape",
    "client_encoding": "SQL_ASCII",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
}
OF_THE_ENVIRONMENT = {
    "PGCLIENTENCODING": "SQL_ASCII",
    "PGDATESTYLE": "German",
    "PGOPTIONS": "-c intervalstyle=iso_8601",
    "PGTZ": "Asia/Kolkata",
}


@pytest.fixture(params=["its database", "its environment", "both"])
async def told_otherwise(request: pytest.FixtureRequest, empty: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database whose sessions are told to send what they send in other forms than we read."""
    if request.param != "its environment":
        name = conninfo_to_dict(empty)["dbname"]
        for setting, value in OF_A_DATABASE.items():
            await query(empty, f"ALTER DATABASE {name} SET {setting} = '{value}'")
    if request.param != "its database":
        for setting, value in OF_THE_ENVIRONMENT.items():
            monkeypatch.setenv(setting, value)
    return empty


async def test_a_session_that_is_to_plan_once_never_plans_for_its_parameters(dsn: str) -> None:
    line = ReconnectingConnection(dsn, name="test", statement_timeout=timedelta(seconds=5), plan_once=True)
    looked_up = "SELECT e.topic FROM unnest(%s::uuid[]) AS u (id) JOIN events AS e ON e.originator_id = u.id"

    async def plans(connection: Connection) -> tuple[object, ...] | None:
        for _ in range(20):
            await connection.execute(looked_up, ([uuid4()],))
        cursor = await connection.execute(
            "SELECT generic_plans > 0, custom_plans FROM pg_prepared_statements WHERE statement LIKE 'SELECT e.topic%'"
        )
        return await cursor.fetchone()

    assert await line.execute_idempotent(plans) == (True, 0)
    await line.close()


async def test_a_session_that_is_to_plan_once_looks_up_what_was_a_small_table_when_it_was_analysed(dsn: str) -> None:
    line = ReconnectingConnection(dsn, name="test", statement_timeout=timedelta(seconds=5), plan_once=True)
    looked_up = "EXPLAIN SELECT e.topic FROM unnest(%s::uuid[]) AS u (id) JOIN events AS e ON e.originator_id = u.id"
    await query(dsn, "ANALYZE events")  # it is empty

    async def plan(connection: Connection) -> str:
        cursor = await connection.execute(looked_up, ([uuid4()],))
        return " ".join(str(row[0]) for row in await cursor.fetchall())

    found = await line.execute_idempotent(plan)
    assert "Index" in found
    assert "Seq Scan" not in found
    await line.close()


async def a_row(connection: Connection) -> tuple[object, ...] | None:
    cursor = await connection.execute(
        "SELECT timestamptz '2026-11-27T12:00:00.123456Z', interval '1 day 2 seconds', 'é', decode('00ff', 'hex'),"
        " 1795780800.123456::double precision, ARRAY[timestamptz '2026-11-27T12:00:00Z'],"
        " current_setting('TimeZone')"
    )
    return await cursor.fetchone()


async def test_a_session_reads_alike_whatever_it_is_told_by(told_otherwise: str) -> None:
    noon = datetime(2026, 11, 27, 12, tzinfo=UTC)
    expected = (
        noon.replace(microsecond=123456), timedelta(days=1, seconds=2), "é", b"\x00\xff", 1795780800.123456, [noon],
        "UTC",
    )  # fmt: skip
    line = ReconnectingConnection(told_otherwise, name="test", statement_timeout=timedelta(seconds=5))
    async with QueryPool(told_otherwise, statement_timeout=timedelta(seconds=5)) as pool:
        assert await pool.ask(a_row) == expected
    assert await line.execute_idempotent(a_row) == expected
    await line.close()


async def test_the_service_starts_and_works_whatever_its_sessions_are_told_by(told_otherwise: str) -> None:
    async with open_api(told_otherwise) as api:
        registration_id = await api.active("ada@example.com", name="Zoë")
        listed = await api.http.get("/v1/admin/registrations", headers=ADMIN)
        assert [one["registration_id"] for one in listed.json()["items"]] == [registration_id]
        for route in ("/v1/admin/mail", "/v1/admin/audit", "/v1/admin/funnel"):
            assert (await api.http.get(route, headers=ADMIN)).status_code == 200, route
        assert (await api.http.get("/health/ready")).status_code == 200


# --- Sessions that are interrupted ---------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
async def test_what_comes_after_an_interrupted_pipeline_is_committed(
    dsn: str, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    await query(dsn, "CREATE TABLE done (number integer)")
    line = ReconnectingConnection(dsn, name="test", statement_timeout=timedelta(seconds=10))
    wait_as_under_load(monkeypatch)

    async def in_a_pipeline(connection: Connection) -> None:
        async with pipeline(connection):
            await connection.execute("SELECT 1")
            await connection.execute("SELECT 2")

    async def after(connection: Connection) -> None:
        await connection.execute("INSERT INTO done VALUES (%s)", (at,))

    with nothing_left_behind(monkeypatch):
        interrupted, at = True, 0
        while interrupted:
            at += 1
            await line.execute(a_row)  # there is a session
            interrupted = await interrupt(line.execute(in_a_pipeline), at=at, times=times)
            await line.execute(after)
            assert await query(dsn, "SELECT max(number) FROM done") == [(at,)]
        await line.close()

    assert at > 5  # it waits around each message


# --- Sessions that the server ends --------------------------------------------------------------

ENDS = {
    "transaction_timeout": "SELECT pg_sleep(30)",
    "idle_in_transaction_session_timeout": "SELECT 1",
}


@pytest.mark.parametrize("timeout", ENDS)
async def test_a_session_that_the_servers_timeout_ends_is_an_outage_and_made_again(dsn: str, timeout: str) -> None:
    line = ReconnectingConnection(dsn, name="test", statement_timeout=timedelta(seconds=10))
    pids = []

    async def take_too_long(connection: Connection) -> None:
        pids.append(connection.info.backend_pid)
        await connection.execute("SELECT set_config(%s, '100ms', false)", (timeout,))
        async with connection.transaction():
            await connection.execute(ENDS[timeout].encode())
            await eventually(lambda: gone(dsn, pids[-1]))
            await connection.execute("SELECT 1")

    with pytest.raises(Unavailable, match="away"):
        await line.execute_idempotent(take_too_long)

    assert len(set(pids)) == 2  # repeated once, in another session
    assert await line.execute_idempotent(a_row) is not None
    await line.close()


async def gone(dsn: str, pid: int) -> bool:
    return not await query(dsn, "SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid)


async def test_an_append_that_the_servers_timeout_ends_is_unavailable_and_the_next_one_is_recorded(
    store: EventStore, dsn: str
) -> None:
    await query(
        dsn,
        "CREATE FUNCTION take_too_long() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "  PERFORM set_config('transaction_timeout', '0', false);"
        "  PERFORM set_config('transaction_timeout', '50ms', false);"
        "  PERFORM pg_sleep(30); RETURN NULL; END $$",
    )
    await query(dsn, "CREATE TRIGGER slow AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION take_too_long()")
    event = happened()

    with pytest.raises(Unavailable) as caught:
        await append(store, event)

    assert isinstance(caught.value.__cause__, psycopg.errors.TransactionTimeout)
    assert await log_of(dsn) == []
    await query(dsn, "DROP TRIGGER slow ON events")
    assert await append(store, event) == 1
    assert await log_of(dsn) == placed(event)


async def test_a_query_that_the_servers_timeout_ends_is_a_503_and_the_next_one_is_answered(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_api(dsn) as api:
        registration_id = await api.registered()
    monkeypatch.setattr(session, "TRANSACTION_STATEMENTS", 0.03)  # 300 ms: the first of the timeouts
    async with open_api(dsn) as api:
        async with locked(dsn, "LOCK TABLE read_registrations.registrations IN ACCESS EXCLUSIVE MODE"):
            for route in (f"/v1/registrations/{registration_id}", "/v1/admin/registrations"):
                answer = await api.http.get(route, headers=ADMIN)
                assert (answer.status_code, problem_of(answer)) == (503, "unavailable"), route
                assert int(answer.headers["retry-after"]) >= 1

        assert (await api.look(registration_id)).status_code == 200


# --- Sessions that cannot be as they have to be ----------------------------------------------------


def as_ever(dsn: str) -> str:
    """For sessions to which what the tests set does not apply."""
    return make_conninfo(dsn, options="-c default_transaction_read_only=off -c role=none -c statement_timeout=0")


async def altered(dsn: str, setting: str) -> None:
    await query(as_ever(dsn), f"ALTER DATABASE {conninfo_to_dict(dsn)['dbname']} {setting}")


def fresh(dsn: str) -> ReconnectingConnection:
    return ReconnectingConnection(dsn, name="test", statement_timeout=timedelta(seconds=5))


async def setting(dsn: str, name: str) -> str:
    async def ask(connection: Connection) -> str:
        row = await (await connection.execute(f"SHOW {name}".encode())).fetchone()
        assert row is not None
        return str(row[0])

    line = fresh(dsn)
    try:
        return await line.execute(ask)
    finally:
        await line.close()


@pytest.mark.parametrize(
    ("asked", "had"),
    [("off", "on"), ("local", "on"), ("remote_write", "on"), ("on", "on"), ("remote_apply", "remote_apply")],
)
async def test_a_commit_is_on_disk_whatever_the_role_asks_for_and_stricter_if_it_does(
    dsn: str, asked: str, had: str
) -> None:
    await altered(dsn, f"SET synchronous_commit = {asked}")
    assert await setting(dsn, "synchronous_commit") == had


async def test_a_query_has_the_time_that_it_is_given_whatever_the_role_asks_for(dsn: str) -> None:
    await altered(dsn, "SET transaction_timeout = '300ms'")

    async def ask(connection: Connection) -> list[tuple[object, ...]]:
        return await (await connection.execute("SHOW transaction_timeout")).fetchall()

    async with QueryPool(dsn, statement_timeout=timedelta(seconds=5)) as pool:
        assert await pool.ask(ask) == [("15s",)]


@pytest.mark.parametrize(
    ("name", "asked", "had"),
    [
        ("array_nulls", "off", "on"),
        ("default_transaction_isolation", "serializable", "read committed"),
        ("idle_in_transaction_session_timeout", "0", "5s"),
        ("idle_session_timeout", "1s", "0"),
        ("lock_timeout", "0", "1s"),
        ("row_security", "on", "off"),
        ("search_path", "pg_catalog", "public"),
        ("statement_timeout", "100", "5s"),
        ("transaction_timeout", "300", "15s"),
    ],
)
async def test_a_session_has_what_we_rest_on_whatever_the_database_asks_for(
    dsn: str, name: str, asked: str, had: str
) -> None:
    await altered(dsn, f"SET {name} = '{asked}'")
    assert await setting(dsn, name) == had


async def test_the_options_of_the_url_stay(dsn: str) -> None:
    url = make_conninfo(dsn, options="-c work_mem=7MB -c lock_timeout=9s")
    assert (await setting(url, "work_mem"), await setting(url, "lock_timeout")) == ("7MB", "1s")


@pytest.mark.parametrize(
    ("asked", "told"),
    [("session_replication_role = replica", "RESET session_replication_role"),
     ("default_transaction_read_only = on", "default_transaction_read_only")],
)  # fmt: skip
async def test_a_session_that_cannot_be_had_is_refused_in_one_line_and_had_again_without_a_restart(
    dsn: str, log: io.StringIO, asked: str, told: str
) -> None:
    line = fresh(dsn)
    await altered(dsn, f"SET {asked}")

    async def refused() -> bool:  # by the server, not because it has just been
        with pytest.raises(Unavailable) as caught:
            await line.execute(a_row)
        return isinstance(caught.value.__cause__, UnfitSession)

    await eventually(refused)
    await eventually(refused)
    (said,) = [one for one in log.getvalue().splitlines() if "database.unfit" in one]
    assert told in said

    await altered(dsn, f"RESET {asked.partition(' ')[0]}")

    async def had() -> bool:
        try:
            return await line.execute(a_row) is not None
        except Unavailable:
            return False

    await eventually(had)
    await line.close()


@pytest.mark.parametrize("name", ["search_path", "statement_timeout"])
async def test_a_session_that_is_not_given_what_it_asks_for_is_refused(dsn: str, name: str) -> None:
    await query(
        dsn,
        # In place of something between us and the server: a server that takes a setting, and does not have it then.
        "CREATE FUNCTION pg_catalog.really_set_config(text, text, boolean) RETURNS text LANGUAGE internal"
        " AS 'set_config_by_name';"
        "CREATE OR REPLACE FUNCTION pg_catalog.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS $$"
        f"  SELECT CASE $1 WHEN '{name}' THEN pg_catalog.current_setting($1)"
        "   ELSE pg_catalog.really_set_config($1, $2, $3) END $$",
    )
    there = (await query(dsn, f"SHOW {name}"))[0][0]
    with pytest.raises(UnfitSession, match=f"is not given {name} = .*, but ") as caught:
        await connect(dsn, name="test", statement_timeout=timedelta(seconds=5))
    assert caught.value.says.endswith(f", but {there}")
    assert caught.value.advice == "look at what lies between us and PostgreSQL"


class Idle:
    """A task of a leader that does nothing."""

    name = "idle"

    async def work(self, session: leadership.LeaderSession) -> None:
        await asyncio.Event().wait()


async def ask_pool(dsn: str) -> None:
    async with QueryPool(dsn, statement_timeout=timedelta(seconds=5)) as pool:
        while True:
            with suppress(PoolTimeout):
                await pool.ask(a_row)
                return


@pytest.mark.parametrize(
    "use",
    [lambda dsn: lead(Idle(), dsn), lambda dsn: Notifications(dsn).run(), ask_pool],
    ids=["lead", "listen", "ask"],
)
async def test_whoever_cannot_have_a_session_says_why_once_until_it_can(
    dsn: str, log: io.StringIO, monkeypatch: pytest.MonkeyPatch, use: Callable[[str], Awaitable[None]]
) -> None:
    monkeypatch.setattr(leadership, "STAND_BY", timedelta(milliseconds=100))
    monkeypatch.setattr(notifications, "LOOK_ANYWAY", timedelta(milliseconds=100))
    outcomes: list[str] = []
    settle = session.settle

    async def watched(connection: Connection, terms: Terms) -> None:
        try:
            await settle(connection, terms)
        except UnfitSession:
            outcomes.append("refused")
            raise
        outcomes.append("had")

    monkeypatch.setattr(addresses, "settle", watched)
    for times in (1, 2):
        outcomes.clear()
        await altered(dsn, "SET session_replication_role = replica")
        task = asyncio.ensure_future(use(dsn))
        await eventually(lambda: outcomes.count("refused") > 2)
        said = [line for line in log.getvalue().splitlines() if "database.unfit" in line]
        assert len(said) == times
        assert "RESET session_replication_role" in said[-1]
        await altered(dsn, "RESET session_replication_role")
        await eventually(lambda: "had" in outcomes)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_service_takes_registrations_again_when_the_database_does(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        assert (await api.register("before@example.com")).status_code == 202
        await altered(dsn, "SET default_transaction_read_only = on")
        await query(dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^registrar '"
                         " AND datname = current_database()")  # fmt: skip

        async def answers(code: int, ready: int) -> bool:
            answer = await api.register("during@example.com")
            return (answer.status_code, (await api.http.get("/health/ready")).status_code) == (code, ready)

        await eventually(lambda: answers(503, 503))
        await altered(dsn, "RESET default_transaction_read_only")
        await eventually(lambda: answers(202, 200))


async def test_a_row_that_a_policy_hides_is_an_error_and_no_event_stepped_over(store: EventStore, dsn: str) -> None:
    await append(store, happened(), happened())
    role = f"reader_{conninfo_to_dict(dsn)['dbname']}"
    await query(dsn, f"CREATE ROLE {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    await query(dsn, "ALTER TABLE events ENABLE ROW LEVEL SECURITY")
    await altered(dsn, f"SET role = {role}")
    other = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        await other.read(0, 10)
    await other.close()
    await query(as_ever(dsn), f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_reader_that_finds_a_gap_fails(store: EventStore, dsn: str) -> None:
    await append(store, happened(), happened(), happened())
    await query(dsn, "ALTER TABLE events DISABLE TRIGGER USER; DELETE FROM events WHERE notification_id = 2")
    with pytest.raises(UnreadableLog, match="between 0 and 3"):
        await store.read(0, 10)
