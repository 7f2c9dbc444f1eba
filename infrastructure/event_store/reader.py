"""The log in order: events as rows, and rows as events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from domain.recorded import Placed, Position, Recorded, Told
from infrastructure.event_store.batch import Batch, Stretch, Unreadable
from infrastructure.event_store.codec import EventCodec
from infrastructure.postgres.connection import Connection, ReconnectingConnection

_PLACED = ("originator_id", "originator_version", "topic", "state", "notification_id")
_METADATA = ("recorded_at", "correlation_id", "causation_position", "actor", "trace_context")

COLUMNS = ", ".join(_PLACED + _METADATA)
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

# One row of arrays, which the driver makes in a third of the time that a row for each event takes.
_READ_TOGETHER = """
    SELECT h.position, e.*
    FROM head AS h
    CROSS JOIN (
        SELECT {arrays}
        FROM (
            SELECT {columns} FROM events
            WHERE notification_id > %(after)s AND notification_id <= %(upto)s AND {wanted}
            ORDER BY notification_id LIMIT %(limit)s
        ) AS those
    ) AS e
"""


def _read_together(metadata: bool, wanted: str) -> str:
    columns = _PLACED + _METADATA if metadata else _PLACED
    arrays = ", ".join(f"array_agg({column} ORDER BY notification_id)" for column in columns)
    return _READ_TOGETHER.format(arrays=arrays, columns=", ".join(columns), wanted=wanted)


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

    async def stretch(
        self, after: Position, limit: int, topics: Sequence[str] | None = None, *, metadata: bool = True
    ) -> Stretch: ...


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

    async def stretch(
        self, after: Position, limit: int, topics: Sequence[str] | None = None, *, metadata: bool = True
    ) -> Stretch:
        """The same as `read`, for large batches: in half of the time that its rows and their `decode` take.

        Args:
            metadata: the events are `Recorded`; else `Placed`, or `Recorded` all the same.
        """
        upto = after + (limit if topics is None else 4 * limit)
        query = _read_together(metadata, "true" if topics is None else "topic = ANY(%(topics)s)")
        wanted = {"after": after, "upto": upto, "limit": limit, "topics": list(topics or ())}
        [(self.end_seen, *columns)] = await self._read(query, wanted)
        positions = columns[_PLACED.index("notification_id")] or []
        last = positions[-1] if positions else after
        if topics is None and last - after != len(positions):
            raise UnreadableLog(f"positions are missing between {after} and {last}")
        seen = last if topics is None or len(positions) == limit else max(after, min(self.end_seen, upto))

        def decoded() -> Batch:
            events = self._decoded(*columns) if positions else []
            return Batch(events, after, seen, sound=Unreadable not in set(map(type, events)))

        return Stretch(after, seen, decoded)

    def _decoded(
        self,
        stream_ids: Sequence[UUID],
        versions: Sequence[int],
        topics: Sequence[str],
        states: Sequence[bytes],
        positions: Sequence[Position],
        *metadata: Sequence[Any],
    ) -> list[Told | Unreadable]:
        if type(topics[0]) is not str:
            raise UnreadableLog(f"the topic of event {positions[0]} is no text")
        kind: Any = Recorded if metadata else Placed
        try:
            events = map(self._codec.decode, stream_ids, versions, topics, states)
            return [_new(kind, each) for each in zip(events, positions, topics, *metadata, strict=True)]
        except Exception:  # noqa: BLE001 - told apart below, and raised where the event is applied, which parks its stream
            rows = zip(stream_ids, versions, topics, states, positions, *metadata, strict=True)
            return [self._told(*row) for row in rows]

    def _told(
        self, stream_id: UUID, version: int, topic: str, state: bytes, position: Position, *metadata: Any
    ) -> Told | Unreadable:
        try:
            event = self._codec.decode(stream_id, version, topic, state)
        except Exception as error:  # noqa: BLE001 - see above
            return Unreadable(position, topic, stream_id, error)
        return Recorded(event, position, topic, *metadata) if metadata else Placed(event, position, topic)

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


def decoded(
    rows: Sequence[RecordedRow], since: Position, upto: Position, decode: Callable[[RecordedRow], Recorded]
) -> Batch:
    """The batch of some rows, each decoded by itself."""
    try:
        return Batch([decode(row) for row in rows], since, upto)
    except Exception:  # noqa: BLE001 - told apart below, and raised where the event is applied, which parks its stream
        return Batch([_decoded(row, decode) for row in rows], since, upto, sound=False)


def _decoded(row: RecordedRow, decode: Callable[[RecordedRow], Recorded]) -> Recorded | Unreadable:
    try:
        return decode(row)
    except Exception as error:  # noqa: BLE001 - see above
        return Unreadable(row.position, row.topic, row.stream_id, error)


async def head_of(connection: Connection) -> Position:
    """Position of the last event."""
    row = await (await connection.execute("SELECT position FROM head")).fetchone()
    assert row is not None  # noqa: S101 - the schema inserts it
    position: Position = row[0]
    return position
