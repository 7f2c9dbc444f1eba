"""A live read model compared with a copy a stretch of rows at a time, each within milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import sql

from domain.recorded import Position
from infrastructure.postgres.connection import Connection
from infrastructure.replay.comparison import ALL, Difference, Differences, compare_rows, compare_shapes, count, shapes

ROWS: Final = 1_000
"""At most so many on each side are in a stretch."""

_KEY = """
    SELECT a.attname::text, format_type(a.atttypid, a.atttypmod)
    FROM pg_constraint AS k
    CROSS JOIN unnest(k.conkey) WITH ORDINALITY AS part (number, place)
    JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = part.number
    WHERE k.conrelid = to_regclass(%s) AND k.contype = 'p'
    ORDER BY part.place
"""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a comparison is.

    Attributes:
        table: those before it, by name, have been compared.
        key: the last row of it that has been, as text; empty: none yet.
    """

    table: str = ""
    key: Sequence[str] = ()


async def compare_stretch(
    connection: Connection, read_model: str, live: str, rebuilt: str, position: Position, place: Place
) -> tuple[Differences, Place | None]:
    """Compare the rows that follow a place, within a transaction that `at_one_moment` has begun.

    Returns:
        What differs, and the place that is reached; None: the end.
    """
    found = Differences(position)
    ours, theirs = await shapes(connection, live), await shapes(connection, rebuilt)
    left = [table for table in sorted(ours.keys() | theirs.keys()) if table >= place.table]
    if not left:
        return found, None
    table, following = left[0], Place(left[1]) if len(left) > 1 else None
    after = place.key if table == place.table else ()

    def note(table: str, row: str, column: str, one: Any, other: Any) -> None:
        found.add(Difference(read_model, table, row, column, one, other, position))

    one, other = ours.get(table), theirs.get(table)
    if not after:
        compare_shapes(table, one, other, note)
    if one is None or other is None:
        return found, following
    # The planner does not know how short the stretch is.
    await connection.execute("SET LOCAL enable_seqscan = off")
    key = await _key(connection, rebuilt, table)
    upto = await _end(connection, key, (live, rebuilt), table, after)
    where = _between(key, after, upto)
    await compare_rows(connection, table, one, other, live, rebuilt, note, where)
    found.rows = await count(connection, rebuilt, table, where)
    return found, Place(table, upto) if upto else following


_Key = list[tuple[sql.Identifier, sql.SQL]]
"""The columns of a primary key, in its order, and their types."""


async def _key(connection: Connection, schema: str, table: str) -> _Key:
    cursor = await connection.execute(_KEY, (sql.Identifier(schema, table).as_string(),))
    return [(sql.Identifier(name), sql.SQL(of)) for name, of in await cursor.fetchall()]


async def _end(
    connection: Connection, key: _Key, schemas: Sequence[str], table: str, after: Sequence[str]
) -> Sequence[str]:
    """The key of the last row of a stretch; empty: it goes to the end."""
    columns = sql.SQL(", ").join(name for name, _ in key)
    side = sql.SQL("(SELECT {columns} FROM {table} WHERE {after} ORDER BY {columns} OFFSET {offset} LIMIT 1)")
    sides = [
        side.format(
            columns=columns,
            table=sql.Identifier(schema, table),
            after=_between(key, after, ()),
            offset=sql.Literal(ROWS - 1),
        )
        for schema in schemas
    ]
    query = sql.SQL("SELECT {} FROM ({}) AS ends ORDER BY {} LIMIT 1").format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name, _ in key),
        sql.SQL(" UNION ALL ").join(sides),
        columns,
    )
    row = await (await connection.execute(query)).fetchone()
    return () if row is None else row


def _between(key: _Key, after: Sequence[str], upto: Sequence[str]) -> sql.Composable:
    """The condition that a row comes after one key, and not after another; of those that are not empty."""
    columns = sql.SQL(", ").join(name for name, _ in key)
    conditions = [
        sql.SQL("({}) {} ({})").format(
            columns,
            sql.SQL(operator),
            sql.SQL(", ").join(
                sql.SQL("{}::{}").format(sql.Literal(value), of) for value, (_, of) in zip(values, key, strict=True)
            ),
        )
        for operator, values in ((">", after), ("<=", upto))
        if values
    ]
    return sql.SQL(" AND ").join(conditions) if conditions else ALL
