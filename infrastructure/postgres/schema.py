"""The database schema, created and changed by numbered scripts: each runs once, and none is ever reverted.

Processes of two releases share a database while one replaces the other. So a script only adds, or removes what the
previous release no longer uses; and a release that finds the scripts of a later one changes nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from hashlib import sha256

import psycopg
import structlog
from psycopg import sql

from infrastructure.postgres.addresses import first_line
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.cutting import cut_after

log = structlog.get_logger(__name__)

PUBLIC = "public"

LOCK_TIMEOUT = timedelta(milliseconds=500)
"""How long a script waits for a lock. Other statements on the same table queue behind it, and give up after a
second (`session.Terms`)."""

RETRY_PAUSE = timedelta(seconds=1)
"""Between two attempts at a script: the statements that queued behind it go first."""

MAX_LOCK_WAIT = timedelta(minutes=2)
"""How long others may hold a lock before the start fails."""

RECORDS_OF_0_1_0 = {
    "event store": "1841b673b5320503fbf266aefe39455f43487acd8b766cb5e0d9f8ff72705447",
    "read_registrations": "7969c418d90d1b1d72f4a215387020c3bfce9804fbda18de6f6bcc47e9cc9fe1",
    "read_accounts": "8d0babaaa6d123a4067ce5736de26398583471ebad435e2f831c706b2d857c94",
    "read_mail": "9dac3c145534128e3c46320f93108ee336ee87fcf0760b9aca567165cd4c2595",
    "read_funnel": "536d0db1a02266daeca088797db1d50345752d90161a035eade54c4fa3de6ed5",
    "read_audit": "57890c2f18a15997642492ab6fc1dba1eb9964888208cb8043836058bbced68e",
    "read_deadlines": "df02ea5870014cd8ccc711a8fbe81e8416ae3b301a9cac1b842ff0afb8bc6558",
}
"""What release 0.1.0 records of its scripts, and without which it runs them again: recorded here as well, so that 0.1.0
can work with a database created by this release. Kept for one release."""


OLDEST_SERVER = 140000
"""PostgreSQL 14, the first with CREATE OR REPLACE TRIGGER, which our schema uses."""

CONFIRM_WITHIN = timedelta(seconds=10)
"""How long a commit may take. No timeout of the server's ends the wait for a synchronous standby."""

_IN_UTF8 = "make one in UTF8 (CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8') for Registrar."
_LOG = {"events", "head", "blocks"}
_TABLE_OF_PUBLIC = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?public\.(\w+)")


class WrongSchema(Exception):
    """The schema is not the one that this release works with; the message is one line that says what to do."""


class Outdated(WrongSchema):
    """Scripts of this release have not been run yet; starting its service runs them."""


class NothingThere(Outdated):
    """None of our scripts has been run here."""


@dataclass(frozen=True, slots=True)
class Script:
    """A step in the schema of an owner. Once released it never changes.

    Attributes:
        owner: whose tables and functions these are: "log", "read_mail".
        number: 1, 2, 3, … The first one only creates what is missing: it also runs on a database of release 0.1.0.
        text: the SQL, run in one transaction.
        needs: the lowest script number of this owner that a process must know to work with a database in which this
            script has run.
        schema: where unqualified names are created; created if missing.
    """

    owner: str
    number: int
    text: str
    needs: int = 1
    schema: str = PUBLIC

    @property
    def name(self) -> str:
        return f"{self.owner}/{self.number}"

    @property
    def digest(self) -> str:
        return sha256(self.text.encode()).hexdigest()


def numbered(owner: str, texts: Iterable[str], *, schema: str = PUBLIC) -> tuple[Script, ...]:
    """An owner's scripts in order, with which every release can work."""
    return tuple(Script(owner, number, text, schema=schema) for number, text in enumerate(texts, start=1))


def check_server(connection: Connection) -> None:
    """
    Raises:
        WrongSchema: the server is too old; or the database takes any bytes for text: it cannot turn what we write into
            JSON, nor tell its letters.
    """
    if connection.info.server_version < OLDEST_SERVER:
        raise WrongSchema(
            f"This server is PostgreSQL {connection.info.server_version // 10000}; Registrar needs 14 or newer."
        )
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise WrongSchema(f"This database is in SQL_ASCII, which knows no letters beyond ASCII; {_IN_UTF8}")


