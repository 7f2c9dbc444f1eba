"""Sessions that replay: whatever runs in one, the database refuses each event that it would add to the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import psycopg

from infrastructure.postgres.connection import Connection, closing, connect

LONGEST_STATEMENT = timedelta(hours=1)
"""An index, or a comparison of all rows, may take that long."""

LONGEST_WAIT = timedelta(seconds=10)
"""For a lock. Only after a second (`deadlock_timeout`) does the server end its own cleaning (autovacuum) of a table
that somebody wants, and a copy that was just filled is due for one. Nobody else uses a copy: nobody waits behind us."""


@asynccontextmanager
async def replaying(dsn: str, *, name: str) -> AsyncIterator[Connection]:
    """A session that writes copies of read models, and that the guards of the log (`event_store/guard.sql`) know.

    Raises:
        psycopg.Error, OSError: the database is away.
    """
    connection = await connect(dsn, name=name, statement_timeout=LONGEST_STATEMENT, lock_timeout=LONGEST_WAIT)
    async with closing(connection):
        await replay_in(connection)
        yield connection


async def replay_in(connection: Connection) -> None:
    """Have a session be one that replays, until its end."""
    await connection.execute("SET registrar.replays = on")
    # What is lost in a crash of the server is folded again: a copy's rows and its position go together.
    await connection.execute("SET synchronous_commit = off")
    await _leave_processors(connection)
    # A killed process's long statement ends soon, and with it its claim. (Servers on some systems cannot look.)
    with suppress(psycopg.errors.InvalidParameterValue):
        await connection.execute("SET client_connection_check_interval = '1s'")


@asynccontextmanager
async def looking(dsn: str, *, name: str) -> AsyncIterator[Connection]:
    """A session that only reads, for long statements."""
    connection = await connect(dsn, name=name, statement_timeout=LONGEST_STATEMENT, read_only=True)
    async with closing(connection):
        await _leave_processors(connection)
        yield connection


async def _leave_processors(connection: Connection) -> None:
    """An index or a comparison takes one processor of the server; the others are the service's."""
    await connection.execute("SET max_parallel_maintenance_workers = 0")
    await connection.execute("SET max_parallel_workers_per_gather = 0")
