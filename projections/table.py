"""A table of a read model: its columns, written once, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

Connection = psycopg.AsyncConnection[Any]


def schema_of(name: str) -> str:
    """Where the tables of a read model are.

    A read model whose tables or fold change in a way that cannot be told to its rows (docs/upgrading.md) gets another
    name: "registrations", then "registrations_2". So it has other tables, and a position and a leader of its own, and
    is made beside the former one.
    """
    return f"read_{name}"


uuid_of: Callable[[str], UUID] = lru_cache(maxsize=4096)(UUID)
"""The id in a text. A registration is named by several events, one soon after the other, and a UUID is made by Python
code: ten times as long as it takes to find one that was made before."""


class Table:
    """The statements with which a fold reads and writes a table, and their parameters: one array per column.

    The table itself is made by scripts, which stay as they were released (docs/upgrading.md), so they do not come from
    here; a test compares the two. Scripts and statements name no schema: they work where the connection's `search_path`
    leads. A query does name one (`within`), for it runs on a connection that it shares with those of other models.

    Attributes:
        names: the columns, separated by commas.
        insert: adds rows; see `arrays`.
        on_conflict: to go on after `insert` with what changes in the rows that have these keys already.
        upsert: adds rows, or overwrites those that have these keys already.
        load: the rows whose first column of the key is in one array.
    """

    def __init__(
        self, name: str, columns: Mapping[str, str], *, key: str | tuple[str, ...], as_text: Collection[str] = ()
    ) -> None:
        """
        Args:
            columns: their types by name, in the order in which rows have their values.
            key: the primary key.
            as_text: columns whose values come as text, for the database to read.
        """
        key = (key,) if isinstance(key, str) else key
        self.name = name
        self.columns = dict(columns)
        self.names = ", ".join(columns)
        # One `unnest` for each column, not one of all in FROM, which keeps each column's values in a store of their own
        # before the first row is made: that took the server half of its time for a row of the audit log.
        values = ", ".join(
            f"unnest(%b::text[])::{kind}" if column in as_text else f"unnest(%b::{kind}[])"
            for column, kind in columns.items()
        )
        self.insert = f"INSERT INTO {name} ({self.names}) SELECT {values}"
        self.on_conflict = f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET "
        self.upsert = (
            self.insert
            + self.on_conflict
            + ", ".join(f"{column} = excluded.{column}" for column in columns if column not in key)
        )
        # Row by row through the index, on purpose: a plan made and kept while the table was empty would scan it for
        # ever. OFFSET 0 keeps the planner from turning this into a join.
        wanted = f"unnest(%b::{columns[key[0]]}[]) AS wanted (id)"
        row = f"SELECT {self.names} FROM {name} WHERE {key[0]} = wanted.id OFFSET 0"  # noqa: S608
        self.load = f"SELECT loaded.* FROM {wanted} CROSS JOIN LATERAL ({row}) AS loaded"  # noqa: S608

    def within(self, schema: str) -> str:
        """The table's name in a query."""
        return sql.Identifier(schema, self.name).as_string()

    @staticmethod
    def arrays(rows: Iterable[Any]) -> list[list[Any]]:
        """The parameters of `insert` and `upsert`.

        Args:
            rows: at least one; tuples, or dataclasses, with a value per column and in the columns' order.
        """
        rows = list(rows)
        if not isinstance(rows[0], tuple):
            rows = map(attrgetter(*(field.name for field in fields(rows[0]))), rows)
        return [list(column) for column in zip(*rows, strict=True)]
