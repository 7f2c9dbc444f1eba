"""The database: the server, its clock, our tables, the master key, and those that follow the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from application.ports import WrongMasterKey
from entrypoints.bootstrap.database import SCHEMA, keys_in
from entrypoints.cli.checks.backups import look_at_archive, look_at_backups, look_at_role, unsettled_restores
from entrypoints.cli.checks.finding import PATIENCE, Finding, State
from entrypoints.queries.followers import followers_with
from infrastructure.alerts.alerts import FAILS_LONG
from infrastructure.audit.standing import standing_of
from infrastructure.crypto.key_uses import noted
from infrastructure.crypto.keyring import read_root_secret
from infrastructure.crypto.master_keys import MasterKeys
from infrastructure.embedded.data_directory import BadDataDirectory, DataDirectory
from infrastructure.embedded.postgres import DatabaseDidNotStart, EmbeddedPostgres
from infrastructure.event_store.probe import take_locks_of_an_append
from infrastructure.followers.progress import LAGGING, progress_of
from infrastructure.postgres.addresses import first_line
from infrastructure.postgres.circumstances import unreachable
from infrastructure.postgres.connection import Connection, closing, connect, connect_first
from infrastructure.postgres.cutting import cut_after
from infrastructure.postgres.schema import OLDEST_SERVER, NothingThere, Outdated, WrongSchema, check, check_server
from infrastructure.postgres.session import UnfitSession
from infrastructure.settings.settings import Settings
from infrastructure.webhooks.records import Failing, failing

IN_ALL = timedelta(seconds=20)
"""For all that is asked of the database, whatever it waits for."""

CONFIRM = timedelta(seconds=3)
"""For a commit. No timeout of the server's ends the wait for a synchronous standby."""

CLOCK_OFF = timedelta(seconds=2)
"""Deadlines go by the database's clock; a difference beyond this shows in logs and traces."""


async def look_at_database(settings: Settings) -> AsyncIterator[Finding]:
    """Everything in it; what cannot be looked at because something before failed is left out."""
    async with AsyncExitStack() as stack:
        try:
            connection, dsn = await stack.enter_async_context(_database(settings))
        except _NoDatabase as reason:
            yield reason.finding
        else:
            with cut_after(IN_ALL, connection):
                async for finding in _in_database(connection, dsn, settings):
                    yield finding


class _NoDatabase(Exception):
    def __init__(self, state: State, says: str, advice: str | None) -> None:
        self.finding = Finding("database", state, says, advice)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[tuple[Connection, str]]:
    """A connection to the database that is set, or to the embedded one if it runs; and its URL."""
    async with AsyncExitStack() as stack:
        embedded = settings.database_url is None
        if settings.database_url is not None:
            dsn = settings.database_url.get_secret_value()
        else:
            dsn = await _running_embedded(settings.data_dir, stack)
        try:
            connection = await connect_first(dsn, name="doctor", statement_timeout=PATIENCE, read_only=True)
        except (psycopg.Error, OSError) as error:
            says, advice = unreachable(error)
            raise _NoDatabase("fail", says, "Look into postgres.log." if embedded else _sentence(advice)) from None
        await stack.enter_async_context(closing(connection))
        yield connection, dsn


async def _running_embedded(directory: Path, stack: AsyncExitStack) -> str:
    if not (directory / "postgres").exists():
        raise _NoDatabase("ok", "embedded, not there yet; `registrar up` makes it", None)
    try:
        postgres = EmbeddedPostgres(directory)
        if postgres.pid is None:
            if DataDirectory(directory).is_locked:
                raise _NoDatabase("fail", "embedded, not running under a `registrar up`", "Look into postgres.log.")
            raise _NoDatabase("warn", "embedded, not running", "`registrar up` starts it.")
        await asyncio.to_thread(postgres.start)  # joins the one that runs
    except DatabaseDidNotStart as error:
        raise _NoDatabase("fail", str(error), None) from None
    stack.push_async_callback(asyncio.to_thread, postgres.stop)
    return postgres.dsn


