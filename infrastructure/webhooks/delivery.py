"""Delivers events to one endpoint: each registration's in order, many registrations at a time, and none is skipped.

An event that is not taken holds up its own registration, and is tried again, less and less often, for ever. The others
go on, up to `WINDOW` events beyond it: then the endpoint waits as a whole, because what is delivered beyond its
position is delivered again after a restart.

While an endpoint takes nothing at all, one call at a time finds out whether it does again. With the first 2xx
everything goes on at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal, Protocol
from uuid import UUID

import structlog

from domain.recorded import Position
from infrastructure.webhooks.calls import NotDelivered
from infrastructure.webhooks.records import Standing

log = structlog.get_logger(__name__)

AT_ONCE: Final = 64
"""Calls of one endpoint under way at the same time."""

WINDOW: Final = 1000
"""Events beyond the position that are delivered, under way or waiting."""

FIRST_PAUSE: Final = timedelta(seconds=1)
LONGEST_PAUSE: Final = timedelta(minutes=30)
"""Between two tries: doubled each time, from the first to the longest, give or take a fifth."""

STEADY: Final = timedelta(seconds=50)
STEADY_TRIES: Final = 21
"""Until so many tries have failed, which takes ten minutes or more, it is not doubled beyond this: a try a minute.
Most outages are restarts, and an application that is back wants to hear at once."""

SOON: Final = timedelta(minutes=1)
"""What has failed is tried again at the latest so long after the endpoint has taken something else."""

FINISH: Final = timedelta(seconds=5)
"""How long a stop waits for calls that are under way."""

ALL_FAIL: Final = 5
"""Registrations whose events have failed since the last success: then it is the endpoint, and not the events."""

GONE: Final = 410
"""An answer by which an endpoint asks not to be called any more (Standard Webhooks)."""

_ABOUT_THE_ENDPOINT: Final = frozenset({429, 503})
"""Statuses whose `Retry-After` is about everything that is sent; with another one it is about this event."""

OnAttempt = Callable[[Literal["delivered", "failed"]], None]


class Posts(Protocol):
    """An endpoint, as `infrastructure.webhooks.calls.Calls` calls it."""

    @property
    def where(self) -> str: ...

    async def post(self, message_id: str, body: bytes) -> None:
        """
        Raises:
            NotDelivered: it was not confirmed.
        """

    def drop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Message:
    """An integration event on its way.

    Attributes:
        id: the same at every endpoint and in every try.
    """

    position: Position
    registration_id: UUID
    id: str
    body: bytes


def pause_after(failures: int, first: timedelta = FIRST_PAUSE) -> timedelta:
    """How long to wait for the next try when so many have failed; not twice the same."""
    steady = min(first * 2.0 ** min(failures - 1, 30), STEADY)
    pause = min(steady * 2.0 ** min(max(0, failures - STEADY_TRIES), 30), LONGEST_PAUSE)
    return pause * random.uniform(0.8, 1.2)  # noqa: S311 - so that not all come back at once


@dataclass(slots=True)
class _Lane:
    """The messages of one registration, in order: the first is under way, or waits for its next try."""

    messages: deque[Message] = field(default_factory=deque)
    failures: int = 0
    timer: asyncio.TimerHandle | None = None
    due_at: datetime | None = None


class Delivery:
    """What is under way to one endpoint.

    Attributes:
        gone: it has asked not to be called any more.
        delivered_up_to: the position up to which everything is delivered.
    """

    def __init__(
        self,
        calls: Posts,
        standing: Standing,
        *,
        clock: Callable[[], datetime],
        on_attempt: OnAttempt = lambda _: None,
        on_change: Callable[[], None] = lambda: None,
        first_pause: timedelta = FIRST_PAUSE,
    ) -> None:
        """
        Args:
            standing: what is known of the endpoint, and where to go on.
            on_change: called when there may be room, or something to save.
        """
        self.gone = False
        self._calls = calls
        self._clock = clock
        self._on_attempt = on_attempt
        self._on_change = on_change
        self._first_pause = first_pause
        self._begun = self._latest = standing
        self._delivered_at = standing.delivered_at
        self._read_up_to = standing.position
        self._added = 0
        self._waiting: dict[Position, int] = {}  # what is not delivered yet, in order: the how manieth it is
        self._lanes: dict[UUID, _Lane] = {}
        self._ready: deque[UUID] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._failing: dict[UUID, datetime] = {}  # since when, in order
        self._failed: set[UUID] = set()  # since the last success
        self._rests = 0
        self._rest: asyncio.TimerHandle | None = None
        self._closed = False
        if standing.retry_at is not None and (left := standing.retry_at - clock()) > timedelta(0):
            self._rest_for(left)

    # --- For the follower -----------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """There is no room: something has to be delivered first."""
        return bool(self._waiting) and self._added - next(iter(self._waiting.values())) >= WINDOW

    @property
    def idle(self) -> bool:
        """Everything that was read is delivered."""
        return not self._waiting

    @property
    def delivered_up_to(self) -> Position:
        return next(iter(self._waiting), self._read_up_to + 1) - 1

    @property
    def standing(self) -> Standing:
        """How the endpoint fares, to be saved."""
        position, since = self.delivered_up_to, next(iter(self._failing.values()), None)
        if self._waiting and position <= self._begun.position and self._begun.failing_since is not None:
            since = self._begun.failing_since  # what held it up before is not delivered yet
        due = [at for one in self._failing if (at := self._lanes[one].due_at) is not None]
        found = replace(
            self._latest,
            position=position,
            delivered_at=self._delivered_at,
            failing_since=since,
            next_try_at=min(due, default=None),
        )
        return found if since is not None else replace(found, failure=None, failures=0)

    def add(self, messages: list[Message], read_up_to: Position) -> None:
        """Deliver what has been read up to a position."""
        for message in messages:
            self._waiting[message.position] = self._added
            self._added += 1
            lane = self._lanes.get(message.registration_id)
            if lane is None:
                lane = self._lanes[message.registration_id] = _Lane()
                self._ready.append(message.registration_id)
            lane.messages.append(message)
        self._read_up_to = read_up_to
        self._start()

    async def close(self) -> None:
        """Let what is under way finish, for a moment; what does not is delivered again."""
        self._closed = True
        for timer in (self._rest, *(lane.timer for lane in self._lanes.values())):
            if timer is not None:
                timer.cancel()
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=FINISH.total_seconds())
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._calls.drop()

    # --- Calls ----------------------------------------------------------------------------------

    @property
    def _takes_nothing(self) -> bool:
        return len(self._failed) >= ALL_FAIL

    def _start(self) -> None:
        """Begin with as many calls as may be under way."""
        at_once = 1 if self._takes_nothing else AT_ONCE
        while self._ready and len(self._under_way) < at_once and not (self._rest or self._closed or self.gone):
            registration_id = self._ready.popleft()
            task = asyncio.create_task(self._call(registration_id))
            self._under_way.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook.failed", error=type(error).__name__, exc_info=error, hint="this is a bug; report it")
        self._start()
        if self.gone or not self.full:
            self._on_change()

    async def _call(self, registration_id: UUID) -> None:
        """Try to deliver the first message of a registration."""
        lane = self._lanes[registration_id]
        message = lane.messages[0]
        probes = self._takes_nothing
        try:
            await self._calls.post(message.id, message.body)
        except NotDelivered as failed:
            self._note_failure(registration_id, failed, probes=probes)
        except Exception:
            # A bug of ours. Nothing is lost: it is tried again like what the endpoint has refused.
            self._note_failure(registration_id, NotDelivered("a bug of ours"), probes=probes)
            raise
        else:
            self._note_success(registration_id)

    def _note_success(self, registration_id: UUID) -> None:
        lane = self._lanes[registration_id]
        del self._waiting[lane.messages.popleft().position]
        if lane.failures:
            lane.failures = 0
            self._failing.pop(registration_id, None)
        if lane.messages:
            self._ready.append(registration_id)
        else:
            del self._lanes[registration_id]
        if self._failed:
            self._take_up(registration_id)
        self._delivered_at = self._clock()
        self._on_attempt("delivered")

    def _take_up(self, taken: UUID) -> None:
        """Something was taken, for the first time since there were failures: try again what has failed."""
        others, took_nothing = self._failed - {taken}, self._takes_nothing
        self._failed.clear()
        self._rests = 0
        if self._rest is None:
            self._latest = replace(self._latest, retry_at=None)
        if not self._failing:
            self._latest = replace(self._latest, failure=None, failures=0)
        if took_nothing:
            log.info("webhook.takes_again", endpoint=self._begun.name)
            others |= self._lanes.keys()
        loop = asyncio.get_running_loop()
        for other in others:
            lane = self._lanes.get(other)
            if lane is not None and lane.timer is not None:
                left = timedelta(seconds=lane.timer.when() - loop.time())
                lane.timer.cancel()
                self._try_again(other, min(left, timedelta(0) if took_nothing else SOON))

    def _note_failure(self, registration_id: UUID, failed: NotDelivered, *, probes: bool) -> None:
        """Have it tried again later, and the whole endpoint, if it takes nothing or asks for a rest."""
        lane = self._lanes[registration_id]
        lane.failures += 1
        self._failing.setdefault(registration_id, self._clock())
        if not self._takes_nothing:
            self._failed.add(registration_id)
        self._latest = replace(self._latest, failure=failed.failure, failures=self._latest.failures + 1)
        self._on_attempt("failed")
        self.gone = self.gone or failed.status == GONE
        pause = pause_after(lane.failures, self._first_pause)
        if failed.retry_after is not None:
            pause = max(failed.retry_after, pause)
        if failed.retry_after is not None and failed.status in _ABOUT_THE_ENDPOINT:
            self._rest_for(pause)
            self._ready.append(registration_id)  # others first: it may be this one that is refused
        elif self._takes_nothing:
            if probes or not self._rests:
                self._rests += 1
                pause = pause_after(self._rests, self._first_pause)
                self._rest_for(pause)
            self._ready.appendleft(registration_id)
        else:
            self._try_again(registration_id, pause)
        self._say(failed, pause)

    def _say(self, failed: NotDelivered, pause: timedelta) -> None:
        """Once for each time that the number of failures has doubled: an endpoint that is away for days is one fact."""
        failures = self._latest.failures
        if failures & (failures - 1) == 0:
            log.warning(
                "webhook.not_delivered",
                endpoint=self._begun.name,
                webhook=self._calls.where,
                failure=failed.failure,
                failures=failures,
                again_in=round(pause.total_seconds(), 1),
                hint=f"{failed.advice} Nothing is lost; `registrar webhooks list` shows how far it is; once a call of"
                " `registrar webhooks test` is taken, it goes on at once.".strip(),
            )

    def _try_again(self, registration_id: UUID, pause: timedelta) -> None:
        """Try the registration's first message again, after so long."""
        lane = self._lanes[registration_id]
        lane.due_at = self._clock() + pause
        lane.timer = asyncio.get_running_loop().call_later(pause.total_seconds(), self._due, registration_id)

    def _due(self, registration_id: UUID) -> None:
        lane = self._lanes[registration_id]
        lane.timer = lane.due_at = None
        self._ready.append(registration_id)
        self._start()

    def _rest_for(self, pause: timedelta) -> None:
        """Call nothing for so long, or for longer if that was said before."""
        loop = asyncio.get_running_loop()
        until = loop.time() + pause.total_seconds()
        if self._rest is None or self._rest.when() < until:
            if self._rest is not None:
                self._rest.cancel()
            self._rest = loop.call_at(until, self._rested)
            self._latest = replace(self._latest, retry_at=self._clock() + pause)

    def _rested(self) -> None:
        self._rest = None
        self._latest = replace(self._latest, retry_at=None)
        self._start()
