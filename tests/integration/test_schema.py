"""What stands in the database: scripts that run once, on what the release before left, beside its processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from entrypoints.bootstrap.database import SCHEMA
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.parameters import Append, parameters_of
from infrastructure.event_store.store import EventStore
from infrastructure.postgres import schema
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.schema import RECORDS_OF_0_1_0, Outdated, Script, WrongSchema, bring_up_to_date, check
from tests.support.facts import CLIENT, REGISTRATION
from tests.support.log import append, broken_blocks, happened, locked, log_of, placed, query, until_waiting_for_a_lock
from tests.support.releases import FORMER_SCRIPTS, make_as_former

CALLED_BEFORE = ("append_batch", "fate_of_batch", "move_follower", "move_on")
"""What processes of release 0.1.0 call by name."""

_numbers = count(1)

ADDS_A_COLUMN = Script("log", 2, "ALTER TABLE public.events ADD COLUMN note text")


@pytest.fixture
def former(empty: str) -> str:
    """A database of release 0.1.0."""
    with psycopg.connect(empty, autocommit=True) as connection:
        make_as_former(connection)
    return empty


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[Connection]:
    async with await _connect(dsn) as connection:
        yield connection


async def _connect(dsn: str) -> Connection:
    return await connect(dsn, name="setup", statement_timeout=timedelta(seconds=10))


async def start(dsn: str, *scripts: Script) -> None:
    """What every process does at its start."""
    async with await _connect(dsn) as connection:
        await bring_up_to_date(connection, (*SCHEMA, *scripts))


async def functions(dsn: str) -> dict[str, str]:
    """The definition and the row version of every function of ours."""
    rows = await query(
        dsn,
        "SELECT proname::text, pg_get_functiondef(oid) || xmin FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
    )
    return dict(rows)


async def shape(dsn: str) -> dict[str, list[tuple[Any, ...]]]:
    """Columns, indexes, triggers and functions, without those that release 0.1.0 calls."""
    return {
        "columns": await query(
            dsn,
            "SELECT table_schema, table_name, column_name, data_type, is_nullable, column_default"
            " FROM information_schema.columns WHERE table_schema = 'public' OR table_schema LIKE 'read%%'"
            " ORDER BY 1, 2, 3",
        ),
        "indexes": await query(
            dsn, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' OR schemaname LIKE 'read%%' ORDER BY 1"
        ),
        "triggers": await query(dsn, "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"),
        "functions": await query(
            dsn,
            # Release 0.1.0 named its own without their schema, and broke their lines elsewhere.
            "SELECT regexp_replace(replace(pg_get_functiondef(oid), 'public.', ''), '\\s+', ' ', 'g') FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace AND proname <> ALL (%s) ORDER BY proname",
            [*CALLED_BEFORE, "lost_appends"],
        ),
        "scripts": await query(dsn, "SELECT name, digest, needs FROM schema_scripts ORDER BY name"),
    }


async def append_as_former(dsn: str) -> None:
    """Record an event and move a follower by way of the functions that release 0.1.0 calls."""
    event = happened()
    parameters = parameters_of(uuid4(), [Append([(event, CLIENT)])])
    async with await _connect(dsn) as connection:
        cursor = connection.cursor(binary=True)
        call = f"SELECT first_position, lost FROM append_batch({', '.join(['%b'] * len(parameters))})"
        await cursor.execute(call.encode(), parameters)
        row = await cursor.fetchone()
        assert row is not None
        assert await log_of(dsn) == [(row[0], event.originator_id, 1)]
        assert row[1] == []
        cursor = await connection.execute(
            "SELECT fate_of_batch(%s), fate_of_batch(%s), move_follower('one', 0, 1, now())", (parameters[0], uuid4())
        )
        assert await cursor.fetchone() == (True, False, True)
        await connection.execute("SELECT move_on('one', 1, 2, true)")
        with pytest.raises(psycopg.Error, match="not at 1 any more"):
            await connection.execute("SELECT move_on('one', 1, 2, true)")


# --- From the release before --------------------------------------------------------------------


def test_the_frozen_scripts_are_those_whose_digests_release_0_1_0_looks_for() -> None:
    assert {name: Script(name, 1, text).digest for name, text in FORMER_SCRIPTS.items()} == RECORDS_OF_0_1_0


async def test_a_database_of_the_release_before_keeps_what_it_has_and_what_its_processes_call(former: str) -> None:
    await append_as_former(former)
    recorded, called = await log_of(former), await functions(former)

    await start(former)

    assert await log_of(former) == recorded
    now = await functions(former)
    assert {name: now[name] for name in called} == called
    digests = dict(await query(former, "SELECT name, digest FROM schema_scripts"))
    assert {name: digests[name] for name in RECORDS_OF_0_1_0} == RECORDS_OF_0_1_0
    store = EventStore(former, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    assert await append(store, happened()) == 2
    await store.close()
    async with await psycopg.AsyncConnection.connect(former) as connection:
        assert await broken_blocks(connection) == []


async def test_a_new_database_and_one_of_the_release_before_become_the_same(former: str, dsn: str) -> None:
    await start(former)

    assert await shape(former) == await shape(dsn)


async def test_the_release_before_finds_in_a_new_database_what_it_calls_and_nothing_to_run(dsn: str) -> None:
    await append_as_former(dsn)

    digests = dict(await query(dsn, "SELECT name, digest FROM schema_scripts"))
    assert {name: digests[name] for name in RECORDS_OF_0_1_0} == RECORDS_OF_0_1_0


async def test_a_database_of_the_release_before_is_not_ready_to_be_looked_at(former: str) -> None:
    async with await _connect(former) as connection:
        with pytest.raises(Outdated, match=r"earlier release .* start the service"):
            await check(connection, SCHEMA)


async def test_a_database_without_anything_of_ours_is_not_ready_to_be_looked_at(empty: str) -> None:
    async with await _connect(empty) as connection:
        with pytest.raises(Outdated, match="start the service first"):
            await check(connection, SCHEMA)
    assert await query(empty, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


# --- While others work --------------------------------------------------------------------------

GET_A_COLUMN = (
    *("public.alerts", "public.parked_events", "public.send_claims"),
    *("read_deadlines.deadlines", "read_mail.mails"),
)
"""Tables of release 0.1.0 that cannot be changed beside a transaction that uses them; only followers and mail workers
write there."""


GET_A_GUARD = ("public.blocks", "public.events")
"""Their triggers are made to fire always, once, for which PostgreSQL knows no weaker lock. Appends take
milliseconds."""


async def in_use(dsn: str) -> str:
    """Locks what transactions of the release before have locked at one time or another: the end of the log, and every
    other table for writing. What a script does beside that keeps nobody waiting either."""
    tables = await query(
        dsn,
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
        " WHERE schemaname = 'public' OR schemaname LIKE 'read%'",
    )
    used = {name for (name,) in tables} - set(GET_A_COLUMN) - set(GET_A_GUARD) - {"public.schema_scripts"}
    return f"LOCK TABLE {', '.join(sorted(used))} IN ROW EXCLUSIVE MODE; UPDATE head SET hash = hash"


async def test_the_release_before_is_changed_without_waiting_for_anybody_who_writes(
    former: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MAX_LOCK_WAIT", timedelta(0))
    async with locked(former, await in_use(former)):
        await start(former)


async def test_a_process_starts_while_a_script_takes_its_time(dsn: str) -> None:
    slow = Script("log", 2, "SET LOCAL lock_timeout = 0; LOCK TABLE public.fenced_batches")
    async with locked(dsn, "SELECT FROM fenced_batches"):
        running = asyncio.create_task(start(dsn, slow))
        await until_waiting_for_a_lock(dsn, "registrar setup")
        await start(dsn)
        async with await _connect(dsn) as connection:
            await check(connection, SCHEMA)
        assert not running.done()
    await running


async def test_a_process_that_needs_the_script_which_another_runs_waits_for_it(dsn: str) -> None:
    slow = Script("log", 2, "SET LOCAL lock_timeout = 0; LOCK TABLE public.fenced_batches")
    async with locked(dsn, "SELECT FROM fenced_batches"):
        both = [asyncio.create_task(start(dsn, slow)) for _ in range(2)]
        await until_waiting_for_a_lock(dsn, "registrar setup")
    await asyncio.gather(*both)


async def test_mails_are_read_and_written_while_the_old_ones_are_settled(former: str) -> None:
    *before, _ = [script for script in SCHEMA if script.owner == "read_mail"]
    async with await _connect(former) as connection:

        async def fail(registration: UUID, serial: int) -> None:
            await connection.execute(
                "INSERT INTO read_mail.mails (registration_id, serial, created_position, position, kind, state,"
                " requested_at, waiting_since, requests, failures) VALUES (%s, %s, %s, 1, 'code', 'FAILED', now(), now(), 1, 1)",
                (registration, serial, serial),
            )

        await bring_up_to_date(connection, before)
        await fail(REGISTRATION, 1)
        await fail(REGISTRATION, 2)
        async with locked(former, "SELECT FROM read_mail.mails WHERE serial = 1 FOR UPDATE"):
            settling = asyncio.create_task(start(former))
            await until_waiting_for_a_lock(former, "registrar setup")
            await fail(uuid4(), 3)
            assert not settling.done()
        await settling

    mails = await query(former, "SELECT serial, settled FROM read_mail.mails ORDER BY serial")
    assert mails == [(1, True), (2, False), (3, False)]


async def test_the_old_mails_are_settled_however_long_it_takes(former: str) -> None:
    *before, settle = [script for script in SCHEMA if script.owner == "read_mail"]
    limits = "SELECT current_setting('statement_timeout'), current_setting('transaction_timeout', true)"
    async with await _connect(former) as connection:
        await bring_up_to_date(connection, before)
        limited = await (await connection.execute(limits.encode())).fetchone()
        async with connection.transaction():
            await connection.execute("SET LOCAL search_path = read_mail, public")
            await connection.execute(settle.text.encode())
            unlimited = await (await connection.execute(limits.encode())).fetchone()
        assert await (await connection.execute(limits.encode())).fetchone() == limited
    assert limited is not None
    assert unlimited == tuple(None if limit is None else "0" for limit in limited)
    assert "0" not in limited


async def test_nothing_recorded_can_be_changed_even_by_a_session_in_which_triggers_do_not_fire(former: str) -> None:
    await append_as_former(former)
    recorded = await log_of(former)
    await start(former)
    for change in ("UPDATE events SET actor = ''", "DELETE FROM blocks", "TRUNCATE events", "DELETE FROM events"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="what was recorded stays"):
            await query(former, f"SET session_replication_role = replica; {change}")
    assert await log_of(former) == recorded


# --- What else is there ---------------------------------------------------------------------------


async def test_a_log_in_another_schema_is_told_and_no_second_one_is_made(former: str) -> None:
    await query(former, "ALTER SCHEMA public RENAME TO registrar; CREATE SCHEMA public")
    for look in (bring_up_to_date, check):
        async with await _connect(former) as connection:
            with pytest.raises(WrongSchema, match='schema "registrar"'):
                await look(connection, SCHEMA)
    assert await query(former, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []


@pytest.mark.parametrize("table", ["events", "followers", "head", "schema_scripts"])
async def test_a_table_of_somebody_else_is_told_and_nothing_is_made_beside_it(empty: str, table: str) -> None:
    await query(empty, f"CREATE TABLE public.{table} (id bigint)")
    for look in (bring_up_to_date, check):
        async with await _connect(empty) as connection:
            with pytest.raises(WrongSchema, match=f"{table} is in this database, and Registrar has not made it"):
                await look(connection, SCHEMA)
    assert await query(empty, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == [(table,)]


async def test_a_new_database_has_to_be_in_utf8(administration: psycopg.Connection, empty: str) -> None:
    name = f"latin_{next(_numbers)}"
    administration.execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'".encode()
    )
    with pytest.raises(WrongSchema, match=r"is in LATIN1, .* ENCODING 'UTF8'"):
        await start(make_conninfo(empty, dbname=name))
    administration.execute(f"DROP DATABASE {name}".encode())


async def test_a_schema_named_like_the_role_changes_nothing(dsn: str) -> None:
    await query(dsn, "CREATE SCHEMA registrar")
    before = await shape(dsn)
    await start(dsn)
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    event = happened()
    await append(store, event)
    await store.close()
    assert await log_of(dsn) == placed(event)
    assert await shape(dsn) == before
    assert await query(dsn, "SELECT 1 FROM pg_tables WHERE schemaname = 'registrar'") == []


async def test_a_server_that_is_too_old_is_told(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "OLDEST_SERVER", 990000)
    with pytest.raises(WrongSchema, match="needs 14 or newer"):
        await start(dsn)


# --- Every start --------------------------------------------------------------------------------


async def test_a_script_runs_once(dsn: str) -> None:
    before = await functions(dsn)

    await start(dsn)
    await start(dsn, ADDS_A_COLUMN)
    await start(dsn, ADDS_A_COLUMN)  # a second column of this name would be refused

    assert await functions(dsn) == before


async def test_any_number_of_processes_may_start_on_a_new_database(empty: str) -> None:
    await asyncio.gather(*(start(empty, ADDS_A_COLUMN) for _ in range(8)))

    names = [name for (name,) in await query(empty, "SELECT name FROM schema_scripts WHERE name LIKE '%%/%%'")]
    assert sorted(names) == sorted(script.name for script in (*SCHEMA, ADDS_A_COLUMN))


async def test_a_script_that_fails_leaves_nothing_and_is_run_again_at_the_next_start(dsn: str) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await start(dsn, replace(ADDS_A_COLUMN, text=f"{ADDS_A_COLUMN.text}; SELECT 1 / 0"))

    await start(dsn, ADDS_A_COLUMN)


async def test_a_script_that_waits_for_a_long_transaction_holds_up_nobody(dsn: str) -> None:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    events = []
    async with locked(dsn, "SELECT FROM events"):
        starting = asyncio.create_task(start(dsn, ADDS_A_COLUMN))
        for _ in range(2):  # two tries
            await until_waiting_for_a_lock(dsn, "registrar setup")
            for _ in range(5):
                events.append(happened())
                await append(store, events[-1])
        assert not starting.done()
    await starting
    await store.close()

    assert await log_of(dsn) == placed(*events)


async def test_a_start_that_waits_too_long_says_what_for(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_LOCK_WAIT", timedelta(0))
    async with locked(dsn, "SELECT FROM events"):
        with pytest.raises(WrongSchema, match=r"log/2 .* long transaction"):
            await start(dsn, ADDS_A_COLUMN)


async def test_starting_while_others_write_disturbs_nobody(former: str) -> None:
    await start(former)
    store = EventStore(former, codec=EventCodec(), clock=DatabaseClock())
    await store.open()

    async def write() -> None:
        for _ in range(30):
            await append(store, happened())

    await asyncio.gather(write(), *(start(former, ADDS_A_COLUMN) for _ in range(3)), write())
    assert await store.head() == 60
    await store.close()


async def test_a_role_that_may_not_make_tables_says_so(dsn: str) -> None:
    role = f"writer_{next(_numbers)}"
    await query(dsn, f"CREATE ROLE {role}")
    await query(dsn, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    async with await _connect(dsn) as connection:
        await connection.execute(f"SET ROLE {role}".encode())
        await bring_up_to_date(connection, SCHEMA)  # there is nothing to do
        with pytest.raises(WrongSchema, match="may not run the script log/2"):
            await bring_up_to_date(connection, (*SCHEMA, ADDS_A_COLUMN))
    await query(dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_standby_is_told_from_a_primary(dsn: str) -> None:
    async with await connect(dsn, name="setup", statement_timeout=timedelta(seconds=10), read_only=True) as connection:
        await bring_up_to_date(connection, SCHEMA)
        with pytest.raises(WrongSchema, match="read-only"):
            await bring_up_to_date(connection, (*SCHEMA, ADDS_A_COLUMN))


# --- Beside a later release ---------------------------------------------------------------------


async def test_a_release_goes_on_with_what_a_later_one_only_added_and_replaces_nothing(dsn: str) -> None:
    await start(dsn, ADDS_A_COLUMN, Script("newcomer", 1, "CREATE TABLE public.newcomer ()", needs=1))
    before = await functions(dsn)

    await start(dsn)

    async with await _connect(dsn) as connection:
        await check(connection, SCHEMA)
    assert await functions(dsn) == before


async def test_a_release_that_cannot_work_with_what_a_later_one_took_away_says_so(dsn: str) -> None:
    await start(dsn, ADDS_A_COLUMN, Script("log", 3, "DROP FUNCTION public.append_batch", needs=2))
    before = await functions(dsn)

    with pytest.raises(WrongSchema, match=r"later release .* \(log/3\)"):
        await start(dsn)
    async with await _connect(dsn) as connection:
        with pytest.raises(WrongSchema, match=r"later release .* \(log/3\)"):
            await check(connection, SCHEMA)
    assert await functions(dsn) == before
    await start(dsn, ADDS_A_COLUMN)  # a release that knows the second may go on


async def test_a_script_of_another_build_is_not_replaced(dsn: str) -> None:
    await query(dsn, "UPDATE schema_scripts SET digest = 'another' WHERE name = 'read_mail/1'")

    with pytest.raises(WrongSchema, match=r"different script read_mail/1 on this database; run the build that did"):
        await start(dsn)


# --- Names --------------------------------------------------------------------------------------


async def test_a_search_path_that_begins_elsewhere_leads_nobody_astray(empty: str) -> None:
    await query(empty, "CREATE SCHEMA elsewhere")
    for table in ("events", "head", "followers", "schema_scripts", "personal_keys"):
        await query(empty, f"CREATE TABLE elsewhere.{table} (nothing integer)")
    database = conninfo_to_dict(empty)["dbname"]
    await query(empty, f"ALTER DATABASE {database} SET search_path = elsewhere, public")

    await start(empty)
    await start(empty)
    store = EventStore(empty, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    await append(store, happened())
    await store.close()

    assert await query(empty, "SELECT position FROM public.head") == [(1,)]
    # An operator's own session, which begins elsewhere, recomputes the chain all the same.
    assert len(await query(empty, "SELECT public.event_digest(e) FROM public.events AS e")) == 1
    made = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'elsewhere'::regnamespace"
    assert await query(empty, made) == [(0,)]
