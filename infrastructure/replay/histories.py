"""Reads what is recorded about each registration that something was decided about in a stretch of the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from application.mail_saga import SOURCES
from domain.mail_saga import MailSaga
from domain.recorded import Position
from infrastructure.postgres.connection import Connection, ReconnectingConnection

_BEGUN = """
    SELECT originator_id FROM public.events
    WHERE notification_id > %(after)s AND notification_id <= %(upto)s AND topic IN ('registration.user_registered', 'registration.user_invited')
"""

# A registration that was begun earlier is met at the first event of its own after `since`, or, where there is none, at
# the first note of its saga.
_MET = """
    SELECT DISTINCT originator_id FROM public.events AS e
    WHERE notification_id > %(after)s AND notification_id <= %(upto)s AND topic = ANY (%(sources)s)
        AND NOT EXISTS (
            SELECT FROM public.events AS earlier
            WHERE earlier.originator_id = e.originator_id AND earlier.topic = ANY (%(sources)s)
                AND earlier.notification_id > %(since)s AND earlier.notification_id <= %(after)s)
    UNION
    SELECT registration_id FROM (
        SELECT originator_id, (convert_from(state, 'UTF8')::jsonb ->> 'registration_id')::uuid AS registration_id
        FROM public.events
        WHERE notification_id > %(after)s AND notification_id <= %(upto)s AND starts_with(topic, 'mail_saga.')
    ) AS note
    WHERE NOT EXISTS (
            SELECT FROM public.events AS own
            WHERE own.originator_id = note.registration_id AND own.topic = ANY (%(sources)s)
                AND own.notification_id > %(since)s AND own.notification_id <= %(until)s)
        AND NOT EXISTS (
            SELECT FROM public.events AS earlier
            WHERE earlier.originator_id = note.originator_id
                AND earlier.notification_id > %(since)s AND earlier.notification_id <= %(after)s)
"""

# The streams of registrations, of their sagas, and of the claims to their addresses; each in its order. The streams are
# numbered, because to tell them apart by their ids would take longer than to read them.
_HISTORIES = """
    SELECT wanted.number, e.originator_version, e.topic, e.state, e.notification_id, e.recorded_at,
        e.causation_position, e.actor
    FROM (
        SELECT id, number
        FROM unnest(%(registrations)b::uuid[] || %(sagas)b::uuid[]) WITH ORDINALITY AS asked (id, number)
        UNION ALL
        SELECT (convert_from(first.state, 'UTF8')::jsonb ->> 'claim_id')::uuid,
            asked.number + 2 * cardinality(%(registrations)b::uuid[])
        FROM unnest(%(registrations)b::uuid[]) WITH ORDINALITY AS asked (id, number)
        JOIN public.events AS first ON first.originator_id = asked.id AND first.originator_version = 1
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT * FROM public.events AS s
        WHERE s.originator_id = wanted.id AND s.notification_id <= %(head)s ORDER BY s.originator_version
    ) AS e
"""


class Row(NamedTuple):
    """An event of which only what is beside it may be needed; see `application.what_if.history.Mark`."""

    version: int
    topic: str
    state: bytes
    position: Position
    recorded_at: datetime
    causation_position: Position | None
    actor: str


class Stored(NamedTuple):
    """The streams of a registration, of its saga, and of the claim to its address; each in its order."""

    registration_id: UUID
    registration: Sequence[Row]
    saga_id: UUID
    saga: Sequence[Row]
    claim: Sequence[Row]


class Window(NamedTuple):
    """The part of a stretch in which registrations are looked for.

    Attributes:
        since, until: the stretch: what is after the one and up to the other. A registration belongs to the window in
            which the stretch first meets it.
        after, upto: the window.
        head: histories are read up to here.
    """

    since: Position
    until: Position
    after: Position
    upto: Position
    head: Position


async def histories(connection: ReconnectingConnection, window: Window) -> list[Stored]:
    """The whole history of each registration in a window.

    Raises:
        Unavailable: the database is away.
    """
    query = _MET if window.since else _BEGUN
    registrations = [row[0] for row in await rows(connection, query, {**window._asdict(), "sources": list(SOURCES)})]
    sagas = [MailSaga.stream_id(one) for one in registrations]
    count = len(registrations)
    streams: list[list[Row]] = [[] for _ in range(3 * count)]
    asked = {"registrations": registrations, "sagas": sagas, "head": window.head}
    for number, *row in await rows(connection, _HISTORIES, asked):
        streams[number - 1].append(Row._make(row))
    of_registrations, of_sagas, of_claims = streams[:count], streams[count : 2 * count], streams[2 * count :]
    return [*map(Stored, registrations, of_registrations, sagas, of_sagas, of_claims)]


async def rows(
    connection: ReconnectingConnection, query: str, parameters: Mapping[str, Any]
) -> Sequence[tuple[Any, ...]]:
    """What a query finds, in binary form from the server."""

    async def select(connection: Connection) -> list[tuple[Any, ...]]:
        cursor = connection.cursor(binary=True)
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchall()

    return await connection.execute_idempotent(select)
