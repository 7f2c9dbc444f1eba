"""What stands in the database, made and changed by numbered scripts: each runs once, and none is ever taken back.

Processes of two releases share a database while one replaces the other. So a script only adds, or takes away what the
release before does not use any more; and a release that meets the scripts of a later one changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from hashlib import sha256

import psycopg
import structlog
from psycopg import sql

from infrastructure.postgres.connection import Connection

log = structlog.get_logger(__name__)

PUBLIC = "public"

LOCK_TIMEOUT = timedelta(milliseconds=500)
"""How long a script waits for a lock. Whoever wants the same table meanwhile queues behind it, and gives up after a
second (`connection.session`)."""

PAUSE = timedelta(seconds=1)
"""Between two tries of a script: the traffic that had queued behind it goes first."""

PATIENCE = timedelta(minutes=2)
"""How long a lock may be held by others before the start is given up."""

NEVER_NUMBERED = {
    "event store": "1841b673b5320503fbf266aefe39455f43487acd8b766cb5e0d9f8ff72705447",
    "read_registrations": "7969c418d90d1b1d72f4a215387020c3bfce9804fbda18de6f6bcc47e9cc9fe1",
    "read_accounts": "8d0babaaa6d123a4067ce5736de26398583471ebad435e2f831c706b2d857c94",
    "read_mail": "9dac3c145534128e3c46320f93108ee336ee87fcf0760b9aca567165cd4c2595",
    "read_funnel": "536d0db1a02266daeca088797db1d50345752d90161a035eade54c4fa3de6ed5",
    "read_audit": "57890c2f18a15997642492ab6fc1dba1eb9964888208cb8043836058bbced68e",
    "read_deadlines": "df02ea5870014cd8ccc711a8fbe81e8416ae3b301a9cac1b842ff0afb8bc6558",
}
"""What release 0.1.0 records of its scripts, and runs them again if it does not find: it finds it, in a database made
by this release, too. One release long."""


class WrongSchema(Exception):
    """One line: the database does not hold what this release works with, and what to do."""


class Outdated(WrongSchema):
    """Scripts of this release have not been run yet, which the start of its service does."""


@dataclass(frozen=True, slots=True)
class Script:
    """A step in what an owner has in the database. Once released it never changes.

    Attributes:
        owner: whose tables and functions these are: "log", "read_mail".
        number: 1, 2, 3, … The first one makes what is missing: it is run on a database of release 0.1.0, too.
        text: SQL, run in one transaction.
        needs: the least number of this owner that a process must know to work on a database that has this script.
        schema: where unqualified names are created; made if missing.
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
    """Scripts of an owner in their order, which everybody can work with."""
    return tuple(Script(owner, number, text, schema=schema) for number, text in enumerate(texts, start=1))


async def check(connection: Connection, scripts: Sequence[Script]) -> None:
    """Change nothing; return if the database holds what these scripts make.

    Raises:
        Outdated: some have not been run.
        WrongSchema: a later release has changed the database, and this one cannot work with it.
    """
    recorded = await _recorded(connection)
    missing = _missing(recorded, scripts)
    if missing and not recorded:
        raise Outdated(
            "There is nothing of Registrar's in this database; start the service first (`registrar up`, or `serve`)."
        )
    if missing:
        raise Outdated(
            "An earlier release of Registrar made this database; start the service of this one first, which changes it "
            f"({', '.join(script.name for script in missing)})."
        )


async def bring_up_to_date(connection: Connection, scripts: Sequence[Script]) -> None:
    """Run, in their order, the scripts that have not been run on this database.

    Any number of processes may do this at once, while others work. A process that starts takes no lock on a table when
    there is nothing to do.

    Raises:
        WrongSchema: a later release has changed the database, and this one cannot work with it; others hold a lock for
            `PATIENCE`; or this role may not make tables.
    """
    missing = _missing(await _recorded(connection), scripts)
    if missing:
        await _when_possible("schema_scripts", partial(_make_records, connection))
    for script in missing:
        await _when_possible(script.name, partial(_run_once, connection, script))
    if missing:  # what was run by others meanwhile is judged, too
        _missing(await _recorded(connection), scripts)


