"""The log in order: events as rows, and rows as events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from domain.recorded import Position, Recorded
from infrastructure.event_store.codec import EventCodec
from infrastructure.postgres.connection import Connection, ReconnectingConnection

COLUMNS = """originator_id, originator_version, topic, state, notification_id, recorded_at, correlation_id,
           causation_position, actor, trace_context"""
"""Those of a `RecordedRow`."""

_READ = f"""
    SELECT {COLUMNS}
    FROM events WHERE notification_id > %(after)s AND notification_id <= %(upto)s ORDER BY notification_id
"""  # noqa: S608 - a constant

# The end of the log in the same statement, so from the same snapshot: between two, an event could be skipped.
_READ_TOPICS = f"""
    SELECT h.position, e.*
    FROM head AS h
    LEFT JOIN (
        SELECT {COLUMNS}
        FROM events WHERE notification_id > %(after)s AND notification_id <= %(upto)s AND topic = ANY(%(topics)s)
        ORDER BY notification_id LIMIT %(limit)s
    ) AS e ON true
    ORDER BY e.notification_id
"""  # noqa: S608 - a constant


class RecordedRow(NamedTuple):
    """An event as stored in the log, not decoded."""

    stream_id: UUID
    version: int
    topic: str
    state: bytes
    position: Position
    recorded_at: datetime
    correlation_id: UUID
    causation_position: Position | None
    actor: str
    trace: str | None


class UnreadableLog(Exception):
    """What was read is not the log as it was written: to go on would step over events."""


def _readable(columns: Iterable[Sequence[Any]]) -> list[RecordedRow]:
    """What one session has read."""
    rows = [_new(RecordedRow, some) for some in columns]
    # Bytes, in a session of another encoding: they would be no topics that anybody follows.
    if rows and type(rows[0].topic) is not str:
        raise UnreadableLog(f"the topic of event {rows[0].position} is no text")
    return rows


_new = tuple.__new__
"""Of a named tuple from its values, in half the time that its class takes to check their number."""


class ReadsLog(Protocol):
    """`LogReader`, or a `LogTail`, which saves a process from reading the same events several times."""

    async def read(
        self, after: Position, limit: int, topics: Sequence[str] | None = None
    ) -> tuple[list[RecordedRow], Position]: ...

    def decode(self, row: RecordedRow) -> Recorded: ...


class LogReader:
    """Reads the log over one connection, and writes nothing.

    Attributes:
        end_seen: the end of the log as the latest `read` found it.
    """

    def __init__(self, connection: ReconnectingConnection, codec: EventCodec) -> None:
        self.end_seen: Position = 0
        self._connection = connection
        self._codec = codec

    async def close(self) -> None:
        await self._connection.close()

    async def read(
        self, after: Position, limit: int, topics: Sequence[str] | None = None
    ) -> tuple[list[RecordedRow], Position]:
        """Return events after a position, in order, and the position up to which they are complete.

        Args:
            limit: maximum number of events.
            topics: only events of these; the returned position skips the others, and advances by at most 4 * `limit`.

        Raises:
            UnreadableLog: events are missing, or cannot be told by their topics.
        """
        if topics is None:
            rows = _readable(await self._read(_READ, {"after": after, "upto": after + limit}))
            seen = rows[-1].position if rows else after
            if seen - after != len(rows):
                raise UnreadableLog(f"positions are missing between {after} and {seen}")
            return rows, seen
        upto = after + 4 * limit
        found = await self._read(_READ_TOPICS, {"after": after, "upto": upto, "limit": limit, "topics": list(topics)})
        self.end_seen = found[0][0]
        rows = [] if found[0][1] is None else _readable([row[1:] for row in found])
        seen = rows[-1].position if len(rows) == limit else min(self.end_seen, upto)
        return rows, max(after, seen)

    async def _read(self, query: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        async def select(connection: Connection) -> list[tuple[Any, ...]]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(query, parameters)
            return await cursor.fetchall()

        return await self._connection.execute_idempotent(select)

    async def head(self) -> Position:
        """Position of the last event."""

        self.end_seen = await self._connection.execute_idempotent(head_of)
        return self.end_seen

    def decode(self, row: RecordedRow) -> Recorded:
        """
        Raises:
            TopicError, MapperDeserialisationError: this version of the service cannot read the event.
        """
        stream_id, version, topic, state, position, at, correlation_id, causation_position, actor, trace = row
        event = self._codec.decode(stream_id, version, topic, state)
        return _new(Recorded, (event, position, topic, at, correlation_id, causation_position, actor, trace))


async def head_of(connection: Connection) -> Position:
    """Position of the last event."""
    row = await (await connection.execute("SELECT position FROM head")).fetchone()
    assert row is not None  # noqa: S101 - the schema inserts it
    position: Position = row[0]
    return position
