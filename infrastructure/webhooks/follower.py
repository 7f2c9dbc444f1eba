"""Follows the log for every endpoint of webhooks; one process leads (`followers.leadership.lead`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from application.crash_points import crash_point
from application.integration_events import TOPICS, encode, integration_event
from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog, RecordedRow
from infrastructure.followers.follow import Chore, follow
from infrastructure.followers.leadership import LeaderSession
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import Notifications
from infrastructure.webhooks import records
from infrastructure.webhooks.delivery import FIRST_PAUSE, Delivery, Message, OnAttempt, Posts
from infrastructure.webhooks.records import Standing, TermIsOver

log = structlog.get_logger(__name__)

BATCH_EVENTS: Final = 200

PACE: Final = timedelta(milliseconds=100)
"""Minimum time between two reads at the end of the log: under load, one for many events."""

SAVE: Final = timedelta(milliseconds=200)
"""How often an endpoint's position is saved at most: a crash delivers again what came since."""

LOOK: Final = timedelta(seconds=1)
"""How often the rows are looked at for what operators have done. It keeps the leadership, too."""

_MOST_ENCODED: Final = 2000


class Webhooks:
    """Sends integration events to every endpoint, each at its own pace: one that is away holds up no other.

    At least once: an endpoint's position moves only past what it has confirmed, and a copy has the same id.
    """

    name = "webhooks"

    def __init__(
        self,
        *,
        tail: ReadsLog,
        notifications: Notifications,
        endpoints: Mapping[str, Posts],
        clock: Callable[[], datetime],
        on_attempt: OnAttempt = lambda _: None,
        first_pause: timedelta = FIRST_PAUSE,
    ) -> None:
        self._endpoints = endpoints
        self._notifications = notifications
        self._messages = _Messages(tail)
        self._deliver = partial(Delivery, clock=clock, on_attempt=on_attempt, first_pause=first_pause)

    async def work(self, session: LeaderSession) -> None:
        """Follow until cancelled; see `infrastructure.followers.leadership.LeaderTask`."""
        async with session.turn() as connection:  # all the time: it has the session to itself
            await self._work(connection)

    async def _work(self, connection: Connection) -> None:
        await connection.execute("SET synchronous_commit = off")  # a lost position repeats messages, with the same ids
        await records.begin(connection, list(self._endpoints))
        await records.forget_others(connection, list(self._endpoints))
        running: dict[str, _Running] = {}
        try:
            while True:
                await self._look(connection, running)
                await asyncio.sleep(LOOK.total_seconds())
        finally:
            for one in running.values():
                one.task.cancel()
            await asyncio.gather(*(one.task for one in running.values()), return_exceptions=True)

    async def _look(self, connection: Connection, running: dict[str, _Running]) -> None:
        """Stop what is not to go on, and start what is."""
        found = await records.standings(connection)
        for name, one in list(running.items()):
            standing = found.get(name)
            if one.task.done() or standing is None or standing.term != one.term:
                del running[name]
                one.task.cancel()
                await asyncio.wait({one.task})
                if not one.task.cancelled() and not isinstance(one.task.exception(), TermIsOver):
                    one.task.result()
        for name, calls in self._endpoints.items():
            standing = found.get(name)
            if standing is not None and standing.disabled_at is None and name not in running:
                running[name] = _Running(standing.term, asyncio.create_task(self._run(connection, calls, standing)))

    async def _run(self, connection: Connection, calls: Posts, standing: Standing) -> None:
        """Deliver to one endpoint until its term is over."""
        room = asyncio.Event()
        delivery = self._deliver(calls, standing, on_change=room.set)
        following = _Following(connection, self._messages, self._notifications, delivery, standing, room)
        try:
            await following.run()
        finally:
            await delivery.close()
            with suppress(TermIsOver):
                await following.save()


@dataclass(frozen=True, slots=True)
class _Running:
    """An endpoint that is being delivered to."""

    term: int
    task: asyncio.Task[None]


class _Messages:
    """What the log says, as messages, made once for all endpoints that are at the same place."""

    def __init__(self, tail: ReadsLog) -> None:
        self._tail = tail
        self._made: dict[RecordedRow, Message | None] = {}

    async def read(self, position: Position) -> tuple[list[Message], Position]:
        rows, seen = await self._tail.read(position, BATCH_EVENTS, TOPICS)
        return [message for row in rows if (message := self._message(row)) is not None], seen

    def _message(self, row: RecordedRow) -> Message | None:
        if row not in self._made:
            if len(self._made) >= _MOST_ENCODED:
                self._made.clear()
            event = integration_event(self._tail.decode(row))
            self._made[row] = (
                None
                if event is None
                # Not the id of the event, which has a full stop: in a message's it would be taken for the end of it.
                else Message(row.position, row.stream_id, f"{row.stream_id}-{row.position}", encode(event))
            )
        return self._made[row]


class _Following:
    """The way of one endpoint along the log."""

    def __init__(
        self,
        connection: Connection,
        messages: _Messages,
        notifications: Notifications,
        delivery: Delivery,
        standing: Standing,
        room: asyncio.Event,
    ) -> None:
        self._connection = connection
        self._messages = messages
        self._notifications = notifications
        self._delivery = delivery
        self._saved = standing
        self._room = room

    async def run(self) -> None:
        await follow(
            self._saved.position,
            read=self._read,
            act=self._add,
            wake=self,
            rest=lambda took: max(timedelta(0), PACE - took),
            read_ahead_of=BATCH_EVENTS,
            chores=[Chore(self._chore)],
        )

    async def _read(self, position: Position) -> tuple[Sequence[Message], Position]:
        if self._delivery.full or self._delivery.gone:
            return [], position
        return await self._messages.read(position)

    async def _add(self, messages: Sequence[Message], _: Position, seen: Position) -> None:
        self._delivery.add(list(messages), seen)

    async def _chore(self) -> timedelta | None:
        moved = await self.save()
        if self._delivery.gone:
            await records.disable(self._connection, self._saved.name, "endpoint")
            log.warning(
                "webhook.gone",
                endpoint=self._saved.name,
                hint="it has answered 410, and is not called any more; `registrar webhooks enable` goes on where it was",
            )
            raise TermIsOver(self._saved.name)
        return SAVE if moved or not self._delivery.idle else None

    async def save(self) -> bool:
        """Save how far it is, and how it fares; False if that is saved already.

        Raises:
            TermIsOver: an operator has changed the row.
        """
        standing = self._delivery.standing
        if standing == self._saved:
            return False
        crash_point("webhooks.before_position")
        await records.save(self._connection, standing)
        self._saved = standing
        return True

    @property
    def patience(self) -> timedelta:
        """See `infrastructure.followers.follow.Wakes`."""
        return self._notifications.patience

    async def wait_past(self, who: str, position: Position, *, within: timedelta) -> bool:
        """Return when there is more to read and room for it; see `infrastructure.followers.follow.Wakes`."""
        if not self._delivery.full and not self._delivery.gone:
            return await self._notifications.wait_past(who, position, within=within)
        self._room.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within.total_seconds()):
                await self._room.wait()
            return True
        return False
