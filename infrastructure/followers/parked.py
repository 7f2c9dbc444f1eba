"""Parked streams: what cannot be applied is put aside with its stream, never skipped, while the others go on."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import structlog

from domain.recorded import Position
from infrastructure.postgres.connection import Connection

log = structlog.get_logger(__name__)

PARKED_RETRY_INTERVAL = timedelta(minutes=1)
"""How often parked streams are tried again, apart from at the start of every leadership."""

ATTEMPTS_BEFORE_PARKING = 3
"""Attempts at an event before its stream is parked."""


class ParkedStreams:
    """The streams that a follower has put aside, with all their later events, in order."""

    def __init__(self, follower: str) -> None:
        self._follower = follower
        self._streams: set[UUID] = set()

    def __contains__(self, stream_id: UUID) -> bool:
        return stream_id in self._streams

    def __len__(self) -> int:
        return len(self._streams)

    async def load(self, connection: Connection) -> None:
        cursor = await connection.execute(
            "SELECT DISTINCT stream_id FROM parked_events WHERE follower = %s", (self._follower,)
        )
        self._streams = {row[0] for row in await cursor.fetchall()}

    async def waiting(self, connection: Connection) -> dict[UUID, list[Position]]:
        """The positions of the parked events, in order, by stream."""
        cursor = await connection.execute(
            "SELECT stream_id, position FROM parked_events WHERE follower = %s ORDER BY position", (self._follower,)
        )
        waiting: dict[UUID, list[Position]] = {}
        for stream_id, position in await cursor.fetchall():
            waiting.setdefault(stream_id, []).append(position)
        return waiting

    async def remove(self, connection: Connection, stream_id: UUID) -> None:
        """The stream's events have been applied after all; `forget` it once that is committed."""
        await connection.execute(
            "DELETE FROM parked_events WHERE follower = %s AND stream_id = %s", (self._follower, stream_id)
        )
        log.info("follower.unparked", follower=self._follower, stream_id=str(stream_id))

    def forget(self, stream_id: UUID) -> None:
        """From now on the stream's events are applied as they come."""
        self._streams.discard(stream_id)

    async def add(self, connection: Connection, stream_id: UUID, position: Position, error: str) -> None:
        """Park an event; `error` says which kind of error it was, and never quotes a value."""
        self._streams.add(stream_id)
        await connection.execute(
            "INSERT INTO parked_events (follower, stream_id, position, error) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (self._follower, stream_id, position, error),
        )
