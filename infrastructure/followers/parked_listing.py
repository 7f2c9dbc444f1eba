"""What followers have parked, for people: each stream, and each of its events with the error and the code that refused
it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.rows import class_row

from domain.recorded import Position
from infrastructure.postgres.connection import Connection

# The name of a copy of a read model has two underscores ("audit__old"): it keeps what it has parked, for a swap or a
# rollback, but nobody leads it.
_OF_FOLLOWERS: Final = "strpos(follower, '__') = 0"

_PARKED: Final = f"""
    SELECT follower, stream_id, count(*) AS events, min(position) AS position,
        (array_agg(error ORDER BY position))[1] AS error, (array_agg(code ORDER BY position))[1] AS code,
        min(parked_at) AS parked_at, max(tried_at) AS tried_at
    FROM public.parked_events
    WHERE {_OF_FOLLOWERS} AND (%(follower)s::text IS NULL OR follower = %(follower)s)
"""  # noqa: S608 - a constant

_STREAMS: Final = f"""{_PARKED}
    AND (%(stream)s::uuid IS NULL OR stream_id = %(stream)s)
    GROUP BY follower, stream_id ORDER BY min(parked_at), follower, stream_id LIMIT %(limit)s
"""

_PAGE: Final = f"""{_PARKED}
    AND (follower, stream_id) > (%(after_follower)s, %(after_stream)s)
    GROUP BY follower, stream_id ORDER BY follower, stream_id LIMIT %(limit)s
"""

_EVENTS: Final = f"""
    SELECT follower, position, error, code, parked_at, tried_at FROM public.parked_events
    WHERE {_OF_FOLLOWERS} AND stream_id = %s ORDER BY follower, position LIMIT %s
"""  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class ParkedStream:
    """A stream that a follower has put aside.

    Attributes:
        events: how many of its events wait.
        position: of the first of them; 0 for a deadline of the mail saga, which is no event.
        error: the kind of error with which it was refused.
        code: the place in the code that refused it; None if it is not known.
        tried_at: when it was last tried again; None: not yet.
    """

    follower: str
    stream_id: UUID
    events: int
    position: Position
    error: str
    code: str | None
    parked_at: datetime
    tried_at: datetime | None


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """One event of a parked stream; see `ParkedStream`."""

    follower: str
    position: Position
    error: str
    code: str | None
    parked_at: datetime
    tried_at: datetime | None


async def parked_streams(
    connection: Connection, *, follower: str | None = None, stream_id: UUID | None = None, limit: int
) -> list[ParkedStream]:
    """The parked streams, the one that waits longest first.

    Args:
        follower, stream_id: only those of this follower; only this stream.
    """
    cursor = connection.cursor(row_factory=class_row(ParkedStream))
    await cursor.execute(_STREAMS, {"follower": follower, "stream": stream_id, "limit": limit})
    return await cursor.fetchall()


async def page_of_parked_streams(
    connection: Connection, *, follower: str | None, after: ParkedStream | None, limit: int
) -> list[ParkedStream]:
    """The parked streams by follower and id, `limit` of them, from the first one or after another."""
    cursor = connection.cursor(row_factory=class_row(ParkedStream))
    last = {
        "after_follower": after.follower if after else "",
        "after_stream": after.stream_id if after else UUID(int=0),
    }
    await cursor.execute(_PAGE, {"follower": follower, "limit": limit} | last)
    return await cursor.fetchall()


async def parked_events(connection: Connection, stream_id: UUID, *, limit: int) -> list[ParkedEvent]:
    """The events of a parked stream, in order, for each follower that has parked it."""
    cursor = connection.cursor(row_factory=class_row(ParkedEvent))
    await cursor.execute(_EVENTS, (stream_id, limit))
    return await cursor.fetchall()
