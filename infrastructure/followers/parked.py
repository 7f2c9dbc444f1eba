"""Parked streams: what cannot be applied is put aside with its stream, never skipped, while the others go on.

They are tried again when a leadership starts, every minute, and when an operator asks for it: one stream at a time, so
that the others are not held up. The operator's act is an event, which the leader finds in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from traceback import extract_tb
from typing import NamedTuple
from uuid import UUID

import psycopg
import structlog

from domain.parked_retry import ParkedRetry
from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog, RecordedRow
from infrastructure.postgres.connection import Connection

log = structlog.get_logger(__name__)

PARKED_RETRY_INTERVAL = timedelta(minutes=1)
"""How often parked streams are tried again, apart from at the start of every leadership."""

RETRY_LOOK = timedelta(seconds=1)
"""How often a leader with parked streams looks whether an operator asks for a retry."""

ATTEMPTS_BEFORE_PARKING = 3
"""Attempts at an event before its stream is parked."""

BEHIND = "stream is parked"
"""The error of events that wait because an earlier one of their stream cannot be applied."""

_ROOT = Path(__file__).parents[2]
_OURS = frozenset({"application", "domain", "infrastructure", "projections"})
_ASKS = (ParkedRetry.ParkedRetryAsked.TOPIC,)
_ASKS_EACH = 1000
"""Maximum number of an operator's acts that one look reads; it reads four times as many positions at most."""


class Parked(NamedTuple):
    """A parked stream, and the positions of its events, in order."""

    stream_id: UUID
    positions: Sequence[Position]


def place_of(error: BaseException) -> str | None:
    """The place in our code that refused, as "file:line in function", and what the database calls the reason; never a
    value. None: it is not known."""
    place = None
    for frame in extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_ROOT) and path.relative_to(_ROOT).parts[0] in _OURS:
            place = f"{path.relative_to(_ROOT)}:{frame.lineno} in {frame.name}"
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        names = [error.sqlstate, error.diag.table_name, error.diag.column_name, error.diag.constraint_name]
        place = f"{place or 'the database'} ({', '.join(name for name in names if name)})"
    return place


class ParkedStreams:
    """The streams that a follower has put aside, with all their later events, in order, and when to try them again."""

    def __init__(self, follower: str, log: ReadsLog) -> None:
        self._follower = follower
        self._log = log
        self._streams: set[UUID] = set()
        self._asked_after: Position | None = None  # the operators' acts up to here are known
        self._may_be_more = False
        self._to_try: dict[UUID, None] = {}  # in order
        self._all_due = 0.0

    def __contains__(self, stream_id: UUID) -> bool:
        return stream_id in self._streams

    def __len__(self) -> int:
        return len(self._streams)

    async def load(self, connection: Connection, position: Position) -> None:
        """Begin a leadership at this position of the log: all streams are to be tried again."""
        await self._read(connection)
        self._asked_after = position
        self._to_try.clear()
        self._all_due = 0.0

    async def _read(self, connection: Connection) -> None:
        cursor = await connection.execute(
            "SELECT DISTINCT stream_id FROM parked_events WHERE follower = %s", (self._follower,)
        )
        self._streams = {row[0] for row in await cursor.fetchall()}

    # --- Parking ------------------------------------------------------------------------------

    async def add(
        self, connection: Connection, stream_id: UUID, position: Position, error: str, code: str | None = None
    ) -> None:
        """Park an event.

        Args:
            error: which kind of error it was; it never quotes a value.
            code: see `place_of`.
        """
        if not self._streams:
            self._asked_after, self._all_due = position, _now() + PARKED_RETRY_INTERVAL.total_seconds()
        self._streams.add(stream_id)
        await connection.execute(
            "INSERT INTO parked_events (follower, stream_id, position, error, code) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (self._follower, stream_id, position, error, code),
        )

    # --- Trying again -------------------------------------------------------------------------

    @property
    def look_in(self) -> timedelta | None:
        """When to look for the next one to try; None: after the next events (also an operator's act is one)."""
        if not self._streams:
            return None
        return timedelta(0) if self._may_be_more else RETRY_LOOK

    async def next_to_try(self, connection: Connection, *, may_be_others: bool = False) -> Parked | None:
        """The stream to try again now, if there is one.

        Args:
            may_be_others: other streams may be parked than before, as where a read model was replaced by a copy.
        """
        if _now() >= self._all_due:
            if may_be_others:
                await self._read(connection)
            self._to_try |= dict.fromkeys(self._streams)
            self._all_due = _now() + PARKED_RETRY_INTERVAL.total_seconds()
        if not self._streams:
            return None
        asked = await self._asked()
        self._to_try = dict.fromkeys(asked) | self._to_try
        while self._to_try:
            stream_id = next(iter(self._to_try))
            del self._to_try[stream_id]
            if stream_id in self._streams and (positions := await self.positions(connection, stream_id)):
                return Parked(stream_id, positions)
        return None

    async def _asked(self) -> list[UUID]:
        """The streams for which operators have asked, in the next part of the log: a follower that is far behind has
        its batches to apply between two."""
        before = self._asked_after or 0
        rows, self._asked_after = await self._log.read(before, _ASKS_EACH, _ASKS)
        self._may_be_more = self._asked_after - before >= _ASKS_EACH
        return [stream_id for row in rows if (stream_id := self._asked_by(row)) is not None]

    def _asked_by(self, row: RecordedRow) -> UUID | None:
        """None: it is meant for another follower, or cannot be read."""
        try:
            event = self._log.decode(row).event
            if isinstance(event, ParkedRetry.ParkedRetryAsked) and event.follower == self._follower:
                return UUID(event.parked_stream)
        except Exception as error:  # noqa: BLE001 - the stream stays parked, and is tried every minute anyway
            log.warning(
                "follower.unreadable_retry",
                follower=self._follower,
                position=row.position,
                error=type(error).__name__,
                hint="a newer release may have recorded it; the stream is tried again within a minute",
            )
        return None

    async def positions(self, connection: Connection, stream_id: UUID) -> list[Position]:
        """Of the stream's parked events, in order."""
        cursor = await connection.execute(
            "SELECT position FROM parked_events WHERE follower = %s AND stream_id = %s ORDER BY position",
            (self._follower, stream_id),
        )
        return [row[0] for row in await cursor.fetchall()]

    async def failed(self, connection: Connection, stream_id: UUID, position: Position, error: BaseException) -> None:
        """The stream stays parked: this event was refused again."""
        log.warning(
            "follower.still_parked", follower=self._follower, stream_id=str(stream_id), error=type(error).__name__
        )
        await connection.execute(
            "UPDATE parked_events SET tried_at = clock_timestamp(),"
            " error = CASE WHEN position = %(at)s THEN %(error)s ELSE error END,"
            " code = CASE WHEN position = %(at)s THEN %(code)s ELSE code END"
            " WHERE follower = %(follower)s AND stream_id = %(stream)s",
            {
                "at": position,
                "error": type(error).__name__,
                "code": place_of(error),
                "follower": self._follower,
                "stream": stream_id,
            },
        )

    async def remove(self, connection: Connection, stream_id: UUID) -> None:
        """The stream's events have been applied after all; `forget` it once that is committed."""
        await connection.execute(
            "DELETE FROM parked_events WHERE follower = %s AND stream_id = %s", (self._follower, stream_id)
        )
        log.info("follower.unparked", follower=self._follower, stream_id=str(stream_id))

    def forget(self, stream_id: UUID) -> None:
        """From now on the stream's events are applied as they come."""
        self._streams.discard(stream_id)


def _now() -> float:
    return asyncio.get_running_loop().time()
