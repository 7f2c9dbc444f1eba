"""Our sessions read what the server sends, whatever else it was told to send, and outlive the server's own timeouts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from application.ports import Unavailable
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, ReconnectingConnection, pipeline
from infrastructure.postgres.pool import QueryPool
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


async def test_a_query_that_the_servers_timeout_ends_is_a_503_and_the_next_one_is_answered(dsn: str) -> None:
    await query(dsn, f"ALTER DATABASE {conninfo_to_dict(dsn)['dbname']} SET transaction_timeout = '300ms'")
    async with open_api(dsn) as api:
        registration_id = await api.registered()
        async with locked(
            make_conninfo(dsn, options="-c transaction_timeout=0"),
            "LOCK TABLE read_registrations.registrations IN ACCESS EXCLUSIVE MODE",
        ):
            for route in (f"/v1/registrations/{registration_id}", "/v1/admin/registrations"):
                answer = await api.http.get(route, headers=ADMIN)
                assert (answer.status_code, problem_of(answer)) == (503, "unavailable"), route
                assert int(answer.headers["retry-after"]) >= 1

        assert (await api.look(registration_id)).status_code == 200
