"""What the last full verification of each read model has found, kept in the database for whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from domain.recorded import Position
from infrastructure.postgres.connection import Connection
from infrastructure.replay.comparison import Difference, Differences

_ADD = """
    INSERT INTO public.found_differences
        (read_model, under_way, number, table_name, row_key, column_name, live, rebuilt, position)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
"""

_NOTE = """
    INSERT INTO public.verifications (read_model, position, row_count, differences) VALUES (%s, %s, %s, %s)
    ON CONFLICT (read_model) DO UPDATE SET position = excluded.position, row_count = excluded.row_count,
        differences = excluded.differences, verified_at = clock_timestamp()
"""

_PAGE = """
    SELECT number, read_model, table_name, row_key, column_name, live, rebuilt, position
    FROM public.found_differences
    WHERE read_model = %s AND NOT under_way AND number > %s ORDER BY number LIMIT %s
"""

_LAST = """
    SELECT read_model, verified_at, position, row_count AS rows, differences
    FROM public.verifications WHERE read_model = %s
"""


async def note_verified(connection: Connection, read_model: str, found: Differences) -> None:
    """A full verification has ended."""
    async with connection.transaction():
        await forget_verified(connection, read_model)
        await add_differences(connection, read_model, found.kept, after=0, under_way=False)
        await connection.execute(_NOTE, (read_model, found.position, found.rows, found.count))


async def note_pass(connection: Connection, read_model: str, found: Differences) -> None:
    """The same for one in the background, whose differences have been added as they were found; within the caller's
    transaction."""
    await forget_verified(connection, read_model)
    await connection.execute(
        "UPDATE public.found_differences SET under_way = false WHERE read_model = %s", (read_model,)
    )
    await connection.execute(_NOTE, (read_model, found.position, found.rows, found.count))


async def forget_verified(connection: Connection, read_model: str) -> None:
    """What serves now has never been verified."""
    await connection.execute(
        "DELETE FROM public.found_differences WHERE read_model = %s AND NOT under_way", (read_model,)
    )
    await connection.execute("DELETE FROM public.verifications WHERE read_model = %s", (read_model,))


async def add_differences(
    connection: Connection, read_model: str, found: Sequence[Difference], *, after: int, under_way: bool
) -> None:
    """Add to what a verification has found.

    Args:
        after: how many there are already.
        under_way: whether it is one that is not at its end.
    """
    rows = [
        (
            read_model,
            under_way,
            number,
            one.table,
            one.row,
            one.column,
            Jsonb(one.live),
            Jsonb(one.rebuilt),
            one.position,
        )
        for number, one in enumerate(found, start=after + 1)
    ]
    await connection.cursor().executemany(_ADD, rows)


async def differences_after(
    connection: Connection, read_model: str, number: int, *, limit: int
) -> list[tuple[int, Difference]]:
    """What the last full verification has found, beyond a number, each with its own."""
    cursor = await connection.execute(_PAGE, (read_model, number, limit))
    return [(number, Difference(*found)) for number, *found in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class Verified:
    """The last full verification of a read model.

    Attributes:
        position: at which both sides were compared last.
        rows: compared.
    """

    read_model: str
    verified_at: datetime
    position: Position
    rows: int
    differences: int


async def last_verification(connection: Connection, read_model: str) -> Verified | None:
    """None: there was none, or another read model serves since then."""
    cursor = connection.cursor(row_factory=class_row(Verified))
    await cursor.execute(_LAST, (read_model,))
    return await cursor.fetchone()