async def check_ground(connection: Connection, scripts: Sequence[Script]) -> None:
    """For a database in which none of our scripts has been run.

    Raises:
        WrongSchema: it is not in UTF8, and so would lack letters some day; there is a log in another schema than that
            which we look in, and a second, empty one would hide it; or something that we have not made has the name of
            a table of ours.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise WrongSchema(f"This database is in {encoding}, which does not know all letters; {_IN_UTF8}")
    names = sorted({name for script in scripts for name in _TABLE_OF_PUBLIC.findall(script.text)})
    cursor = await connection.execute(
        "SELECT n.nspname::text, array_agg(c.relname::text ORDER BY c.relname)"
        " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relkind = ANY ('{r,p,v,m,f}') AND n.nspname !~ '^pg_' AND c.relname = ANY (%s) GROUP BY 1",
        (names,),
    )
    for where, found in await cursor.fetchall():
        if where == PUBLIC:
            raise WrongSchema(
                f"public.{found[0]} is in this database, and Registrar has not made it; "
                "give Registrar a database of its own (CREATE DATABASE)."
            )
        if set(found) >= _LOG:
            raise WrongSchema(
                f'A log of Registrar is in the schema "{where}" of this database, where this release does not look: '
                "move all that is Registrar's to public (ALTER TABLE … SET SCHEMA public), or use another database."
            )


async def check(connection: Connection, scripts: Sequence[Script]) -> None:
    """Return if the database has what these scripts create; changes nothing.

    Raises:
        Outdated: some scripts have not been run.
        WrongSchema: a later release has changed the database, and this one cannot work with it; or the database is in
            SQL_ASCII; or what is there is not ours.
    """
    check_server(connection)
    recorded = await _recorded(connection)
    missing = _missing(recorded, scripts)
    if missing and not recorded:
        await check_ground(connection, scripts)
        raise NothingThere(
            "This database does not contain Registrar's tables; start the service first (`registrar up`, or `serve`)."
        )
    if missing:
        raise Outdated(
            "An earlier release of Registrar created this database; start the service of this release first, which "
            f"updates it ({', '.join(script.name for script in missing)})."
        )


async def bring_up_to_date(connection: Connection, scripts: Sequence[Script]) -> None:
    """Run, in order, the scripts that have not been run on this database.

    Any number of processes may do this at the same time, while others are working. A process that starts locks no table
    when there is nothing to do.

    Raises:
        WrongSchema: a later release has changed the database, and this one cannot work with it; others hold a lock for
            `MAX_LOCK_WAIT`; a commit is not confirmed within `CONFIRM_WITHIN`; this role may not create tables; the
            database is in SQL_ASCII; or what is there is not ours.
    """
    check_server(connection)
    recorded = await _recorded(connection)
    missing = _missing(recorded, scripts)
    if missing and not recorded:
        await check_ground(connection, scripts)
    if missing:
        await _retry_while_locked(connection, "schema_scripts", partial(_create_records, connection))
    for script in missing:
        await _retry_while_locked(connection, script.name, partial(_run_once, connection, script))
    if missing:  # also check what others have run meanwhile
        _missing(await _recorded(connection), scripts)


async def _retry_while_locked(connection: Connection, name: str, run: Callable[[], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + MAX_LOCK_WAIT.total_seconds()
    warned = False
    while True:
        try:
            await run()
            return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if loop.time() >= deadline:
                raise WrongSchema(
                    f"The script {name} waits for a lock that others hold; "
                    "look for a long transaction in pg_stat_activity, then start again."
                ) from None
        except (psycopg.OperationalError, psycopg.ProgrammingError, psycopg.errors.ReadOnlySqlTransaction) as error:
            raise _obstacle(connection, name, error) from None
        if not warned:
            log.warning(
                "schema.waits", script=name, hint="it needs a lock; is there a long transaction in pg_stat_activity?"
            )
        warned = True
        await asyncio.sleep(RETRY_PAUSE.total_seconds())


def _obstacle(connection: Connection, name: str, error: psycopg.Error) -> Exception:
    """What is in the way of a script, in one line; any other error as it is."""
    match error:
        case psycopg.errors.InsufficientPrivilege():
            return WrongSchema(
                f"This role may not run the script {name}; first start a process whose role owns Registrar's tables, "
                "or let this one make them (GRANT CREATE ON DATABASE … and ON SCHEMA public)."
            )
        case psycopg.errors.ReadOnlySqlTransaction():
            return WrongSchema(
                f"The database is read-only, and the script {name} has not been run yet; "
                "point REGISTRAR_DATABASE_URL at the primary."
            )
        case psycopg.ProgrammingError():
            return WrongSchema(
                f"The script {name} does not fit what is in this database ({first_line(error)}); "
                "give Registrar a database of its own (CREATE DATABASE), or restore what was changed."
            )
        case _ if connection.closed:
            return WrongSchema(
                f"The script {name} gets no answer ({type(error).__name__}); does the server wait for a synchronous "
                "standby that is away (synchronous_standby_names)?"
            )
    return error


async def _create_records(connection: Connection) -> None:
    """Create the table of what has been run. Not part of a script: processes that start meanwhile read it, however
    long a script takes."""
    async with _transaction(connection):
        await _lock_schema(connection)
        cursor = await connection.execute(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass('public.schema_scripts')"
        )
        columns = {name for (name,) in await cursor.fetchall()}
        if not columns:
            await connection.execute(
                "CREATE TABLE public.schema_scripts (name text PRIMARY KEY, digest text NOT NULL, needs integer)"
            )
        elif "needs" not in columns:  # created by release 0.1.0
            await connection.execute("ALTER TABLE public.schema_scripts ADD COLUMN needs integer")


async def _lock_schema(connection: Connection) -> None:
    await connection.execute(
        "SELECT set_config('lock_timeout', %s, true)", (f"{LOCK_TIMEOUT / timedelta(milliseconds=1):.0f}ms",)
    )
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('registrar schema'))")


@asynccontextmanager
async def _transaction(connection: Connection) -> AsyncIterator[None]:
    """One that takes as long as it takes, but for its COMMIT: `CONFIRM_WITHIN`."""
    with ExitStack() as committing:
        async with connection.transaction():
            yield
            committing.enter_context(cut_after(CONFIRM_WITHIN, connection))


async def _run_once(connection: Connection, script: Script) -> None:
    async with _transaction(connection):
        await _lock_schema(connection)
        recorded = await _recorded(connection)
        if script.name in recorded:
            return
        former_name = "event store" if script.owner == "log" else script.owner
        # Has release 0.1.0 run the same text?
        has_run = former_name in recorded and recorded[former_name].digest == script.digest
        await connection.execute(
            "INSERT INTO public.schema_scripts (name, digest, needs) VALUES (%s, %s, %s)",
            (script.name, script.digest, script.needs),
        )
        if former_name in RECORDS_OF_0_1_0:
            await connection.execute(
                "INSERT INTO public.schema_scripts (name, digest) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (former_name, RECORDS_OF_0_1_0[former_name]),
            )
        if not has_run:
            await execute(connection, script)  # last, so that its locks are not held for another round trip


async def execute(connection: Connection, script: Script) -> None:
    """Run a script where its tables belong, within the caller's transaction, and record nothing."""
    if script.schema != PUBLIC:
        await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(script.schema)))
        await connection.execute(sql.SQL("SET LOCAL search_path = {}, public").format(sql.Identifier(script.schema)))
    await connection.execute(script.text.encode())


