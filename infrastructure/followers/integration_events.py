"""Publishes the integration events: each registration's in order, many at a time, and none is ever skipped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Protocol
from uuid import UUID

import structlog

from application.integration_events import TOPICS, IntegrationEvent, integration_event
from application.ports import BrokerAway, Unavailable
from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog
from infrastructure.followers.follow import follow, keep_leadership
from infrastructure.followers.leadership import LeaderSession, while_touching
from infrastructure.followers.names import INTEGRATION_EVENTS
from infrastructure.followers.positions import position_of, save_position
from infrastructure.postgres.notifications import Notifications

log = structlog.get_logger(__name__)

BATCH_EVENTS = 200
"""Events published without waiting for each other's confirms: those come in milliseconds, and not one by one."""

PACE = timedelta(milliseconds=100)
"""Minimum time between two reads at the end of the log, so that under load one position is saved for many events."""

MAX_PAUSE = timedelta(seconds=30)
"""Between two attempts at an event that a subscriber's full queue refuses: the others get a copy each time."""


class PublishesEvents(Protocol):
    """The broker, as far as this follower needs it."""

    async def publish(self, event: IntegrationEvent) -> None:
        """Return when the broker has confirmed it.

        Raises:
            BrokerAway: it was not confirmed; it may arrive all the same.
            Unavailable: a subscriber's full queue refuses it.
        """

    async def until_up(self) -> None:
        """Return when it makes sense to try again."""


class IntegrationEvents:
    """Follows the log and publishes what concerns other services; one process leads (`followers.leadership.lead`).

    At least once: the position moves only after the broker has confirmed everything before it, and a copy has the
    same id as the first. Events of one registration arrive in order, because each waits for the confirm of the one
    before; those of different registrations may overtake each other by a few. A new follower starts at the beginning of
    the log.

    An event that cannot be published holds up those behind it. Nothing is parked: subscribers get the events in order.
    """

    name = INTEGRATION_EVENTS

    def __init__(self, *, tail: ReadsLog, notifications: Notifications, publisher: PublishesEvents) -> None:
        self._tail = tail
        self._notifications = notifications
        self._publisher = publisher
        self._refused = False

    async def work(self, session: LeaderSession) -> None:
        """Follow until cancelled; see `infrastructure.followers.leadership.LeaderTask`."""
        async with session.turn() as connection:
            await connection.execute("SET synchronous_commit = off")  # a lost position repeats events, of the same ids
            position = await position_of(connection, self.name)
        await follow(
            position,
            read=self._read,
            act=partial(self._advance, session),
            wake=self._notifications,
            rest=lambda took: max(timedelta(0), PACE - took),
            read_ahead_of=BATCH_EVENTS,
            chores=[keep_leadership(session)],
        )

    async def _read(self, position: Position) -> tuple[Sequence[IntegrationEvent], Position]:
        rows, seen = await self._tail.read(position, BATCH_EVENTS, TOPICS)
        return [event for row in rows if (event := integration_event(self._tail.decode(row))) is not None], seen

    async def _advance(
        self, session: LeaderSession, events: Sequence[IntegrationEvent], position: Position, seen: Position
    ) -> None:
        if events:
            await while_touching(session, self._publish(events))
        async with session.turn() as connection:
            await save_position(connection, self.name, position, seen)

    async def _publish(self, events: Sequence[IntegrationEvent]) -> None:
        """Return when the broker has confirmed all of them."""
        self._refused = False
        latest: dict[UUID, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            for event in events:
                before = latest.get(event.subject)
                latest[event.subject] = group.create_task(self._publish_until_confirmed(event, before))

    async def _publish_until_confirmed(self, event: IntegrationEvent, before: asyncio.Task[None] | None) -> None:
        """Publish an event after the one before it, however long the broker is away."""
        if before is not None:
            await before
        pause = timedelta(milliseconds=200)
        while True:
            try:
                await self._publisher.publish(event)
                return
            except BrokerAway:
                wait: Callable[[], Awaitable[None]] = self._publisher.until_up
            except Unavailable as refused:
                self._note_refusal(event)
                wait = partial(asyncio.sleep, max(refused.retry_after, pause.total_seconds()))
                pause = min(pause * 2, MAX_PAUSE)
            await wait()

    def _note_refusal(self, event: IntegrationEvent) -> None:
        if not self._refused:  # once per batch, not once per event and attempt
            log.warning(
                "integration_events.refused",
                position=event.data.position,
                hint="a subscriber's queue is full and refuses more: empty it, or have it drop or dead-letter the oldest",
            )
        self._refused = True
