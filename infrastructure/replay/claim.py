"""One rebuild or verification at a time, in one session that ends with its process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import psycopg

from application.ports import Unavailable
from infrastructure.postgres.addresses import first_line
from infrastructure.postgres.connection import AWAY, Connection
from infrastructure.replay.sessions import replaying
from infrastructure.replay.swap import CannotReplay

_CLAIM: Final = "SELECT pg_try_advisory_lock(hashtext('registrar replay'), 0)"

# The claim is held by a session of its own, of the same process: one that is stopped, or cut off, does not give it up.
_END: Final = """
    WITH its AS (
        SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = ANY (%s)
    )
    SELECT pg_terminate_backend(pid) FROM (
        SELECT pid FROM its
        UNION
        SELECT l.pid FROM pg_locks AS l
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
            AND l.classid = hashtext('registrar replay')::oid AND l.objid = 0
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND EXISTS (SELECT FROM its)
    ) AS sessions
"""

# A commit that nobody has heard of may be under way still: its lock is waited for.
_ACTS: Final = "SELECT read_model, step, recorded FROM public.rebuilds ORDER BY read_model FOR UPDATE"

_DONE: Final = {
    "swapped": "{0} has been swapped; `registrar projections rebuild {0}` records that, and no more.",
    "rolled-back": "{0} has been rolled back; `registrar projections rebuild {0} --rollback` records that, and no more.",
}

A_MOMENT: Final = timedelta(seconds=2)
"""How long a claim is waited for: the session of a process that was just killed ends within a second."""


async def claim_now(connection: Connection) -> bool:
    """Claim it for this session; False if somebody else does a rebuild or verification."""
    row = await (await connection.execute(_CLAIM)).fetchone()
    return row is not None and bool(row[0])


async def release(connection: Connection) -> None:
    """Give up the claim of a session that goes on; nothing to do in one that has ended."""
    if not connection.closed:
        await connection.execute("SELECT pg_advisory_unlock(hashtext('registrar replay'), 0)")


@asynccontextmanager
async def claimed(dsn: str, *, name: str, patience: timedelta = A_MOMENT) -> AsyncIterator[Connection]:
    """The session in which copies may be written.

    Args:
        name: what is done, and to which read model: "rebuild mail".

    Raises:
        CannotReplay: another one is under way, or the database went away meanwhile.
        psycopg.Error, OSError: the database is away.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience.total_seconds()
    async with replaying(dsn, name=name) as connection:
        while True:
            if await claim_now(connection):
                break
            if loop.time() > deadline:
                raise CannotReplay(
                    "Another rebuild or verification is under way; wait for its end, "
                    "or end it with `registrar projections rebuild --abort NAME`."
                )
            await asyncio.sleep(0.1)
        try:
            yield connection
        except (*AWAY, psycopg.errors.InternalError_, Unavailable) as error:
            raise CannotReplay(f"The database ended it ({_why(error)}). {await _what_is(dsn)}") from error


def _why(error: BaseException) -> str:
    """Its kind; where the server is short of something or cannot use its files, in the server's words. A disk quota is
    an internal error to it (XX000)."""
    if isinstance(error, Unavailable) and error.__cause__ is not None:
        return _why(error.__cause__)
    state = getattr(error, "sqlstate", None) or ""
    return first_line(error) if state[:2] in {"53", "58", "XX"} else type(error).__name__


async def _what_is(dsn: str) -> str:
    """What has become of the read models of a rebuild or verification that could not say so, and what to do."""
    try:
        async with replaying(dsn, name="look") as connection:
            acts = await (await connection.execute(_ACTS)).fetchall()
    except (psycopg.Error, OSError):
        return "Either read model serves, whole; the same command goes on where it was, or says that it was done."
    done = [_DONE[step].format(name) for name, step, recorded in acts if step in _DONE and not recorded]
    if done:
        return " ".join(done)
    return (
        "The read model serves on; the same command goes on where it was, and "
        "`registrar projections rebuild --abort NAME` drops the copy."
    )


async def end_others(connection: Connection, read_model: str) -> None:
    """End the sessions that rebuild or verify this read model, wherever their processes are, and their claim."""
    await connection.execute(_END, ([f"registrar rebuild {read_model}", f"registrar verify {read_model}"],))