@dataclass(frozen=True, slots=True)
class _Run:
    """A script that has been run, by this or another release."""

    digest: str
    needs: int


async def _recorded(connection: Connection) -> Mapping[str, _Run]:
    """What has been run, by name, including what release 0.1.0 recorded."""
    row = await (await connection.execute("SELECT to_regclass('public.schema_scripts') IS NULL")).fetchone()
    if row is None or row[0]:
        return {}
    try:
        return await _runs(connection)
    except psycopg.errors.UndefinedColumn:
        raise WrongSchema(
            "public.schema_scripts is in this database, and Registrar has not made it; "
            "give Registrar a database of its own (CREATE DATABASE)."
        ) from None


async def _runs(connection: Connection) -> Mapping[str, _Run]:
    # (As JSON: in a database of release 0.1.0 the column is not there yet.)
    cursor = await connection.execute(
        "SELECT s.name, s.digest, (to_jsonb(s) ->> 'needs')::integer FROM public.schema_scripts AS s"
    )
    return {name: _Run(digest, needs or 0) for name, digest, needs in await cursor.fetchall()}


def _missing(recorded: Mapping[str, _Run], scripts: Collection[Script]) -> list[Script]:
    """The scripts that have not been run.

    Raises:
        WrongSchema: what has been run differs from what this release would run, or is too new for it to work with.
    """
    known = {script.owner: script.number for script in scripts}
    for name, run in recorded.items():
        owner, _, _ = name.rpartition("/")
        if run.needs > known.get(owner, run.needs):
            raise WrongSchema(
                f"A later release of Registrar has changed this database ({name}), "
                "and this one can no longer work with it; run the later one."
            )
    for script in scripts:
        if script.name in recorded and recorded[script.name].digest != script.digest:
            raise WrongSchema(
                f"Another build of Registrar has run a different script {script.name} on this database; "
                "run the build that did (docs/upgrading.md, Builds between releases)."
            )
    return [script for script in scripts if script.name not in recorded]
