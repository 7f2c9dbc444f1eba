"""Leadership: one process at a time does a task, any number of others stand by."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Protocol, TypeVar

import structlog

from application.ports import Conflict, Unavailable
from infrastructure.postgres.circumstances import why_unusable
from infrastructure.postgres.connection import AWAY, Connection, closing, connect
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

    async def work(self, connection: Connection) -> None:
        """Work until cancelled, or until something goes wrong.

        `connection` holds the leadership: it must be used every few seconds, or a standby takes it for dead.
        """
        ...


async def lead(leading: LeaderTask, dsn: str, *, statement_timeout: timedelta = timedelta(seconds=10)) -> None:
    """Run `leading` whenever this process is its leader, for ever: whatever goes wrong, it is started again.

    A leader whose session has been silent for `statement_timeout` and `LEASE_MARGIN` (it was stopped, its machine is
    gone) is deposed by a standby. It may wake up afterwards: what it then writes outside of its session is fenced by
    its position (`Checkpoint`).
    """
    pause = STAND_BY.total_seconds()
    away = False
    while True:
        try:
            connection = await connect(dsn, name=leading.name, statement_timeout=statement_timeout)
            async with closing(connection):
                if await _is_leader(connection, leading.name):
                    log.info("follower.leads", follower=leading.name)
                    away = False
                    pause = STAND_BY.total_seconds()
                    await leading.work(connection)
                elif await _depose_silent(connection, leading.name, statement_timeout + LEASE_MARGIN):
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


_LEADER = """
    SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND datname = current_database() AND database = datid
        AND classid = hashtext('registrar follower')::oid AND objid = hashtext(%s)::oid AND objsubid = 2
"""
"""Ends the leader's session."""

_SILENT_LEADER = f"{_LEADER} AND wait_event = 'ClientRead' AND state_change < clock_timestamp() - %s"


async def _is_leader(connection: Connection, name: str) -> bool:
    row = await (
        await connection.execute("SELECT pg_try_advisory_lock(hashtext('registrar follower'), hashtext(%s))", (name,))
    ).fetchone()
    return row is not None and bool(row[0])


async def _depose_silent(connection: Connection, name: str, lease: timedelta) -> bool:
    """End the leader's session if the server has waited for its next message for longer than `lease`.

    The server's own timeouts for idle sessions do not cover every case: none runs in the middle of a pipeline, nor
    after one until the next statement outside (measured: psycopg 3.3.9, PostgreSQL 18.4).
    """
    cursor = await connection.execute(_SILENT_LEADER.encode(), (name, lease))
    return cursor.rowcount > 0


async def depose(connection: Connection, name: str) -> None:
    """End the leader's session, whatever it is doing. The next leader begins with what the database says by then."""
    await connection.execute(_LEADER, (name,))


async def touch(connection: Connection) -> None:
    """Use the session, to keep the leadership, and to notice a lost connection."""
    await connection.execute("SELECT 1")


async def while_touching(connection: Connection, work: Awaitable[T]) -> T:
    """Wait for `work`, and use the session meanwhile; losing the leadership ends both."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=until_tick(TOUCH).total_seconds()))[0]:
            await touch(connection)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
