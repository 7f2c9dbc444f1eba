"""Two copies of a read model at one position, compared row by row in the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from psycopg import sql
from psycopg.rows import tuple_row

from domain.recorded import Position
from domain.registration import PERSONAL_FIELDS
from infrastructure.postgres.connection import Connection

MASKED: Final = "masked"
"""What is shown of personal data, sealed or not."""

_PERSONAL: Final = PERSONAL_FIELDS | {"sealed"}

ROW: Final = "(row)"
"""In place of a column, where a row is there on one side only; "there" and "missing" are its values."""

TABLE: Final = "(table)"
"""In place of a row, where a table or a column is there on one side only, or of another type: its rows are compared
without it."""

KEY: Final = "(key)"
"""In place of a column, where a table's keys differ, so that its rows cannot be compared."""

MOST_KEPT: Final = 10_000
"""Differences kept to be shown; all are counted."""

ALL: Final = sql.SQL("true")
"""The condition on rows that all of them meet."""

Note = Callable[[str, str, str, Any, Any], None]
"""Takes what differs: table, row, column, the live value and the rebuilt one."""

_POSITION = "SELECT coalesce((SELECT position FROM public.followers WHERE name = %s), 0)"

_SHAPE = """
    SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod),
        coalesce(a.attnum = ANY (k.conkey), false)
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_constraint AS k ON k.conrelid = c.oid AND k.contype = 'p'
    WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind = 'r'
    ORDER BY 1, a.attnum
"""

_NEXT = "FETCH 500 FROM differences"


@dataclass(frozen=True, slots=True)
class Difference:
    """A value of a live read model that is not what the log says.

    Attributes:
        row: the columns of its key.
        column: or `ROW`; `row` is `TABLE` where all rows lack it.
        live, rebuilt: as JSON has them; `MASKED` if personal.
        position: at which both were compared.
    """

    read_model: str
    table: str
    row: str
    column: str
    live: Any
    rebuilt: Any
    position: Position


@dataclass(slots=True)
class Differences:
    """What a comparison found.

    Attributes:
        count: of all, also of those beyond `MOST_KEPT`.
        rows: compared.
    """

    position: Position
    count: int = 0
    rows: int = 0
    kept: list[Difference] = field(default_factory=list)

    def add(self, difference: Difference) -> None:
        self.count += 1
        if len(self.kept) < MOST_KEPT:
            self.kept.append(difference)


@dataclass(frozen=True, slots=True)
class Shape:
    """A table: its columns with their types, in order, and those of its key."""

    columns: dict[str, str]
    key: tuple[str, ...]


async def shapes(connection: Connection, schema: str) -> dict[str, Shape]:
    """The tables of a schema; none if there is no such schema."""
    cursor = await connection.execute(_SHAPE, (schema,))
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for table, column, kind, in_key in await cursor.fetchall():
        found.setdefault(table, []).append((column, kind, in_key))
    return {
        table: Shape({name: kind for name, kind, _ in columns}, tuple(name for name, _, in_key in columns if in_key))
        for table, columns in found.items()
    }


async def live_position(connection: Connection, name: str) -> Position:
    """Where a follower is; 0 if it never ran."""
    row = await (await connection.execute(_POSITION, (name,))).fetchone()
    return 0 if row is None else int(row[0])


