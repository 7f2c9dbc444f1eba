"""Versions of read models: each has a name of its own, and so its tables, its position and its leader.

The first one is called "registrations", the second one "registrations_2". Processes of two releases follow and read
each its own, on one database.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from psycopg.rows import tuple_row

from domain.recorded import Position
from infrastructure.postgres.connection import Connection

_NAME: Final = re.compile(r"(?P<read_model>[a-z][a-z-]*)(?:_(?P<number>[0-9]+))?")

_POSITIONS: Final = "SELECT name, position FROM public.followers"


class Version(NamedTuple):
    """What a follower's name says; of one that keeps no read model, there is but the first."""

    read_model: str
    number: int


class Behind(NamedTuple):
    """A read model that has not seen as much of the log as another version of it: who read that one and reads this one
    next would go back."""

    name: str
    position: Position
    other: str
    other_position: Position


def version_of(name: str) -> Version | None:
    """None: it is the name of a copy, which is made or kept for a rebuild."""
    found = _NAME.fullmatch(name)
    return None if found is None else Version(found["read_model"], int(found["number"] or 1))


def others_of(names: Collection[str], among: Collection[str]) -> list[str]:
    """The other versions of these, in order."""
    known = {version.read_model for name in names if (version := version_of(name)) is not None}
    return sorted(
        name
        for name in among
        if name not in names and (version := version_of(name)) is not None and version.read_model in known
    )


async def positions(connection: Connection) -> Mapping[str, Position]:
    """Of everything that follows the log, or ever did."""
    cursor = connection.cursor(row_factory=tuple_row)
    await cursor.execute(_POSITIONS)
    return dict(await cursor.fetchall())


async def behind_others(connection: Connection, names: Collection[str]) -> list[Behind]:
    """Which of these are behind another version, and behind which: the one that has seen most."""
    at = await positions(connection)
    behind = []
    for name in names:
        others = others_of([name], at)
        ahead = max(others, key=lambda other: at[other], default=None)
        if ahead is not None and at[ahead] > at.get(name, 0):
            behind.append(Behind(name, at.get(name, 0), ahead, at[ahead]))
    return behind
