"""Leadership: one process at a time does a task, any number of others stand by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from math import inf
from typing import Any, LiteralString, Protocol, TypeVar

import psycopg
import structlog

from application.ports import Conflict, Unavailable
from infrastructure.postgres.circumstances import why_unusable
from infrastructure.postgres.connection import AWAY, Connection, connect, is_at_rest
from infrastructure.postgres.cutting import cut_after
from infrastructure.ticks import until_tick

log = structlog.get_logger(__name__)

T = TypeVar("T")

STAND_BY = timedelta(seconds=1)
"""How often a standby tries to become the leader."""

LEASE_MARGIN = timedelta(seconds=2)
"""Added to the statement timeout before a silent leader is deposed: it may be waiting for another session meanwhile."""

TOUCH = timedelta(seconds=3)
"""How often the session that holds a leadership is used, at least: a silent one is deposed."""


class NotLeader(Exception):
    """The follower's position was moved by somebody else: another process leads."""


class LeaderTask(Protocol):
    """A piece of work for one process at a time."""

    name: str

    async def work(self, session: LeaderSession) -> None:
        """Work until cancelled, or until something goes wrong.

        `session` holds the leadership: it must be used every few seconds, or a standby takes it for dead.
        """
        ...


class LeaderSession:
    """A database session with the advisory locks of one leader, or of several of a process, who use it in turns.

    Attributes:
        users: how many have it (`SharedSession`).
    """

    def __init__(self, connection: Connection) -> None:
        self.users = 0
        self._connection = connection
        self._turns = asyncio.Lock()
        self._touched_at = -inf

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Connection]:
        """Have the session to oneself within the block, which should be short, and touch nothing that others rely on:
        what is `SET` holds for all who share it.

        A leader that shares with nobody may have a single turn that never ends.
        """
        async with self._turns:
            connection = self._connection
            try:
                yield connection
            except BaseException:
                # The next one's statements would be part of what was interrupted.
                if not connection.closed and not is_at_rest(connection):
                    await connection.close()
                raise

    @property
    def closed(self) -> bool:
        return self._connection.closed

    async def close(self) -> None:
        await self._connection.close()

    async def give_up(self) -> None:
        """Have all who use it get another one."""
        async with self.turn() as connection:
            await connection.close()

    async def execute(self, query: LiteralString) -> None:
        """A single statement, in a turn of its own."""
        async with self.turn() as connection:
            await connection.execute(query)

    async def touch(self) -> None:
        """`touch`, once for all who do it at about the same time."""
        loop = asyncio.get_running_loop()
        async with self.turn() as connection:
            if loop.time() - self._touched_at > TOUCH.total_seconds() / 2:
                await touch(connection)
                self._touched_at = loop.time()


class SharedSession:
    """Where several leaders of a process get their session: opened for the first, closed behind the last.

    Each gives its leadership up without the others' (`lead`); with the session, all lose theirs.
    """

    def __init__(self, dsn: str, *, name: str, statement_timeout: timedelta) -> None:
        """
        Args:
            name: the application_name, after "registrar".
        """
        self._connect = partial(connect, dsn, name=name, statement_timeout=statement_timeout)
        self._opening = asyncio.Lock()
        self._session: LeaderSession | None = None

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[LeaderSession]:
        """
        Raises:
            UnfitSession, psycopg.Error, OSError: see `infrastructure.postgres.connection.connect`.
        """
        async with self._opening:
            if self._session is None or self._session.closed:
                self._session = LeaderSession(await self._connect())
            session = self._session
            session.users += 1
        try:
            yield session
        finally:
            session.users -= 1
            if not session.users:
                if self._session is session:
                    self._session = None
                await session.close()


