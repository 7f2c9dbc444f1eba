"""The relay: hands requested mails on, many at a time, and remembers how far all of them are safe."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from uuid import UUID

import structlog

from application.crash_points import crash_point
from application.ports import BrokerAway, Conflict, MailRequest, MailServersAway, Unavailable
from domain.mail_saga import MailSaga
from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog, RecordedRow
from infrastructure.followers.projector import position_of, save_position
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import LOG, Announcements

log = structlog.get_logger(__name__)

WINDOW = 500
"""Mails handed on but not yet safe: one that hangs delays the position, not the mails behind it."""

READ = 200

SAVE = timedelta(milliseconds=100)
"""How often the position is saved while hand-overs are under way: a crash repeats what came since, without effect."""

TOUCH = timedelta(seconds=1)
"""How often the session that holds the leadership is used, at least."""


class Relay:
    """Follows the saga's requests; one leads (`infrastructure.followers.projector.lead`).

    `hand_over` returns when the request is safe: its outcome recorded (in process), or confirmed by the broker. The
    position never passes a request that is not, so a crash repeats requests and loses none.
    """

    name = "relay"

    def __init__(
        self,
        *,
        tail: ReadsLog,
        announcements: Announcements,
        hand_over: Callable[[MailRequest], Awaitable[None]],
        until_ready: Callable[[], Awaitable[None]],
        at_once: int = 32,
        finish_within: timedelta = timedelta(seconds=15),
        give_back: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """
        Args:
            until_ready: returns when handing over makes sense again, after `MailServersAway` or `BrokerAway`.
            at_once: hand-overs under way at the same time.
            finish_within: how long a stop waits for them: a mail cut off in the middle may go out twice.
            give_back: called when it leads no more and none is under way: the next leader waits for what they held.
        """
        self._tail = tail
        self._announcements = announcements
        self._hand_over = hand_over
        self._until_ready = until_ready
        self._gate = asyncio.Semaphore(at_once)
        self._finish_within = finish_within
        self._give_back = give_back
        self._handing_over: set[asyncio.Task[None] | None] = set()
        self._room = asyncio.Event()
        self._stopping = False

    async def work(self, connection: Connection) -> None:
        """Follow until cancelled; see `infrastructure.followers.projector.Leading`."""
        self._stopping = False
        await connection.execute("SET synchronous_commit = off")  # a lost position repeats, and repeats are harmless
        saved = read_up_to = await position_of(connection, self.name)
        loop = asyncio.get_running_loop()
        touched = loop.time()
        under_way: dict[Position, asyncio.Task[None]] = {}  # in order
        try:
            while True:
                if len(under_way) < WINDOW:
                    rows, read_up_to = await self._tail.read(read_up_to, READ, (MailSaga.MailRequested.TOPIC,))
                    for row in rows:
                        crash_point("relay.batch")
                        self._begin(row, under_way)
                safe = next(iter(under_way), read_up_to + 1) - 1
                if safe > saved and (not under_way or loop.time() >= touched + SAVE.total_seconds()):
                    crash_point("relay.before_cursor")
                    await save_position(connection, self.name, saved, safe)
                    saved, touched = safe, loop.time()
                elif loop.time() >= touched + TOUCH.total_seconds():
                    await connection.execute("SELECT 1")  # is the leadership still ours?
                    touched = loop.time()
                await self._wait(under_way, read_up_to, within=SAVE if under_way or safe > saved else TOUCH)
        finally:
            await self._stop(under_way)

    async def _wait(
        self, under_way: dict[Position, asyncio.Task[None]], read_up_to: Position, *, within: timedelta
    ) -> None:
        """Until there is more to read and room for it, or the time has passed."""
        if len(under_way) < WINDOW:
            await self._announcements.beyond(LOG, read_up_to, within=within)
            return
        self._room.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within.total_seconds()):
                await self._room.wait()

    async def _stop(self, under_way: dict[Position, asyncio.Task[None]]) -> None:
        """Let what is being handed over finish; the rest will be read again."""
        self._stopping = True
        tasks = set(under_way.values())
        finishing = {task for task in tasks if task in self._handing_over}
        for task in tasks - finishing:
            task.cancel()
        if finishing:
            _, late = await asyncio.wait(finishing, timeout=self._finish_within.total_seconds())
            for task in late:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._give_back is not None:
            await self._give_back()

    def _begin(self, row: RecordedRow, under_way: dict[Position, asyncio.Task[None]]) -> None:
        def end(task: asyncio.Task[None]) -> None:
            del under_way[row.position]
            self._room.set()
            error = None if task.cancelled() else task.exception()
            if error is not None:
                # A bug. Nothing is lost by going on: the saga asks for the mail again until it hears of an outcome.
                log.error(
                    "relay.gave_up",
                    position=row.position,
                    error=type(error).__name__,
                    exc_info=error,
                    hint="this is a bug; report it",
                )

        task = under_way[row.position] = asyncio.create_task(self._see_through(row))
        task.add_done_callback(end)

    async def _see_through(self, row: RecordedRow) -> None:
        """Hand a request over, however long the world is away."""
        request = self._request(row)
        pause = timedelta(milliseconds=200)
        task = asyncio.current_task()
        while True:
            async with self._gate:
                self._handing_over.add(task)
                try:
                    await self._hand_over(request)
                    return
                except (MailServersAway, BrokerAway):
                    wait: Callable[[], Awaitable[None]] = self._until_ready
                except (Unavailable, Conflict) as away:
                    retry_after = away.retry_after if isinstance(away, Unavailable) else 0.0
                    wait = partial(asyncio.sleep, max(retry_after, pause.total_seconds()))
                    pause = min(pause * 2, timedelta(seconds=10))
                finally:
                    self._handing_over.discard(task)
            if self._stopping:
                return  # the position is before it: it will be read again
            await wait()

    def _request(self, row: RecordedRow) -> MailRequest:
        recorded = self._tail.decode(row)
        event = recorded.event
        assert isinstance(event, MailSaga.MailRequested)  # noqa: S101 - only this topic is read
        return MailRequest(
            registration_id=UUID(event.registration_id),
            serial=event.serial,
            kind=event.kind,
            requested_at=event.timestamp,
            position=recorded.position,
            correlation_id=recorded.correlation_id,
            trace=recorded.trace,
        )
