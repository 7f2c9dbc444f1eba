"""A copy takes the place of the live read model, between two statements of those who read it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import psycopg
from psycopg import sql

from application.crash_points import crash_point
from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog
from infrastructure.followers.leadership import depose
from infrastructure.postgres.connection import Connection, pipeline
from infrastructure.replay.comparison import live_position, shapes
from infrastructure.replay.copies import Copy, MakesProjection, schema_exists
from infrastructure.replay.dependents import dependents
from infrastructure.replay.grants import take_over_grants

LOCK_TIMEOUT: Final = timedelta(milliseconds=100)
"""How long an attempt waits for whoever uses the tables: new readers queue behind it, and give up after a second."""

PAUSE: Final = timedelta(milliseconds=50)
"""Between two attempts: who queued goes first."""

PATIENCE: Final = timedelta(minutes=1)
"""How long attempts are made."""

MOST_UNDER_LOCK: Final = 500
"""Events that may be folded while readers wait; if there are more, they are folded before another attempt."""


_SET_POSITION: Final = """
    INSERT INTO public.followers (name, position) VALUES (%s, %s)
    ON CONFLICT (name) DO UPDATE SET position = excluded.position WHERE followers.position <> excluded.position
"""

LONGEST_HOLD: Final = timedelta(milliseconds=300)
"""How long readers may be held up, the wait for the locks included: on a machine that has too much to do an attempt may
take longer, and is undone before they give up."""


class CannotReplay(Exception):
    """It cannot be done; one line that says why, and what to do."""


async def refuse_dependents(connection: Connection, *schemas: str) -> None:
    """
    Raises:
        CannotReplay: others have built something on the tables in these schemas.
    """
    if found := [name for schema in schemas for name in await dependents(connection, schema)]:
        raise CannotReplay(
            f"Drop first, and make again afterwards, what depends on tables that are to go: {'; '.join(found)}."
        )


class _Behind(Exception):
    """The live read model has moved on too far."""


class _TooSlow(Exception):
    """Readers have been held up for long enough."""


async def swap(
    connection: Connection,
    log: ReadsLog,
    make: MakesProjection,
    incoming: Copy,
    *,
    leaving: str,
    note: Callable[[Position], Awaitable[None]],
) -> Position:
    """Let a copy take the place of the live read model, both at the position that is returned; or the copy at a later
    one, which is then the live one's.

    In one transaction, under locks that stop the projector and the readers: it applies the events that the live one has
    seen since, and renames the schemas. A reader thus reads the one or the other to the end of its statement, and never
    the old one's rows beside the new one's position. Before that, the copy is given the live one's owner and grants.

    Args:
        leaving: the kind of copy that the live one becomes; one of that kind becomes "gone", which is then for the
            caller to drop, once the act is recorded.
        note: called within the transaction.

    Raises:
        CannotReplay: the tables, or the machine, were busy all the time; or others depend on them.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE.total_seconds()
    while True:
        await incoming.fill(connection, log, await live_position(connection, incoming.of))
        try:
            await Copy(make, "gone").drop(connection)
            await refuse_dependents(connection, make().schema, Copy(make, leaving).schema)
            await take_over_grants(connection, make().schema, incoming.schema)
            until = loop.time() + LONGEST_HOLD.total_seconds()
            async with connection.transaction():
                live = await _locked(connection, make().schema, incoming)
                if await incoming.position(connection) < live:
                    await incoming.fill(connection, log, live)
                _in_time(until)
                if await _parked(connection, incoming):
                    await depose(connection, incoming.of)
                position = await incoming.position(connection)
                async with pipeline(connection):  # each wait is one more for the readers
                    await _rename(connection, make, incoming, leaving, live)
                    # A projector that was not there finds so, and reads it (`move_on_v2`).
                    await connection.execute(_SET_POSITION, (incoming.of, position))
                    await note(position)
                crash_point("rebuild.before_swap")
                _in_time(until)
            break
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, _Behind, _TooSlow):
            if loop.time() > deadline:
                raise CannotReplay(
                    f"The tables of {incoming.of} are in use all the time, or the machine is too busy; look for a long "
                    "transaction in pg_stat_activity, then try again."
                ) from None
            await asyncio.sleep(PAUSE.total_seconds())
    crash_point("rebuild.after_swap")
    return position


def _in_time(until: float) -> None:
    """Looked at between statements: one that is cancelled may cost the session, and with it the claim."""
    if asyncio.get_running_loop().time() > until:
        raise _TooSlow


async def _locked(connection: Connection, schema: str, incoming: Copy) -> Position:
    """Stop who reads and writes the live tables; returns where its projector is.

    Raises:
        psycopg.errors.LockNotAvailable: they are in use.
        _Behind: the copy is too far behind.
    """
    # The server ends this transaction if we are stopped in it.
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '1s'")
    await connection.execute("SET LOCAL statement_timeout = '2s'")
    await connection.execute(
        "SELECT set_config('lock_timeout', %s, true)", (f"{LOCK_TIMEOUT // timedelta(milliseconds=1)}ms",)
    )
    if tables := [sql.Identifier(schema, table) for table in await shapes(connection, schema)]:
        await connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(tables)))
    # A batch without an event of this read model touches none of the tables.
    await connection.execute("SELECT FROM public.followers WHERE name = %s FOR UPDATE", (incoming.of,))
    position = await live_position(connection, incoming.of)
    if position - await incoming.position(connection) > MOST_UNDER_LOCK:
        raise _Behind
    return position


async def _parked(connection: Connection, incoming: Copy) -> bool:
    """Whether the copy or the live one has parked streams, which a projector remembers: it would go on with those of
    the one that leaves, and apply the later events of a stream whose earlier ones are parked."""
    names = [incoming.of, incoming.name]
    cursor = await connection.execute("SELECT FROM public.parked_events WHERE follower = ANY (%s) LIMIT 1", (names,))
    return cursor.rowcount > 0


async def _rename(
    connection: Connection, make: MakesProjection, incoming: Copy, leaving: str, position: Position
) -> None:
    """The copy's name becomes the live one's, whose name becomes that of a copy, whose name becomes "gone". There is no
    live one if somebody has dropped it."""
    live, left = make(), Copy(make, leaving)
    if leaving != "gone" and await left.exists(connection):
        await _name(connection, left.name, left.schema, Copy(make, "gone"))
    if await schema_exists(connection, live.schema):
        await _rename_schema(connection, live.schema, left.schema)
        await connection.execute("INSERT INTO public.followers (name, position) VALUES (%s, %s)", (left.name, position))
    await _rename_parked(connection, live.name, left.name)
    await _rename_schema(connection, incoming.schema, live.schema)
    await connection.execute("DELETE FROM public.followers WHERE name = %s", (incoming.name,))
    await _rename_parked(connection, incoming.name, live.name)


async def _name(connection: Connection, name: str, schema: str, to: Copy) -> None:
    await _rename_schema(connection, schema, to.schema)
    await connection.execute("UPDATE public.followers SET name = %s WHERE name = %s", (to.name, name))
    await _rename_parked(connection, name, to.name)


async def _rename_schema(connection: Connection, name: str, to: str) -> None:
    await connection.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(to)))


async def _rename_parked(connection: Connection, name: str, to: str) -> None:
    await connection.execute("UPDATE public.parked_events SET follower = %s WHERE follower = %s", (to, name))