async def _in_database(connection: Connection, dsn: str, settings: Settings) -> AsyncIterator[Finding]:
    try:
        yield await _server(connection)
        yield await _clock(connection)
        schema = await _schema(connection)
        yield schema
        if await _value(connection, "SELECT to_regclass('public.events') IS NULL"):
            return
        if schema.state == "ok":
            yield await _appends(connection, dsn)
        yield await _guards(connection)
        embedded = settings.database_url is None
        yield await look_at_role(connection, embedded=embedded)
        yield await look_at_archive(connection, embedded=embedded)
        if embedded and await _value(connection, "SELECT to_regclass('public.backups') IS NOT NULL"):
            yield await look_at_backups(connection)
        if await _value(connection, "SELECT to_regclass('public.restores') IS NOT NULL"):
            async for finding in unsettled_restores(connection):
                yield finding
        yield await _master_key(connection, settings)
        if await _value(connection, "SELECT count(*) FROM head"):  # (none while an import is not finished)
            async for finding in _followers(connection, settings):
                yield finding
            if settings.webhooks is not None and schema.state == "ok":
                for one in await failing(connection):
                    yield _failing(one)
            if settings.has_checkpoints and await _value(
                connection, "SELECT to_regclass('public.tree_head') IS NOT NULL"
            ):
                yield await _checkpoints(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        yield Finding("database", "fail", first_line(error), "Grant that to the role, or use the one that owns it.")
    except (psycopg.Error, OSError) as error:
        says = f"it failed to respond ({type(error).__name__})"
        yield Finding("database", "fail", says, "Check the server's log and the rights of the role.")


async def _schema(connection: Connection) -> Finding:
    try:
        await check(connection, SCHEMA)
    except NothingThere:
        may = await _value(
            connection,
            "SELECT has_database_privilege(current_database(), 'CREATE') AND has_schema_privilege('public', 'CREATE')",
        )
        if may:
            return Finding("schema", "warn", "nothing there yet", "The first start of the service makes it.")
        says = "nothing there yet, and this role may not make it"
        return Finding("schema", "fail", says, "GRANT CREATE ON DATABASE … and ON SCHEMA public to it.")
    except WrongSchema as error:
        state: State = "warn" if isinstance(error, Outdated) else "fail"
        return Finding("schema", state, str(error), "docs/upgrading.md has the order of an upgrade.")
    head = await _value(connection, "SELECT max(position) FROM head")
    if head is None:
        says = "an import into it is not finished"
        return Finding("schema", "fail", says, "Give the same `registrar events import FILE`, or use another database.")
    return Finding("schema", "ok", f"there, with {head} events")


async def _appends(looking: Connection, dsn: str) -> Finding:
    """Does the database take appends, and confirm them? As `/health/ready` asks; nothing is recorded."""
    try:
        connection = await connect(dsn, name="doctor", statement_timeout=CONFIRM, quiet=True)
        async with closing(connection):
            with cut_after(CONFIRM, connection):
                await take_locks_of_an_append(connection)
    except (UnfitSession, psycopg.errors.InsufficientPrivilege) as error:
        return Finding("appends", "fail", *_halves(error))
    except (psycopg.Error, OSError) as error:
        # Whoever waits for the standby has the log locked meanwhile: what we find may be that lock.
        if await _value(looking, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"):
            says = "no commit is confirmed: they wait for a synchronous standby"
            return Finding("appends", "fail", says, "Bring it back, or change synchronous_standby_names.")
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return Finding("appends", "fail", "the log is locked", "Look for a long transaction in pg_stat_activity.")
        says = f"no commit is confirmed within {CONFIRM.total_seconds():g} s"
        return Finding("appends", "fail", says, "Look at the server's disk, and at its log.")
    return Finding("appends", "ok", "taken and confirmed")


def _halves(error: psycopg.Error) -> tuple[str, str]:
    if isinstance(error, UnfitSession):
        says, advice = unreachable(error)
        return says, _sentence(advice)
    return first_line(error), "Grant that to the role, or use the one that owns Registrar's tables."


def _sentence(advice: str) -> str:
    return f"{advice[:1].upper()}{advice[1:]}."


async def _guards(connection: Connection) -> Finding:
    """Do the triggers that keep what was recorded from being changed fire, in every session?"""
    guards = await _value(
        connection,
        "SELECT count(*) FROM pg_trigger WHERE tgname IN ('events_are_for_ever', 'blocks_are_for_ever')"
        " AND tgrelid IN ('public.events'::regclass, to_regclass('public.blocks')) AND tgenabled = 'A'",
    )
    if guards == 2:
        return Finding("guards", "ok", "nothing that was recorded can be changed")
    return Finding(
        "guards",
        "warn",
        "a trigger that keeps what was recorded is missing or switched off",
        "ALTER TABLE … ENABLE ALWAYS TRIGGER events_are_for_ever (and blocks_are_for_ever), then verify the log.",
    )


async def _value(connection: Connection, query: str) -> object:
    row = await (await connection.execute(query.encode())).fetchone()
    return None if row is None else row[0]


async def _server(connection: Connection) -> Finding:
    version = f"PostgreSQL {await _value(connection, 'SHOW server_version')}"
    if connection.info.server_version < OLDEST_SERVER:
        return Finding("database", "fail", version, "Use PostgreSQL 14 or newer.")
    if await _value(connection, "SELECT pg_is_in_recovery()"):
        return Finding(
            "database", "fail", f"{version}, a read-only standby", "Point REGISTRAR_DATABASE_URL at the primary."
        )
    try:
        check_server(connection)
    except WrongSchema as error:
        return Finding("database", "fail", f"{version}, in SQL_ASCII", str(error))
    for setting in ("fsync", "full_page_writes"):  # the rest each session sets for itself
        if await _value(connection, f"SHOW {setting}") == "off":
            return Finding(
                "database", "fail", f"{version} with {setting} off", f"Turn {setting} on: a crash loses data."
            )
    return Finding("database", "ok", version)


async def _clock(connection: Connection) -> Finding:
    before = datetime.now(UTC)
    theirs = await _value(connection, "SELECT clock_timestamp()")
    after = datetime.now(UTC)
    assert isinstance(theirs, datetime)  # noqa: S101 - narrows
    difference = abs(theirs - (before + (after - before) / 2))
    says = f"{difference.total_seconds():.3f} s from the database's"
    if difference > CLOCK_OFF:
        return Finding("clock", "warn", says, "Synchronise both machines' clocks (NTP).")
    return Finding("clock", "ok", says)


async def _master_key(connection: Connection, settings: Settings) -> Finding:
    if await _value(connection, "SELECT count(*) FROM service_secrets WHERE name = 'root'") == 0:
        return Finding("master key", "ok", "not in use yet")
    if settings.master_key is None and not (settings.data_dir / "master.key").exists():
        return Finding(
            "master key", "fail", "master.key is missing", "Put it back from a backup; never make a new one."
        )
    try:
        keys = MasterKeys(*(keys_in(settings) or DataDirectory(settings.data_dir).master_keys()))
        await read_root_secret(connection, keys)
    except BadDataDirectory as error:
        return Finding("master key", "fail", str(error))
    except WrongMasterKey as error:
        return Finding("master key", "fail", str(error), "Put back the one this database was set up with.")
    known = await noted(connection)
    replaced = [one.key_id.hex() for one in known if one.key_id != keys.wrapping and one.retired_at is None]
    if replaced:
        says = f"{keys.wrapping.hex()} wraps, and {' and '.join(replaced)} is not replaced yet"
        return Finding("master key", "warn", says, "Run `registrar keys rotate` again: it goes on where it ended.")
    if keys.ids[0] != keys.wrapping and settings.master_key is not None:
        says = f"{keys.wrapping.hex()} wraps; REGISTRAR_MASTER_KEY is {keys.ids[0].hex()}, which is retired"
        return Finding("master key", "warn", says, "Set it to the value of REGISTRAR_NEXT_MASTER_KEY, and unset that.")
    return Finding("master key", "ok", f"{keys.wrapping.hex()} fits this database")


async def _followers(connection: Connection, settings: Settings) -> AsyncIterator[Finding]:
    found = (await progress_of(connection, followers_with(settings))).items
    behind = {one.name: one.lag_events for one in found if one.lag_seconds > LAGGING.total_seconds()}
    if behind:
        says = f"standing still behind the log: {_listed(behind)}"
        yield Finding("followers", "warn", says, "Run `registrar up` or `registrar process`, or look into its log.")
    elif all(one.updated_at is None for one in found):
        yield Finding("followers", "ok", "none has run yet")
    else:
        yield Finding("followers", "ok", f"{len(found)}, at most {max(one.lag_events for one in found)} behind")
    parked = {one.name: one.parked_streams for one in found if one.parked_streams}
    if parked:
        yield Finding("parked streams", "fail", _listed(parked), "Search the log of `process` for follower.parked.")
    else:
        yield Finding("parked streams", "ok", "none")


def _failing(one: Failing) -> Finding:
    """That an endpoint can be reached says nothing of what it answers."""
    says = f"{one.name} has taken nothing, or not everything, for {_for(one.seconds)}: {one.failure}"
    advice = f"`registrar webhooks test {one.name}` shows what it answers; nothing is lost."
    return Finding("webhooks", "fail" if one.seconds >= FAILS_LONG.total_seconds() else "warn", says, advice)


def _for(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


async def _checkpoints(connection: Connection) -> Finding:
    standing = await standing_of(connection)
    if standing.unsound is not None:
        return Finding("checkpoints", "fail", standing.unsound, "`registrar audit verify` says more.")
    says = f"up to position {standing.position}, {standing.unpublished} not published yet"
    if standing.has_gap:
        advice = "Run `registrar up` or `registrar process`, or search its log for checkpoint."
        return Finding("checkpoints", "warn", says, advice)
    return Finding("checkpoints", "ok", says)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
