"""A read model as it was: folded up to a position into a scratch schema, beside the live one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import sql

from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog
from infrastructure.postgres.addresses import first_line
from infrastructure.postgres.connection import AWAY, Connection
from infrastructure.replay.comparison import Differences, compared, shapes
from infrastructure.replay.copies import Copy, MakesProjection
from infrastructure.replay.moments import Moment, position_at
from infrastructure.replay.progress import Doing, Watch
from infrastructure.replay.sessions import replaying
from infrastructure.replay.swap import CannotReplay

_CLAIM: Final = "SELECT pg_try_advisory_lock(hashtext('registrar replay'), hashtext(%s))"

_TIME_OF: Final = "SELECT recorded_at FROM public.events WHERE notification_id = %s"


@dataclass(frozen=True, slots=True)
class Scratch:
    """A read model as it was.

    Attributes:
        recorded_at: the time of the event at the position; None before the first.
        tables: how many rows each of them has.
        unapplied: streams that could not be applied, as far as they would have been parked then.
    """

    read_model: str
    position: Position
    recorded_at: datetime | None
    schema: str
    tables: dict[str, int]
    unapplied: int


async def as_of(dsn: str, make: MakesProjection, when: Moment, *, log: ReadsLog, watch: Watch) -> Scratch:
    """Build the read model as it was, in a schema that stays until it is dropped.

    Raises:
        CannotReplay: it cannot be done; one line. Nothing is left of it.
        Unavailable, psycopg.Error: the database is away.
    """
    live = make().name
    async with _session(dsn, f"as-of {live}") as connection:
        position = await position_at(connection, when)
        copy = _scratch(make, position)
        async with _made(dsn, connection, copy):
            indexes = await _empty(connection, copy)
            await _fill(connection, copy, position, log, watch)
            watch(Doing(live, "indexing"))
            for statement in indexes:
                await connection.execute(statement.encode())
            await copy.analyze(connection)
            unapplied = await _one(
                connection, "SELECT count(DISTINCT stream_id) FROM public.parked_events WHERE follower = %s", copy.name
            )
            await _forget(connection, copy)
        tables = {
            table: int(
                await _one(connection, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(copy.schema, table)))
            )
            for table in await shapes(connection, copy.schema)
        }
        time = await _one(connection, _TIME_OF, position)
        return Scratch(live, position, time, copy.schema, tables, unapplied)


async def drop(dsn: str, make: MakesProjection, when: Moment) -> str | None:
    """Drop what `as_of` has built; the name of its schema, None if there is none."""
    async with _session(dsn, f"as-of {make().name}") as connection:
        copy = _scratch(make, await position_at(connection, when))
        await _claim(connection, copy)
        there = await copy.exists(connection)
        await copy.drop(connection)
        return copy.schema if there else None


async def diff(
    dsn: str, make: MakesProjection, one: Moment, other: Moment, *, log: ReadsLog, watch: Watch
) -> tuple[Position, Position, Differences]:
    """What is different in the read model between two moments: as it was at the first, and at the second.

    The log is folded once, up to the later one. Nothing is left behind.

    Raises:
        CannotReplay, Unavailable, psycopg.Error: see `as_of`.
    """
    live = make().name
    async with _session(dsn, f"diff {live}") as connection:
        first, second = await position_at(connection, one), await position_at(connection, other)
        earlier, later = Copy(make, "earlier"), Copy(make, "later")
        async with _made(dsn, connection, earlier, keep=False), _made(dsn, connection, later, keep=False):
            await _empty(connection, earlier)
            await _fill(connection, earlier, min(first, second), log, watch)
            await _empty(connection, later)
            await _take_over(connection, earlier, later)
            await _fill(connection, later, max(first, second), log, watch)
            watch(Doing(live, "comparing"))
            schemas = (earlier.schema, later.schema) if first <= second else (later.schema, earlier.schema)
            async with connection.transaction():
                found = await compared(connection, live, *schemas, position=second)
        return first, second, found


# --- Copies ------------------------------------------------------------------------------------


def _scratch(make: MakesProjection, position: Position) -> Copy:
    return Copy(make, f"at_{position}")


async def _empty(connection: Connection, copy: Copy) -> list[str]:
    async with connection.transaction():
        return await copy.make(connection)


async def _fill(connection: Connection, copy: Copy, upto: Position, log: ReadsLog, watch: Watch) -> None:
    async def told(reached: Position) -> None:
        watch(Doing(copy.of, "filling", reached, upto))

    await copy.fill(connection, log, upto, told=told)


async def _take_over(connection: Connection, earlier: Copy, later: Copy) -> None:
    """Have the later copy begin where the earlier one is, with what it could not apply."""
    async with connection.transaction():
        for table, shape in (await shapes(connection, earlier.schema)).items():
            columns = sql.SQL(", ").join(map(sql.Identifier, shape.columns))
            await connection.execute(
                sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
                    *(sql.Identifier(later.schema, table), columns, columns, sql.Identifier(earlier.schema, table))
                )
            )
        names = (later.name, earlier.name)
        await connection.execute(
            "INSERT INTO public.parked_events (follower, stream_id, position, error, code)"
            " SELECT %s, stream_id, position, error, code FROM public.parked_events WHERE follower = %s",
            names,
        )
        await connection.execute(
            "UPDATE public.followers SET position = (SELECT position FROM public.followers WHERE name = %s)"
            " WHERE name = %s",
            names[::-1],
        )


async def _forget(connection: Connection, copy: Copy) -> None:
    """It follows nothing any more, so that dropping its schema drops all of it."""
    async with connection.transaction():
        await connection.execute("DELETE FROM public.followers WHERE name = %s", (copy.name,))
        await connection.execute("DELETE FROM public.parked_events WHERE follower = %s", (copy.name,))


@asynccontextmanager
async def _made(dsn: str, connection: Connection, copy: Copy, *, keep: bool = True) -> AsyncIterator[None]:
    """A copy that is made in the block, by nobody else meanwhile; dropped after an error, and at the end unless kept.

    What a killed process leaves is dropped when the same copy is made again.
    """
    await _claim(connection, copy)
    async with copy.only_within(dsn, connection, keep=keep):
        yield


async def _claim(connection: Connection, copy: Copy) -> None:
    if not await _one(connection, _CLAIM, copy.schema):
        raise CannotReplay(f"{copy.schema} is being made or dropped by another command; wait for its end.")


# --- Sessions ----------------------------------------------------------------------------------


@asynccontextmanager
async def _session(dsn: str, name: str) -> AsyncIterator[Connection]:
    async with replaying(dsn, name=name) as connection:
        try:
            yield connection
        except AWAY as error:
            raise CannotReplay(
                f"The database ended it ({first_line(error)}); the live read model is as it was, and what was built is "
                "dropped, or will be when the same command is given again."
            ) from error


async def _one(connection: Connection, query: str | sql.Composed, *parameters: object) -> Any:
    statement = query.encode() if isinstance(query, str) else query
    row = await (await connection.execute(statement, parameters)).fetchone()
    return None if row is None else row[0]
