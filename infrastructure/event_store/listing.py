"""Queries for events by what they concern, for people who inspect the log. Followers read with `LogReader`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row

from domain.mail_saga import MailSaga
from domain.recorded import Position
from domain.registration import BEGINNINGS
from infrastructure.event_store.reader import RecordedRow
from infrastructure.postgres.connection import Connection

OF_REGISTRATIONS = tuple(event.TOPIC for event in BEGINNINGS)
"""Topics of first events."""

_SELECT = """
    SELECT originator_id AS stream_id, originator_version AS version, topic, state, notification_id AS position,
           recorded_at, correlation_id, causation_position, actor, trace_context AS trace
    FROM events
"""

_OF_STREAM = _SELECT + " WHERE originator_id = %(stream)s ORDER BY originator_version LIMIT %(limit)s"

_IN_ORDER = (
    _SELECT
    + """
    WHERE notification_id > %(after)s AND notification_id <= %(upto)s
      AND (%(topics)s::text[] IS NULL OR topic = ANY (%(topics)s))
"""
)

# Its own stream, its saga's, and what its address's claim says about it.
_ABOUT = """
      AND (originator_id = ANY (%(streams)s)
           OR (originator_id = %(claim)s
               AND convert_from(state, 'UTF8')::jsonb ->> 'registration_id' = %(registration)s::text))
"""

_REGISTRATION_OF = """
    SELECT CASE WHEN topic = ANY (%(own)s) THEN originator_id
                WHEN topic = %(saga)s THEN (convert_from(state, 'UTF8')::jsonb ->> 'registration_id')::uuid END
    FROM events WHERE originator_id = %(stream)s AND originator_version = 1
"""


@dataclass(frozen=True, slots=True)
class About:
    """A registration, and the claim to its address: the events about it are in several streams."""

    registration_id: UUID
    claim_id: UUID


async def events_of_stream(connection: Connection, stream_id: UUID, *, limit: int | None = None) -> list[RecordedRow]:
    """A stream's events; with a limit, the first ones."""
    return await _rows(connection, _OF_STREAM, {"stream": stream_id, "limit": limit})


async def events_of(
    connection: Connection, stream_ids: Sequence[UUID], positions: Sequence[Position]
) -> list[RecordedRow]:
    """The events of these streams and those at these positions, in order, each once."""
    query = _SELECT + (
        " WHERE originator_id = ANY (%(streams)s) OR notification_id = ANY (%(positions)s) ORDER BY notification_id"
    )
    return await _rows(connection, query, {"streams": list(stream_ids), "positions": list(positions)})


async def registration_of_stream(connection: Connection, stream_id: UUID) -> UUID | None:
    """The registration whose own stream this is, or its saga's; None: it is another one."""
    topics = {"own": list(OF_REGISTRATIONS), "saga": MailSaga.MailSagaStarted.TOPIC}
    found = await connection.execute(_REGISTRATION_OF.encode(), {"stream": stream_id} | topics)
    row = await found.fetchone()
    return None if row is None else row[0]


async def registrations_among(connection: Connection, stream_ids: Sequence[UUID]) -> set[UUID]:
    """Those of these streams that are registrations."""
    query = b"SELECT originator_id FROM events WHERE originator_id = ANY (%s) AND originator_version = 1"
    found = await connection.execute(query + b" AND topic = ANY (%s)", (list(stream_ids), list(OF_REGISTRATIONS)))
    return {row[0] for row in await found.fetchall()}


async def events_at(connection: Connection, positions: Sequence[Position]) -> list[RecordedRow]:
    """The events at these positions, in order."""
    query = _SELECT + " WHERE notification_id = ANY (%(positions)s) ORDER BY notification_id"
    return await _rows(connection, query, {"positions": list(positions)})


async def events_in_order(
    connection: Connection,
    *,
    after: Position,
    upto: Position,
    limit: int,
    latest: bool = False,
    topics: Sequence[str] = (),
    about: About | None = None,
) -> list[RecordedRow]:
    """Events in the order of the log, after one position and up to another.

    Args:
        latest: the latest ones within the limit instead of the first.
        topics: only events of these, unless it is empty.
        about: only events about this registration.
    """
    query = _IN_ORDER + (_ABOUT if about else "")
    query += f" ORDER BY notification_id {'DESC' if latest else 'ASC'} LIMIT %(limit)s"
    parameters: dict[str, object] = {"after": after, "upto": upto, "limit": limit, "topics": list(topics) or None}
    if about is not None:
        streams = [about.registration_id, MailSaga.stream_id(about.registration_id)]
        parameters |= {"registration": about.registration_id, "claim": about.claim_id, "streams": streams}
    rows = await _rows(connection, query, parameters)
    return rows[::-1] if latest else rows


async def _rows(connection: Connection, query: str, parameters: dict[str, object]) -> list[RecordedRow]:
    cursor = connection.cursor(binary=True, row_factory=class_row(RecordedRow))
    await cursor.execute(query.encode(), parameters)
    return await cursor.fetchall()
