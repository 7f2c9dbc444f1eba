"""The log itself: its events in order, and one registration as it was at some time. Personal data stays sealed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from eventsourcing.persistence import MapperDeserialisationError
from eventsourcing.utils import TopicError

from domain.errors import UnknownRegistration
from domain.recorded import AnyEvent, Position
from domain.registration import BEGINNINGS, PERSONAL_FIELDS, Registration
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.listing import OF_REGISTRATIONS, About, events_at, events_in_order, events_of_stream
from infrastructure.event_store.loader import LoadedStreams
from infrastructure.event_store.reader import RecordedRow, head_of
from infrastructure.postgres.pool import QueryPool

_NOT_DATA = frozenset({"originator_id", "originator_version", "originator_topic", "timestamp"})
"""In columns of their own."""


@dataclass(frozen=True, slots=True)
class EventEntry:
    """An event as people are shown it.

    Attributes:
        data: its own fields, without what is or stands for personal data; None if this version cannot read it.
    """

    position: Position
    recorded_at: datetime
    type: str
    stream_id: UUID
    version: int
    actor: str
    correlation_id: UUID
    causation_position: Position | None
    trace: str | None
    data: dict[str, Any] | None


class EventQueries:
    """
    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(self, pool: QueryPool) -> None:
        self._pool = pool
        self._codec = EventCodec()

    async def head(self) -> Position:
        """Position of the last event."""
        return await self._pool.ask(head_of)

    async def about(self, registration_id: UUID) -> About:
        """The registration with the claim to its address.

        Raises:
            UnknownRegistration: this is no registration's id.
        """
        rows = await self._pool.ask(lambda connection: events_of_stream(connection, registration_id, limit=1))
        event = self.decode(rows[0]) if rows else None
        if not isinstance(event, BEGINNINGS):
            raise UnknownRegistration
        return About(registration_id, UUID(event.claim_id))

    async def in_order(
        self,
        *,
        after: Position,
        upto: Position,
        limit: int,
        latest: bool = False,
        topics: Sequence[str] = (),
        about: About | None = None,
    ) -> list[RecordedRow]:
        """See `infrastructure.event_store.listing.events_in_order`."""
        return await self._pool.ask(
            lambda connection: events_in_order(
                connection, after=after, upto=upto, limit=limit, latest=latest, topics=topics, about=about
            )
        )

    async def of_registration(self, registration_id: UUID) -> list[RecordedRow]:
        """The events of its own stream.

        Raises:
            UnknownRegistration: this is no registration's id.
        """
        rows = await self._pool.ask(lambda connection: events_of_stream(connection, registration_id))
        if not rows or rows[0].topic not in OF_REGISTRATIONS:
            raise UnknownRegistration
        return rows

    def decode(self, row: RecordedRow) -> AnyEvent | None:
        """The event; None if this version of the service cannot read it."""
        try:
            return self._codec.decode(row.stream_id, row.version, row.topic, row.state)
        except (TopicError, MapperDeserialisationError):
            return None

    async def at(self, positions: Iterable[Position]) -> dict[Position, EventEntry]:
        """The events at these positions, as people are shown them."""
        rows = await self._pool.ask(lambda connection: events_at(connection, list(positions)))
        return {row.position: self.entry(row) for row in rows}

    def entry(self, row: RecordedRow) -> EventEntry:
        """The event as people are shown it."""
        event = self.decode(row)
        data = None
        if event is not None:
            data = {
                name: "hidden" if name in PERSONAL_FIELDS else value
                for name, value in vars(event).items()
                if name not in _NOT_DATA
            }
        return EventEntry(
            row.position,
            row.recorded_at,
            row.topic,
            row.stream_id,
            row.version,
            row.actor,
            row.correlation_id,
            row.causation_position,
            row.trace,
            data,
        )

    def fold(self, rows: Sequence[RecordedRow]) -> Registration:
        """A registration as its first events made it. There must be one, and this version must be able to read them."""
        registration_id = rows[0].stream_id
        loaded = LoadedStreams.of(self._codec, rows).get(Registration, registration_id)
        assert loaded is not None  # noqa: S101 - there is an event
        return loaded
