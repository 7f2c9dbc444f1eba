"""The relay: hands requested mails on, many at a time, and saves the position up to which all of them are safe."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

import structlog

from application.crash_points import crash_point
from application.ports import BrokerAway, MailRequest, MailServersAway, Unavailable, WantedMail
from domain.mail_outcome import MailKind
from domain.mail_saga import MailSaga
from domain.recorded import AnyEvent, Position
from domain.registration import Registration
from infrastructure.event_store.reader import ReadsLog, RecordedRow
from infrastructure.followers.follow import Chore, follow, keep_leadership
from infrastructure.followers.leadership import LeaderSession
from infrastructure.followers.names import RELAY
from infrastructure.followers.positions import position_of, save_position
from infrastructure.followers.turns import Turns
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import REQUESTS, Notifications
from infrastructure.telemetry.trace_context import DOING

log = structlog.get_logger(__name__)

MAX_UNDER_WAY = 500
"""Mails handed on but not yet safe: one that hangs delays the position, not the mails behind it."""

BATCH_REQUESTS = 200
"""Events that are read at a time: issues of codes, and requests of their mails."""

_TOPICS = (Registration.OtpIssued.TOPIC, MailSaga.MailRequested.TOPIC)

SAVE_INTERVAL = timedelta(milliseconds=100)
"""How often the position is saved at most: a crash repeats what came since, without effect."""

LEFT_FOR = timedelta(milliseconds=50)
"""For so long since the last look, nothing else that is appended is a reason for another one: a saga that leads in this
process tells of its requests apart (`REQUESTS`)."""


class Relay:
    """Follows the saga's requests; one process leads (`infrastructure.followers.leadership.lead`).

    `hand_over` returns when the request is safe: its outcome recorded (in process), or confirmed by the broker. The
    position never passes a request that is not, so a crash repeats requests and loses none.
    """

    name = RELAY

    def __init__(
        self,
        *,
        tail: ReadsLog,
        notifications: Notifications,
        hand_over: Callable[[MailRequest], Awaitable[None]],
        until_ready: Callable[[], Awaitable[None]],
        turns: Turns,
        at_once: int = 32,
        finish_within: timedelta = timedelta(seconds=15),
        give_back: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """
        Args:
            until_ready: returns when handing over makes sense again, after `MailServersAway` or `BrokerAway`.
            turns: when each request may be handed on.
            at_once: hand-overs under way at the same time.
            finish_within: how long a stop waits for them: a mail cut off in the middle may go out twice.
            give_back: called when this process no longer leads and no hand-over is under way: the next leader would
                wait for the claims that they held.
        """
        self._tail = tail
        self._notifications = notifications
        self._hand_over = hand_over
        self._until_ready = until_ready
        self._turns = turns
        self._gate = asyncio.Semaphore(at_once)
        self._finish_within = finish_within
        self._give_back = give_back
        self._handing_over: set[asyncio.Task[None] | None] = set()
        self._room = asyncio.Event()
        self._under_way: dict[Position, asyncio.Task[None]] = {}  # in order
        self._saved: Position = 0
        self._read_up_to: Position = 0
        self._is_behind = False
        self._stopping = False

    async def work(self, session: LeaderSession) -> None:
        """Follow until cancelled; see `infrastructure.followers.leadership.LeaderTask`."""
        self._stopping = False
        async with session.turn() as connection:
            await connection.execute("SET synchronous_commit = off")  # a lost position repeats requests: it is harmless
            self._saved = self._read_up_to = await position_of(connection, self.name)
            await self._turns.begin(connection)
        try:
            await follow(
                self._saved,
                read=self._read,
                act=self._start_all,
                wake=self,
                chores=[Chore(partial(self._save, session)), keep_leadership(session)],
            )
        finally:
            await self._stop()

    async def _read(self, position: Position) -> tuple[Sequence[RecordedRow], Position]:
        self._start_those_in_turn()
        if self._full or self._turns:
            return [], position
        rows, seen = await self._tail.read(position, BATCH_REQUESTS, _TOPICS)
        self._is_behind = seen >= position + BATCH_REQUESTS
        return rows, seen

    async def _start_all(self, rows: Sequence[RecordedRow], _: Position, seen: Position) -> None:
        for row in rows:
            match self._event_of(row):
                case Registration.OtpIssued() as issue:
                    if issue.withheld:
                        self._turns.withhold((row.stream_id, issue.serial))
                case MailSaga.MailRequested() as request:
                    self._turns.add(row, (UUID(request.registration_id), request.serial))
                case None if row.topic == MailSaga.MailRequested.TOPIC:
                    self._turns.add(row, None)
        self._read_up_to = seen
        self._start_those_in_turn()

    def _event_of(self, row: RecordedRow) -> AnyEvent | None:
        try:
            return self._tail.decode(row).event
        except Exception:  # noqa: BLE001 - raised again where it is handed over, which is told in the log
            return None

    def _start_those_in_turn(self) -> None:
        for row in self._turns.take():
            crash_point("relay.batch")
            self._start(row)

    @property
    def _begun(self) -> Position:
        """The position up to which requests have had their turn."""
        return self._read_up_to if self._turns.first is None else self._turns.first - 1

    async def _save(self, session: LeaderSession) -> timedelta | None:
        """Save the position up to which everything is safe; returns how long until the next save."""
        async with session.turn() as connection:
            return await self._save_in_turn(connection)

    async def _save_in_turn(self, connection: Connection) -> timedelta | None:
        begun = self._begun
        safe = next(iter(self._under_way), begun + 1) - 1
        moved = safe > self._saved
        if moved:
            crash_point("relay.before_cursor")
            await save_position(connection, self.name, self._saved, safe)
            self._saved = safe
        await self._turns.note(connection, begun)
        return SAVE_INTERVAL if moved or self._under_way or self._turns.paced else None

    @property
    def _full(self) -> bool:
        return len(self._under_way) >= MAX_UNDER_WAY

    @property
    def patience(self) -> timedelta:
        """See `infrastructure.followers.follow.Wakes`."""
        return self._notifications.patience

    async def wait_past(self, who: str, position: Position, *, within: timedelta) -> bool:
        """Return when there is more to read and room for it, or it is the turn of one that waits; see
        `infrastructure.followers.follow.Wakes`."""
        if self._turns:
            await asyncio.sleep(min(within, self._turns.next_in).total_seconds())
            return True
        if not self._full:
            if self._is_behind:  # the last batch was full: there may be more at once
                return True
            # The saga of this process says when it has requested mails; one that leads elsewhere shows in the log.
            if await self._notifications.wait_past(REQUESTS, position, within=min(within, LEFT_FOR)):
                return True
            return await self._notifications.wait_past(who, position, within=max(timedelta(0), within - LEFT_FOR))
        self._room.clear()
        try:
            async with asyncio.timeout(within.total_seconds()):
                await self._room.wait()
        except TimeoutError:
            return False
        return True

    async def _stop(self) -> None:
        """Let what is being handed over finish; the rest will be read again."""
        self._stopping = True
        tasks = set(self._under_way.values())
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

    def _start(self, row: RecordedRow) -> None:
        def end(task: asyncio.Task[None]) -> None:
            self._under_way.pop(row.position, None)
            self._room.set()
            error = None if task.cancelled() else task.exception()
            if error is not None:
                # A bug. Nothing is lost by going on: the saga requests the mail again until there is an outcome.
                log.error(
                    "relay.gave_up",
                    position=row.position,
                    error=type(error).__name__,
                    exc_info=error,
                    hint="this is a bug; report it",
                )

        task = self._under_way[row.position] = asyncio.create_task(self._hand_over_until_safe(row))
        task.add_done_callback(end)

    async def _hand_over_until_safe(self, row: RecordedRow) -> None:
        """Hand a request over, however long the database, the broker or the mail servers are away."""
        request = self._request(row)
        DOING.set(request)
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
                except Unavailable as away:
                    wait = partial(asyncio.sleep, max(away.retry_after, pause.total_seconds()))
                    pause = min(pause * 2, timedelta(seconds=10))
                finally:
                    self._handing_over.discard(task)
            if self._stopping:
                return  # the position is before it: it will be read again
            await wait()

    def _request(self, row: RecordedRow) -> MailRequest:
        recorded = self._tail.decode(row)
        event = recorded.event
        assert isinstance(event, MailSaga.MailRequested)  # noqa: S101 - only these have a turn
        return MailRequest(
            wanted=WantedMail(
                UUID(event.registration_id), event.serial, MailKind(event.kind), requested_at=event.timestamp
            ),
            position=recorded.position,
            correlation_id=recorded.correlation_id,
            trace=recorded.trace,
        )
