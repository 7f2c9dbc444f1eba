"""What followers have put aside, and why. Personal data stays sealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from domain.errors import UnknownRegistration
from entrypoints.queries.events import EventEntry, EventQueries
from infrastructure.event_store.listing import registration_of_stream
from infrastructure.followers.parked_listing import (
    ParkedEvent,
    ParkedStream,
    page_of_parked_streams,
    parked_events,
    parked_streams,
)
from infrastructure.postgres.pool import QueryPool

LONGEST_LIST = 1000
"""Streams, or events of one, that are shown at most, or read at once."""


@dataclass(frozen=True, slots=True)
class RefusedEvent:
    """An event that a follower has not applied, and what refused it; no event for a deadline of the mail saga."""

    parked: ParkedEvent
    event: EventEntry | None


class ParkedQueries:
    """What followers have parked; what copies of read models have is no operator's business.

    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(self, pool: QueryPool) -> None:
        self._pool = pool
        self._events = EventQueries(pool)

    async def streams(self, *, follower: str | None = None, stream_id: UUID | None = None) -> Sequence[ParkedStream]:
        """The parked streams, the one that waits longest first."""
        return await self._pool.ask(
            lambda connection: parked_streams(connection, follower=follower, stream_id=stream_id, limit=LONGEST_LIST)
        )

    async def all_streams(self, *, follower: str | None = None) -> list[ParkedStream]:
        """The parked streams, the one that waits longest first; however many there are."""
        found: list[ParkedStream] = []
        page = await self._page(follower, None)
        while page:
            found += page
            page = await self._page(follower, page[-1])
        return sorted(found, key=lambda one: one.parked_at)

    async def _page(self, follower: str | None, after: ParkedStream | None) -> Sequence[ParkedStream]:
        return await self._pool.ask(
            lambda connection: page_of_parked_streams(connection, follower=follower, after=after, limit=LONGEST_LIST)
        )

    async def stream(self, stream_id: UUID) -> Sequence[RefusedEvent]:
        """Every parked event of a stream.

        Raises:
            UnknownRegistration: no follower has parked it.
        """
        parked = await self._pool.ask(lambda connection: parked_events(connection, stream_id, limit=LONGEST_LIST))
        if not parked:
            raise UnknownRegistration("No follower has parked a stream with this id.")
        entries = await self._events.at({one.position for one in parked if one.position})
        return [RefusedEvent(one, entries.get(one.position)) for one in parked]

    async def registration_of(self, stream_id: UUID) -> UUID | None:
        """The registration whose own stream this is, or its saga's; None: it is another one."""
        return await self._pool.ask(lambda connection: registration_of_stream(connection, stream_id))

    async def followers_of(self, stream_id: UUID, *, follower: str | None = None) -> Sequence[str]:
        """The followers that have parked this stream.

        Args:
            follower: this one alone.

        Raises:
            UnknownRegistration: there is none.
        """
        found = await self.streams(follower=follower, stream_id=stream_id)
        if not found:
            raise UnknownRegistration("No follower has parked a stream with this id.")
        return [one.follower for one in found]