async def _when_possible(name: str, run: Callable[[], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE.total_seconds()
    waits = False
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
        except psycopg.errors.InsufficientPrivilege:
            raise WrongSchema(
                f"This role may not run the script {name}; "
                "start a process first whose role owns what Registrar has in the database."
            ) from None
        except psycopg.errors.ReadOnlySqlTransaction:
            raise WrongSchema(
                f"The database is read-only, and the script {name} is still to be run; "
                "point REGISTRAR_DATABASE_URL at the primary."
            ) from None
        if not waits:
            log.warning(
                "schema.waits", script=name, hint="for a lock; is there a long transaction in pg_stat_activity?"
            )
        waits = True
        await asyncio.sleep(PAUSE.total_seconds())


async def _make_records(connection: Connection) -> None:
    """The table of what has been run. Not part of a script: who starts meanwhile reads it, however long one takes."""
    async with connection.transaction():
        await _take_turns(connection)
        cursor = await connection.execute(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass('public.schema_scripts')"
        )
        columns = {name for (name,) in await cursor.fetchall()}
        if not columns:
            await connection.execute(
                "CREATE TABLE public.schema_scripts (name text PRIMARY KEY, digest text NOT NULL, needs integer)"
            )
        elif "needs" not in columns:  # release 0.1.0 made it
            await connection.execute("ALTER TABLE public.schema_scripts ADD COLUMN needs integer")


async def _take_turns(connection: Connection) -> None:
    await connection.execute(
        "SELECT set_config('lock_timeout', %s, true)", (f"{LOCK_TIMEOUT / timedelta(milliseconds=1):.0f}ms",)
    )
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('registrar schema'))")


async def _run_once(connection: Connection, script: Script) -> None:
    async with connection.transaction():
        await _take_turns(connection)
        recorded = await _recorded(connection)
        if script.name in recorded:
            return
        former = "event store" if script.owner == "log" else script.owner
        has_run = former in recorded and recorded[former].digest == script.digest  # by release 0.1.0, the same text
        await connection.execute(
            "INSERT INTO public.schema_scripts (name, digest, needs) VALUES (%s, %s, %s)",
            (script.name, script.digest, script.needs),
        )
        if former in NEVER_NUMBERED:
            await connection.execute(
                "INSERT INTO public.schema_scripts (name, digest) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (former, NEVER_NUMBERED[former]),
            )
        if not has_run:
            await _execute(connection, script)  # last, so that its locks are held for no further round trip


async def _execute(connection: Connection, script: Script) -> None:
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
    """What has been run, by name; what release 0.1.0 recorded is among it."""
    row = await (await connection.execute("SELECT to_regclass('public.schema_scripts') IS NULL")).fetchone()
    if row is None or row[0]:
        return {}
    # (As JSON: in a database of release 0.1.0 the column is not there yet.)
    cursor = await connection.execute(
        "SELECT s.name, s.digest, (to_jsonb(s) ->> 'needs')::integer FROM public.schema_scripts AS s"
    )
    return {name: _Run(digest, needs or 0) for name, digest, needs in await cursor.fetchall()}


def _missing(recorded: Mapping[str, _Run], scripts: Collection[Script]) -> list[Script]:
    """Those that have not been run.

    Raises:
        WrongSchema: what has been run is not what this release would run, or beyond what it can work with.
    """
    known = {script.owner: script.number for script in scripts}
    for name, run in recorded.items():
        owner, _, _ = name.rpartition("/")
        if run.needs > known.get(owner, run.needs):
            raise WrongSchema(
                f"A later release of Registrar has changed this database ({name}), "
                "and this one cannot work with it any more; run the later one."
            )
    for script in scripts:
        if script.name in recorded and recorded[script.name].digest != script.digest:
            raise WrongSchema(
                f"Another build of Registrar has run a different script {script.name} on this database; "
                "run the release that did."
            )
    return [script for script in scripts if script.name not in recorded]
