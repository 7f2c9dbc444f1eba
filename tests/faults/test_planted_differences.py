"""Rows of read models that somebody has changed, deleted or added: a verification names each of them, and no other."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, Final

import pytest
from psycopg import sql

from bench.history import write
from entrypoints.bootstrap.replay import READ_MODELS
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, ReconnectingConnection, connect
from infrastructure.replay.comparison import ROW, Difference, shapes
from infrastructure.replay.verification import verify
from tests.support.read_models import follow_all, recorded_history, rows

OTHERWISE: Final = {
    "uuid": "gen_random_uuid()",
    "text": "coalesce({}, '') || 'x'",
    "integer": "coalesce({}, 0) + 1",
    "bigint": "coalesce({}, 0) + 1000000000",
    "boolean": "NOT {}",
    "double precision": "{} + 1",
    "timestamp with time zone": "coalesce({}, '2026-01-01Z') + interval '1 microsecond'",
    "jsonb": "{} || jsonb_build_object('planted', 1)",
}
"""Another value than the one that is there, by the type of a column. The smallest step where there is one."""

Named = tuple[str, str, str, str]
"""Read model, table, row and column."""


class Vandal:
    """Changes values, deletes rows and adds some; no row twice."""

    def __init__(self, connection: Connection, chance: random.Random) -> None:
        self.planted: set[Named] = set()
        self._connection = connection
        self._chance = chance

    async def plant(self, wanted: int) -> None:
        """Spread that many differences over all tables of all read models, as far as those have rows."""
        tables = [
            (name, make().schema, table)
            for name, make in READ_MODELS.items()
            for table in await shapes(self._connection, make().schema)
        ]
        counts = {
            one: (await rows(self._connection, f"SELECT count(*) FROM {one[1]}.{one[2]}"))[0][0] for one in tables
        }
        left = wanted
        for number, one in enumerate(sorted(tables, key=lambda one: counts[one])):  # those with few rows first
            share = min(left // (len(tables) - number), counts[one] // 2)
            await self._plant_in(*one, share)
            left -= share
        assert left == 0

    async def _plant_in(self, name: str, schema: str, table: str, share: int) -> None:
        where = sql.Identifier(schema, table)
        key = (await shapes(self._connection, schema))[table].key
        types = dict(
            await rows(
                self._connection,
                "SELECT column_name::text, data_type::text FROM information_schema.columns"
                " WHERE table_schema = %s AND table_name = %s",
                schema,
                table,
            )
        )
        assert set(types.values()) <= OTHERWISE.keys()
        identify = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(column)) for column in key)
        for *found, shown in await self._some(where, key, share):
            row = " ".join(f"{column}={shown[column]}" for column in key)
            others = [column for column in types if column not in key]
            column = self._chance.choice([*others, ROW])
            if column == ROW:
                await self._connection.execute(sql.SQL("DELETE FROM {} WHERE {}").format(where, identify), found)
            else:
                value = sql.SQL(OTHERWISE[types[column]]).format(sql.Identifier(column))
                change = sql.SQL("UPDATE {} SET {} = {} WHERE {}")
                await self._connection.execute(change.format(where, sql.Identifier(column), value, identify), found)
            self.planted.add((name, table, row, column))

    async def _some(self, where: sql.Identifier, key: Sequence[str], share: int) -> list[tuple[Any, ...]]:
        """Their keys, and what they look like as JSON."""
        columns = sql.SQL(", ").join(map(sql.Identifier, key))
        query = sql.SQL("SELECT {}, to_jsonb(t) FROM {} AS t ORDER BY {}").format(columns, where, columns)
        found = await (await self._connection.execute(query)).fetchall()
        return self._chance.sample(found, share)


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[Connection]:
    async with await connect(dsn, name="test", statement_timeout=timedelta(minutes=1)) as connection:
        yield connection


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault("X9")
async def test_each_of_the_planted_differences_is_named_and_nothing_else(
    dsn: str, store: EventStore, connection: Connection, full_size: bool
) -> None:
    if full_size:
        await write(dsn, 180_000)
    # Strays, erasures, cancellations and failures beside what went well.
    await recorded_history(store, registrations=400 if full_size else 60)
    await follow_all(store, connection, batch=1000)
    vandal = Vandal(connection, random.Random(11))  # noqa: S311 - repeatable
    await vandal.plant(1000 if full_size else 100)
    line = ReconnectingConnection(dsn, name="log", statement_timeout=timedelta(minutes=1), read_only=True)
    log = LogReader(line, EventCodec())

    found = [await verify(dsn, make, log=log) for make in READ_MODELS.values()]

    await line.close()
    assert len(vandal.planted) == (1000 if full_size else 100)
    assert sum(one.rows for one in found) >= (250_000 if full_size else 1_000)
    assert {named(one) for differences in found for one in differences.kept} == vandal.planted
    assert sum(one.count for one in found) == len(vandal.planted)


def named(one: Difference) -> Named:
    return one.read_model, one.table, one.row, one.column
