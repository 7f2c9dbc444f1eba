"""The log itself: its events in order, and one registration as it was at some time. Personal data stays sealed."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from eventsourcing.persistence import MapperDeserialisationError
from eventsourcing.utils import TopicError

from domain.errors import UnknownRegistration
from domain.recorded import AnyEvent, Position
from domain.registration import Registration
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.listing import About, events_in_order, events_of_stream
from infrastructure.event_store.loader import LoadedStreams
from infrastructure.event_store.reader import RecordedRow, head_of
from infrastructure.postgres.pool import QueryPool


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
        if not isinstance(event, Registration.UserRegistered):
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
        if not rows or rows[0].topic != Registration.UserRegistered.TOPIC:
            raise UnknownRegistration
        return rows

    def decode(self, row: RecordedRow) -> AnyEvent | None:
        """The event; None if this version of the service cannot read it."""
        try:
            return self._codec.decode(row.stream_id, row.version, row.topic, row.state)
        except (TopicError, MapperDeserialisationError):
            return None

    def fold(self, rows: Sequence[RecordedRow]) -> Registration:
        """A registration as its first events made it. There must be one, and this version must be able to read them."""
        registration_id = rows[0].stream_id
        loaded = LoadedStreams.of(self._codec, rows).get(Registration, registration_id)
        assert loaded is not None  # noqa: S101 - there is an event
        return loaded
