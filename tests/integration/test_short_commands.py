"""Short commands on a database: those that look can change nothing, those that act change no table, the doctor
neither."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from entrypoints.api.http_server import _Server as Listening
from entrypoints.bootstrap import background
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from projections import PROJECTIONS
from tests.integration.conftest import Command
from tests.support.facts import CLAIM, CLIENT, REGISTRATION, email_claimed, otp_issued, registered, stream
from tests.support.log import keep_root_secret, query
from tests.support.postgres import database_of
from tests.support.releases import make_as_former

MASTER_KEY = "ab" * 32

LOOKS = [
    ("events", "list"),
    ("events", "export", "/dev/null"),
    ("events", "show", str(REGISTRATION)),
    ("events", "replay", "--dry-run"),
    ("projections", "list"),
    ("projections", "parked", "list"),
    ("mail", "list"),
    ("mail", "list", "--state", "stray"),
    ("mail", "suppressions"),
    ("funnel",),
]
ACTS = [
    ("mail", "retry", str(REGISTRATION)),
    ("mail", "retry", "--all", "--yes"),
    ("mail", "discard", str(REGISTRATION)),
    ("mail", "allow", str(REGISTRATION)),
    ("projections", "parked", "retry", "--all"),
    ("projections", "rebuild", "--all"),
    ("projections", "verify"),
    ("projections", "as-of", "accounts", "1"),
]

_numbers = count(1)


@pytest.fixture
def read_only(dsn: str, administration: psycopg.Connection) -> Iterator[str]:
    """A database with a registration, on which every session is that of a role that may only read, as on a standby."""

    async def fill() -> None:
        await keep_root_secret(dsn, MASTER_KEY)
        store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
        await store.open()
        await store.append(
            [
                (event, CLIENT)
                for event in (*stream(REGISTRATION, registered(), otp_issued()), *stream(CLAIM, email_claimed()))
            ]
        )
        await store.close()

    asyncio.run(fill())
    name, role = conninfo_to_dict(dsn)["dbname"], f"reader_{next(_numbers)}"
    schemas = ", ".join(["public", *(projection().schema for projection in PROJECTIONS)])
    rows(dsn, f"CREATE ROLE {role}")
    rows(dsn, f"GRANT USAGE ON SCHEMA {schemas} TO {role}")
    rows(dsn, f"GRANT SELECT ON ALL TABLES IN SCHEMA {schemas} TO {role}")
    database = sql.Identifier(str(name))
    administration.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(database))
    administration.execute(sql.SQL("ALTER DATABASE {} SET role = {}").format(database, sql.Identifier(role)))
    yield dsn
    administration.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(database))
    rows(dsn, f"DROP OWNED BY {role}")
    rows(dsn, f"DROP ROLE {role}")


@pytest.fixture
def in_sql_ascii(postgres: EmbeddedPostgres, administration: psycopg.Connection) -> Iterator[str]:
    """An empty database that takes any bytes for text, as `initdb` makes them where no locale is set."""
    name = f"ascii_{next(_numbers)}"
    administration.execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'".encode()
    )
    yield database_of(postgres, name)
    administration.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def rows(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    return asyncio.run(query(dsn, statement))


def what_is_there(dsn: str) -> list[tuple[Any, ...]]:
    """Every table, function and script."""
    return rows(
        dsn,
        "SELECT oid::regclass::text, xmin::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " UNION ALL SELECT oid::regprocedure::text, xmin::text FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
    )


@pytest.mark.parametrize("looks", LOOKS, ids=" ".join)
def test_what_looks_needs_no_right_to_write_and_no_secret(
    command: Command, read_only: str, looks: tuple[str, ...]
) -> None:
    done = command(*looks, "--json", DATABASE_URL=read_only)

    assert (done.code, done.err.count("Traceback")) == (0, 0), done.err
    assert done.json is not None


def test_what_looks_cannot_write_even_where_its_role_could(command: Command, dsn: str) -> None:
    rows(
        dsn,
        "CREATE FUNCTION write() RETURNS bigint LANGUAGE sql AS 'INSERT INTO followers VALUES (random()::text)"
        " RETURNING position'",
    )
    rows(dsn, "ALTER TABLE followers RENAME TO hidden")
    rows(dsn, "CREATE VIEW followers AS SELECT name, position + write() AS position, updated_at FROM hidden")
    rows(dsn, "INSERT INTO hidden (name) VALUES ('mail')")

    done = command("projections", "list", DATABASE_URL=dsn)

    assert done.code == 1
    assert rows(dsn, "SELECT name FROM hidden") == [("mail",)]


@pytest.mark.parametrize("short", [*LOOKS, *ACTS], ids=" ".join)
def test_a_database_without_tables_is_said_in_one_line_and_stays_as_it_is(
    command: Command, empty: str, short: tuple[str, ...]
) -> None:
    done = command(*short, DATABASE_URL=empty, MASTER_KEY=MASTER_KEY)

    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert "start the service first" in done.err
    assert what_is_there(empty) == []


@pytest.mark.parametrize("short", [LOOKS[0], ACTS[0]], ids=" ".join)
def test_tables_of_an_earlier_release_are_said_in_one_line_and_stay_as_they_are(
    command: Command, empty: str, short: tuple[str, ...]
) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        make_as_former(connection)
    before = what_is_there(empty)

    done = command(*short, DATABASE_URL=empty, MASTER_KEY=MASTER_KEY)

    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert "earlier release" in done.err
    assert what_is_there(empty) == before


@pytest.mark.parametrize("short", [LOOKS[0], ACTS[0], ("serve",), ("process",)], ids=" ".join)
def test_tables_of_a_later_release_are_said_in_one_line_and_stay_as_they_are(
    command: Command, dsn: str, short: tuple[str, ...]
) -> None:
    rows(dsn, "INSERT INTO schema_scripts (name, digest, needs) VALUES ('log/9', '', 9)")
    before = what_is_there(dsn)

    done = command(*short, DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY, SMTP_URLS="smtp://127.0.0.1:1")

    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert "later release" in done.err
    assert what_is_there(dsn) == before


@pytest.mark.parametrize("short", [LOOKS[0], ACTS[0], ("serve",), ("process",)], ids=" ".join)
def test_a_database_in_sql_ascii_is_refused_in_one_line_that_says_what_to_do(
    command: Command, in_sql_ascii: str, short: tuple[str, ...]
) -> None:
    done = command(*short, DATABASE_URL=in_sql_ascii, MASTER_KEY=MASTER_KEY, SMTP_URLS="smtp://127.0.0.1:1")

    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert "CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'" in done.err
    assert what_is_there(in_sql_ascii) == []


def test_the_doctor_refuses_a_database_in_sql_ascii(command: Command, in_sql_ascii: str) -> None:
    done = command("doctor", "--json", DATABASE_URL=in_sql_ascii, MASTER_KEY=MASTER_KEY)

    (found,) = [one for one in done.json["checks"] if one["check"] == "database"]
    assert found["state"] == "fail"
    assert "in SQL_ASCII" in found["says"]
    assert "CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'" in found["advice"]


def test_nobody_acts_before_a_service_has_run(command: Command, dsn: str) -> None:
    done = command(*ACTS[0], DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "start one first" in done.err
    assert rows(dsn, "SELECT count(*) FROM service_secrets") == [(0,)]


def test_the_doctor_looks_at_a_standby_and_changes_nothing(command: Command, read_only: str) -> None:
    before = what_is_there(read_only)

    done = command("doctor", "--json", DATABASE_URL=read_only, MASTER_KEY=MASTER_KEY)

    found = {one["check"]: one["state"] for one in done.json["checks"]}
    assert {found[one] for one in ("clock", "schema", "master key", "parked streams")} == {"ok"}, done.out
    assert what_is_there(read_only) == before


def test_the_doctor_writes_nothing_where_it_could(command: Command, dsn: str) -> None:
    done = command("doctor", "--json", DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)

    found = {one["check"]: one["says"] for one in done.json["checks"]}
    assert found["master key"] == "not in use yet"
    assert rows(dsn, "SELECT count(*) FROM service_secrets") == [(0,)]


def test_the_doctor_says_whose_tables_these_are(command: Command, empty: str, dsn: str) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        make_as_former(connection)
    rows(dsn, "INSERT INTO schema_scripts (name, digest, needs) VALUES ('log/9', '', 9)")

    earlier, later = (
        {
            one["check"]: one
            for one in command("doctor", "--json", DATABASE_URL=one, MASTER_KEY=MASTER_KEY).json["checks"]
        }["schema"]
        for one in (empty, dsn)
    )

    assert (earlier["state"], later["state"]) == ("warn", "fail")
    assert "earlier release" in earlier["says"]
    assert "later release" in later["says"]


async def raises(_: object) -> None:
    raise NotImplementedError


async def returns(_: object) -> None:
    pass


@pytest.mark.parametrize("ends", [raises, returns])
def test_a_process_whose_background_work_ends_ends_with_an_exit_code(
    command: Command, dsn: str, monkeypatch: pytest.MonkeyPatch, ends: Callable[[object], Awaitable[None]]
) -> None:
    monkeypatch.setattr(background, "_keep_time", ends)

    done = command("process", DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY, SMTP_URLS="smtp://127.0.0.1:1")

    assert done.code == 1
    assert "background.failed" in done.err
    assert "a part of it has ended by itself" in done.err


@pytest.mark.parametrize("ends", [raises, returns])
@pytest.mark.parametrize("which", [0, 1], ids=["operators", "registrants"])
def test_a_process_that_does_not_listen_any_more_ends_with_an_exit_code(
    command: Command,
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    ends: Callable[[object], Awaitable[None]],
    which: int,
) -> None:
    started, listeners, loop = asyncio.Event(), count(), Listening.main_loop

    async def one_ends(server: Listening) -> None:
        if next(listeners) == which:
            await started.wait()
            await ends(server)
        else:
            await loop(server)

    monkeypatch.setattr(Listening, "main_loop", one_ends)
    monkeypatch.setattr("entrypoints.cli.run.keep_what_is_there", started.set)

    done = command("serve", DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY, PORT="0", ADMIN_LISTEN="127.0.0.1:0")

    assert done.code == 1
    assert "background.failed" in done.err
    assert "a part of it has ended by itself" in done.err


def test_a_role_without_rights_is_told_what_to_grant_by_the_start_and_the_doctor(command: Command, empty: str) -> None:
    name, role = conninfo_to_dict(empty)["dbname"], f"nobody_{next(_numbers)}"
    rows(empty, f"CREATE ROLE {role}")
    rows(empty, f"ALTER DATABASE {name} SET role = {role}")

    started = command("process", DATABASE_URL=empty, MASTER_KEY=MASTER_KEY, SMTP_URLS="smtp://127.0.0.1:1")
    looked = command("doctor", "--json", DATABASE_URL=empty, MASTER_KEY=MASTER_KEY)

    assert (started.code, started.err.count("\n")) == (2, 1), started.err
    assert "GRANT CREATE ON DATABASE" in started.err
    (found,) = [one for one in looked.json["checks"] if one["check"] == "schema"]
    assert (found["state"], "GRANT CREATE" in found["advice"]) == ("fail", True)


@pytest.mark.parametrize(
    ("instead_of", "other", "says"),
    [("/test_", "/nowhere_", "CREATE DATABASE"), ("//registrar@", "//nobody@", "REGISTRAR_DATABASE_URL")],
)
def test_who_is_not_let_in_is_told_what_to_do(
    command: Command, dsn: str, instead_of: str, other: str, says: str
) -> None:
    done = command("events", "list", DATABASE_URL=dsn.replace(instead_of, other))

    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert says in done.err
