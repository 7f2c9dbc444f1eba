"""The database: the server, its clock, our tables, the master key, and those that follow the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from application.ports import WrongMasterKey
from entrypoints.bootstrap.database import SCHEMA
from entrypoints.cli.checks.finding import PATIENCE, Finding, State
from entrypoints.queries.followers import followers_with
from infrastructure.crypto.keyring import read_root_secret
from infrastructure.embedded.data_directory import BadDataDirectory, DataDirectory
from infrastructure.embedded.postgres import DatabaseDidNotStart, EmbeddedPostgres
from infrastructure.followers.progress import LAGGING, progress_of
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.schema import Outdated, WrongSchema, check, check_encoding
from infrastructure.settings.settings import Settings

OLDEST_DATABASE = 140000
"""PostgreSQL 14, the first with CREATE OR REPLACE TRIGGER, which our schema uses."""

CLOCK_OFF = timedelta(seconds=2)
"""Deadlines go by the database's clock; a difference beyond this shows in logs and traces."""


async def look_at_database(settings: Settings) -> AsyncIterator[Finding]:
    """Everything in it; what cannot be looked at because something before failed is left out."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(_database(settings))
        except _NoDatabase as reason:
            yield reason.finding
        else:
            async for finding in _in_database(connection, settings):
                yield finding


class _NoDatabase(Exception):
    def __init__(self, state: State, says: str, advice: str | None) -> None:
        self.finding = Finding("database", state, says, advice)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to the database that is set, or to the embedded one if it runs."""
    async with AsyncExitStack() as stack:
        if settings.database_url is not None:
            dsn, advice = settings.database_url.get_secret_value(), "Check REGISTRAR_DATABASE_URL and the server."
        else:
            dsn, advice = await _running_embedded(settings.data_dir, stack), "Look into postgres.log."
        try:
            connection = await connect(dsn, name="doctor", statement_timeout=PATIENCE, read_only=True)
        except (psycopg.Error, OSError, TimeoutError) as error:
            message = str(error).strip().partition("\n")[0]
            raise _NoDatabase("fail", message or "it does not respond", advice) from None
        yield await stack.enter_async_context(connection)


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


async def _in_database(connection: Connection, settings: Settings) -> AsyncIterator[Finding]:
    try:
        yield await _server(connection)
        yield await _clock(connection)
        if await _value(connection, "SELECT to_regclass('public.events') IS NULL"):
            yield Finding("schema", "warn", "nothing there yet", "The first start of the service makes it.")
            return
        yield await _schema(connection)
        yield await _master_key(connection, settings)
        async for finding in _followers(connection, settings):
            yield finding
    except (psycopg.Error, OSError) as error:
        says = f"it failed to respond ({type(error).__name__})"
        yield Finding("database", "fail", says, "Check the server's log and the rights of the role.")


async def _schema(connection: Connection) -> Finding:
    try:
        await check(connection, SCHEMA)
    except WrongSchema as error:
        state: State = "warn" if isinstance(error, Outdated) else "fail"
        return Finding("schema", state, str(error), "docs/upgrading.md has the order of an upgrade.")
    head = await _value(connection, "SELECT position FROM head")
    return Finding("schema", "ok", f"there, with {head} events")


async def _value(connection: Connection, query: str) -> object:
    row = await (await connection.execute(query.encode())).fetchone()
    return None if row is None else row[0]


async def _server(connection: Connection) -> Finding:
    version = f"PostgreSQL {await _value(connection, 'SHOW server_version')}"
    if connection.info.server_version < OLDEST_DATABASE:
        return Finding("database", "fail", version, "Use PostgreSQL 14 or newer.")
    if await _value(connection, "SELECT pg_is_in_recovery()"):
        return Finding(
            "database", "fail", f"{version}, a read-only standby", "Point REGISTRAR_DATABASE_URL at the primary."
        )
    try:
        check_encoding(connection)
    except WrongSchema as error:
        return Finding("database", "fail", f"{version}, in SQL_ASCII", str(error))
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
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
    key = settings.master_key
    if key is None and not (settings.data_dir / "master.key").exists():
        return Finding(
            "master key", "fail", "master.key is missing", "Put it back from a backup; never make a new one."
        )
    try:
        key = key or DataDirectory(settings.data_dir).master_key()
        await read_root_secret(connection, key.get_secret_value())
    except BadDataDirectory as error:
        return Finding("master key", "fail", str(error))
    except WrongMasterKey as error:
        return Finding("master key", "fail", str(error), "Put back the one this database was set up with.")
    return Finding("master key", "ok", "fits this database")


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


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