@asynccontextmanager
async def at_one_moment(connection: Connection, name: str, other: str) -> AsyncIterator[Position | None]:
    """A moment that stands still within the block; yields the position of both, or None if they are not at the same."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        position = await live_position(connection, name)
        yield position if position == await live_position(connection, other) else None


async def compared(connection: Connection, read_model: str, live: str, rebuilt: str, position: Position) -> Differences:
    """Compare every row of two schemas within a transaction that `at_one_moment` has begun."""
    found = Differences(position)
    ours, theirs = await shapes(connection, live), await shapes(connection, rebuilt)

    def note(table: str, row: str, column: str, one: Any, other: Any) -> None:
        found.add(Difference(read_model, table, row, column, one, other, position))

    for table in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(table), theirs.get(table)
        compare_shapes(table, one, other, note)
        if one is None or other is None:
            continue
        await compare_rows(connection, table, one, other, live, rebuilt, note)
        found.rows += await count(connection, rebuilt, table)
    return found


def compare_shapes(table: str, one: Shape | None, other: Shape | None, note: Note) -> None:
    """Note what is not the same of a live table and a rebuilt one, or there on one side only."""
    if one is None or other is None:
        note(table, TABLE, ROW, *_sides(one is not None))
        return
    for column in sorted({*one.columns} | {*other.columns}):
        kind, its_kind = one.columns.get(column), other.columns.get(column)
        if kind is None or its_kind is None:
            note(table, TABLE, column, *_sides(kind is not None))
        elif kind != its_kind:
            note(table, TABLE, column, kind, its_kind)
    if one.key != other.key:
        note(table, TABLE, KEY, ", ".join(one.key), ", ".join(other.key))


def _sides(is_live: bool) -> tuple[str, str]:
    return ("there", "missing") if is_live else ("missing", "there")


async def count(connection: Connection, schema: str, table: str, where: sql.Composable = ALL) -> int:
    query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(sql.Identifier(schema, table), where)
    row = await (await connection.execute(query)).fetchone()
    return 0 if row is None else int(row[0])


async def compare_rows(
    connection: Connection,
    table: str,
    ours: Shape,
    theirs: Shape,
    live: str,
    rebuilt: str,
    note: Note,
    where: sql.Composable = ALL,
) -> None:
    """Note the values that differ in the rows that meet a condition on their key; none if their keys are not the same.

    Columns that are not there on both sides, or of other types, are left out; `compare_shapes` notes them.
    """
    columns = [column for column, kind in ours.columns.items() if theirs.columns.get(column) == kind]
    if ours.key != theirs.key or not set(columns).issuperset(ours.key):
        return

    def row_of(alias: str) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier(alias, column) for column in columns)

    query = sql.SQL(
        "SELECT to_jsonb(l), to_jsonb(r) FROM (SELECT * FROM {} WHERE {}) AS l FULL JOIN (SELECT * FROM {} WHERE {}) AS r"
        " ON {} WHERE ROW({}) IS DISTINCT FROM ROW({}) ORDER BY {}"
    ).format(
        *(sql.Identifier(live, table), where, sql.Identifier(rebuilt, table), where),
        sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("l", column), sql.Identifier("r", column)) for column in ours.key
        ),
        row_of("l"),
        row_of("r"),
        sql.SQL(", ").join(
            sql.SQL("coalesce({}, {})").format(sql.Identifier("l", column), sql.Identifier("r", column))
            for column in ours.key
        ),
    )
    # By SQL, as a cursor of the driver's that is cancelled while it closes stays open for its garbage collector.
    await connection.execute(sql.SQL("DECLARE differences NO SCROLL CURSOR FOR {}").format(query))
    cursor = connection.cursor(row_factory=tuple_row)
    while found := await (await cursor.execute(_NEXT, prepare=False)).fetchall():
        for one, other in found:
            key = " ".join(f"{column}={(one or other)[column]}" for column in ours.key)
            if one is None or other is None:
                note(table, key, ROW, *_sides(one is not None))
                continue
            for column in columns:
                if one[column] != other[column]:
                    note(table, key, column, *_shown(column, one[column], other[column]))
    await connection.execute("CLOSE differences")


def _shown(column: str, one: Any, other: Any) -> tuple[Any, Any]:
    """Values to show; of personal ones only whether they are there."""
    if column in _PERSONAL:
        return (None if one is None else MASKED), (None if other is None else MASKED)
    return _without_personal(one), _without_personal(other)


def _without_personal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: MASKED if name in _PERSONAL else _without_personal(one) for name, one in value.items()}
    return value
