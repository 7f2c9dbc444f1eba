"""Moments of the log, as people name them."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from domain.recorded import Position
from infrastructure.event_store.reader import head_of
from infrastructure.postgres.connection import Connection
from infrastructure.replay.swap import CannotReplay

Moment = Position | datetime
"""A position of the log, or the last one up to a time."""

# The clock may have been set back: up to the first event that was recorded later, so that none of a later time counts.
_AT: Final = """
    SELECT coalesce(
        (SELECT e.notification_id - 1 FROM public.events AS e WHERE e.recorded_at > %s
         ORDER BY e.notification_id LIMIT 1),
        (SELECT h.position FROM public.head AS h))
"""


async def position_at(connection: Connection, when: Moment) -> Position:
    """The position that is meant by a position or a time.

    Raises:
        CannotReplay: the log does not reach to that position.
    """
    if isinstance(when, datetime):
        row = await (await connection.execute(_AT, (when,))).fetchone()
        assert row is not None  # noqa: S101 - one row of one value
        return int(row[0])
    end = await head_of(connection)
    if when > end:
        raise CannotReplay(f"The log ends at position {end}.")
    return when