async def lead(
    leading: LeaderTask,
    dsn: str,
    *,
    statement_timeout: timedelta = timedelta(seconds=10),
    shared: SharedSession | None = None,
) -> None:
    """Run `leading` whenever this process is its leader, for ever: whatever goes wrong, it is started again.

    A leader whose session has been silent for `statement_timeout` and `LEASE_MARGIN` (it was stopped, its machine is
    gone) is deposed by a standby. It may wake up afterwards: what it then writes outside of its session is fenced by
    its position (`Checkpoint`).

    Args:
        shared: with the process's other leaders of a kind; None: a session of its own.
    """
    sessions = shared or SharedSession(dsn, name=leading.name, statement_timeout=statement_timeout)
    pause = STAND_BY.total_seconds()
    away = False
    session: LeaderSession | None = None
    failed_in: LeaderSession | None = None
    while True:
        try:
            async with sessions.joined() as session:
                if await _is_leader(session, leading.name):
                    log.info("follower.leads", follower=leading.name)
                    away = False
                    pause = STAND_BY.total_seconds()
                    try:
                        await leading.work(session)
                    finally:
                        await _resign(session, leading.name)
                elif await _depose_silent(session, leading.name, statement_timeout + LEASE_MARGIN):
                    log.warning("follower.deposed_leader", follower=leading.name, hint="it was silent; is it stopped?")
            await asyncio.sleep(STAND_BY.total_seconds())
        except (*AWAY, Unavailable, OSError, TimeoutError) as error:
            if not away:  # once an outage, not once a second and follower
                log.warning("follower.database_away", follower=leading.name, error=type(error).__name__)
            away = True
            await asyncio.sleep(STAND_BY.total_seconds())
        except (NotLeader, Conflict) as error:
            log.warning("follower.lost_a_race", follower=leading.name, error=type(error).__name__)
            await asyncio.sleep(STAND_BY.total_seconds())
        except Exception as error:
            # The loop's edge: a follower never stops. It starts again, slower each time.
            hint = why_unusable(error) or "this is a bug; report it"
            log.exception("follower.failed", follower=leading.name, again_in=pause, hint=hint)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 30.0)
            if session is not None and session is failed_in:  # which others have kept: it may be what fails
                await session.give_up()
            failed_in = session


_LEADER = """
    SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND datname = current_database() AND database = datid
        AND classid = hashtext('registrar follower')::oid AND objid = hashtext(%s)::oid AND objsubid = 2
"""
"""Ends the leader's session."""

_SILENT_LEADER = f"{_LEADER} AND wait_event = 'ClientRead' AND state_change < clock_timestamp() - %s"


@asynccontextmanager
async def _without_doubt(session: LeaderSession) -> AsyncIterator[Connection]:
    """A turn about a lock: what goes wrong within costs the session, which may hold the lock or not."""
    async with session.turn() as connection:
        try:
            yield connection
        except BaseException:
            await connection.close()
            raise


async def _is_leader(session: LeaderSession, name: str) -> bool:
    async with _without_doubt(session) as connection:
        row = await (
            await connection.execute(
                "SELECT pg_try_advisory_lock(hashtext('registrar follower'), hashtext(%s))", (name,)
            )
        ).fetchone()
    return row is not None and bool(row[0])


async def _resign(session: LeaderSession, name: str) -> None:
    """Give the leadership up, also where others go on using the session."""
    with suppress(psycopg.Error, OSError):
        async with _without_doubt(session) as connection:
            if not connection.closed:
                with cut_after(LEASE_MARGIN, connection):
                    await connection.execute(
                        "SELECT pg_advisory_unlock(hashtext('registrar follower'), hashtext(%s))", (name,)
                    )


async def _depose_silent(session: LeaderSession, name: str, lease: timedelta) -> bool:
    """End the leader's session if the server has waited for its next message for longer than `lease`.

    The server's own timeouts for idle sessions do not cover every case: none runs in the middle of a pipeline, nor
    after one until the next statement outside (measured: psycopg 3.3.9, PostgreSQL 18.4).
    """
    async with session.turn() as connection:
        cursor = await connection.execute(_SILENT_LEADER.encode(), (name, lease))
    return cursor.rowcount > 0


async def depose(connection: Connection, name: str) -> None:
    """End the leader's session, whatever it is doing. The next leader begins with what the database says by then."""
    await connection.execute(_LEADER, (name,))


class Executes(Protocol):
    """A leader's session, or the connection of one who has it alone."""

    async def execute(self, query: LiteralString, /) -> Any: ...


async def touch(session: Executes) -> None:
    """Use the session, to keep the leadership, and to notice a lost connection."""
    await session.execute("SELECT 1")


async def while_touching(session: Executes, work: Awaitable[T]) -> T:
    """Wait for `work`, and use the session meanwhile; losing the leadership ends both. Not to be used within a turn of
    a session that is shared."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=until_tick(TOUCH).total_seconds()))[0]:
            await touch(session)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
