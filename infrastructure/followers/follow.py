"""The loop of every follower of the log: read, act, run the chores, wait for more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Any, Generic, Never, Protocol, TypeVar

from domain.recorded import Position
from infrastructure.followers.leadership import TOUCH, LeaderSession
from infrastructure.postgres.notifications import HEAD
from infrastructure.ticks import after, until_tick

E = TypeVar("E")


class Wakes(Protocol):
    """Wakes a follower when there is more to read, as `infrastructure.postgres.notifications.Notifications` does."""

    @property
    def patience(self) -> timedelta:
        """How long to wait at most, because an announcement may be lost."""
        ...

    async def wait_past(self, who: str, position: Position, *, within: timedelta) -> bool:
        """Return when `who` is beyond `position`; False if that did not happen in time."""
        ...


@dataclass(frozen=True, slots=True)
class Chore:
    """Recurring work beside the log, done between two batches.

    Attributes:
        run: returns how long until it is to run again; None: not before the next batch.
        first: how long until it runs for the first time.
    """

    run: Callable[[], Awaitable[timedelta | None]]
    first: timedelta = timedelta(0)


def keep_leadership(session: LeaderSession) -> Chore:
    """The chore of every leader that does not use its session often enough anyway."""

    async def run() -> timedelta:
        await session.touch()
        return until_tick(TOUCH)

    return Chore(run, first=until_tick(TOUCH))


def no_rest(_: timedelta) -> timedelta:
    return timedelta(0)


BUSY_PACE = timedelta(milliseconds=25)
"""Least time between the starts of two batches while many events come that somebody waits for: several registrations
share a batch, and with it all that follows. A turn for each takes three times the CPU of a registration's share of a
large batch (docs/performance.md)."""

BUSY_RATE = 200.0
"""Such events a second from which on it is so: two for each registration. Below, each is handled at once."""


@dataclass(frozen=True, slots=True)
class Linger(Generic[E]):
    """Leaves events that nobody waits for until there are several, so as to be free for one that somebody waits for;
    and where many of those come, has them share batches (`BUSY_PACE`).

    Attributes:
        until: since a batch began, how long they are left.
        is_urgent: does somebody wait for this event?
    """

    until: timedelta
    is_urgent: Callable[[E], bool]


async def follow(
    position: Position,
    *,
    read: Callable[[Position], Coroutine[Any, Any, tuple[Sequence[E], Position]]],
    act: Callable[[Sequence[E], Position, Position], Awaitable[None]],
    wake: Wakes,
    rest: Callable[[timedelta], timedelta] = no_rest,
    linger: Linger[E] | None = None,
    read_ahead_of: float = inf,
    chores: Sequence[Chore] = (),
) -> Never:
    """Follow the log from `position` until cancelled, or until something goes wrong.

    Args:
        read: returns what comes after a position, and the position up to which that is complete.
        act: handles it, and sees to it that the position is saved. It is called with what was read, the position before
            and the one after, which is always greater.
        rest: returns how long to rest at the end of the log, given how long `act` took.
        linger: what may be left for longer than that.
        read_ahead_of: from so many events on, the next batch is read while `act` handles this one.
        chores: one of them must use the session of a leader (`infrastructure.followers.leadership.lead`) every few
            seconds, as `keep_leadership` does.
    """
    loop = asyncio.get_running_loop()
    timetable = _Timetable(chores)
    rush = Rush(linger)
    ahead: asyncio.Task[tuple[Sequence[E], Position]] | None = None
    try:
        while True:
            events, seen = await (ahead or read(position))
            ahead = None
            if seen - position >= read_ahead_of:
                ahead = asyncio.create_task(read(seen))
                await asyncio.sleep(0)  # so that it is asked for at once, and the answer there when `act` waits
            if seen > position:
                started = loop.time()
                await act(events, position, seen)
                position = seen
                timetable.wake_idle()
                if ahead is None:
                    took = timedelta(seconds=loop.time() - started)
                    if pause := max(rest(took), rush.pace(events, started) - took):
                        await asyncio.sleep(pause.total_seconds())
                    if linger is not None:
                        until = started + linger.until.total_seconds()
                        await _until_urgent(read, linger.is_urgent, wake, position, until)
            await timetable.run_due()
            if ahead is None:
                await _until_there_may_be_more(wake, position, timetable)
    finally:
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)


class Rush(Generic[E]):
    """Knows whether many events come that somebody waits for."""

    def __init__(self, linger: Linger[E] | None) -> None:
        self._is_urgent = None if linger is None else linger.is_urgent
        self._before = -inf

    def pace(self, events: Sequence[E], started: float) -> timedelta:
        """The least time until the next batch starts.

        Args:
            events: of the one that has started then, by the event loop's clock.
        """
        urgent = 0 if self._is_urgent is None else sum(map(self._is_urgent, events))
        if not urgent:
            return timedelta(0)
        within, self._before = started - self._before, started
        return BUSY_PACE if urgent > BUSY_RATE * within else timedelta(0)


async def _until_urgent(
    read: Callable[[Position], Awaitable[tuple[Sequence[E], Position]]],
    is_urgent: Callable[[E], bool],
    wake: Wakes,
    position: Position,
    until: float,
) -> None:
    """Wait for an urgent event after a position, or until then, by the event loop's clock."""
    loop = asyncio.get_running_loop()
    while (left := until - loop.time()) > 0 and await wake.wait_past(HEAD, position, within=timedelta(seconds=left)):
        events, seen = await read(position)
        if seen == position or any(map(is_urgent, events)):  # or what was announced is not true
            return
        position = seen


async def _until_there_may_be_more(wake: Wakes, position: Position, timetable: _Timetable) -> None:
    """Wait for an announcement, or for as long as patience lasts without one; the chores go on meanwhile."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while (left := timedelta(seconds=after(begun, wake.patience) - loop.time())) > timedelta(0):
        if await wake.wait_past(HEAD, position, within=min(left, timetable.until_next())):
            return
        await timetable.run_due()


class _Timetable:
    """When each chore is due, by the event loop's clock."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._now = asyncio.get_running_loop().time
        self._due = {chore: self._now() + chore.first.total_seconds() for chore in chores}

    def wake_idle(self) -> None:
        """There was a batch: the chores that waited for one are due."""
        now = self._now()
        self._due = {chore: now if due == inf else due for chore, due in self._due.items()}

    async def run_due(self) -> None:
        for chore, due in self._due.items():
            if self._now() >= due:
                again_in = await chore.run()
                self._due[chore] = inf if again_in is None else self._now() + again_in.total_seconds()

    def until_next(self) -> timedelta:
        """How long until a chore is due: from a millisecond, so that time passes, to a day."""
        next_due = min(self._due.values(), default=inf) - self._now()
        return timedelta(seconds=min(max(0.001, next_due), 86400.0))
