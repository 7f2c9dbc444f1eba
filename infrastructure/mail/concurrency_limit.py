"""How many calls may be in flight at once, when the other side says "too many" but not how many it takes.

At first it doubles from round to round, like TCP in a slow start, for as long as a round of calls shows that twice as
many at once bring at least a quarter more calls a second; if they do not, it goes back, and tries again after a number
of calls that grows with each attempt in vain. The first "too many" ends that, too; from then on, additive increase,
multiplicative decrease (AIMD): "too many" halves the limit, and a number of successes raises it by one. Who knows how
many calls work at that moment says so instead: then the limit is that many, and each attempt to raise it that fails
makes the next one come later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

RAISE_AFTER: Final = 20
"""Successes at the limit that raise it by one: a server that takes K gets one call too many in 10 K. From 1 to 32 takes
620."""

MOST_RAISE_AFTER: Final = 64 * RAISE_AFTER
"""Maximum, where attempts to raise it fail: a server that takes ten connections in ten minutes refuses them all."""

GAIN: Final = 1.25
"""How many times as many calls a second a doubled limit has to bring. Exim, which delivers the first ten mails of each
session at once, was half as fast with twenty sessions as with five (our measurement)."""

SETTLED: Final = 8
"""Minimum number of calls whose mean duration tells how fast they are."""


class ConcurrencyLimit:
    """Use it as a context manager around a call, and report how the call ended.

    async with limit as generation:
        …
        limit.succeeded(generation)    # or limit.refused(generation)

    First come, first served. The generation separates the calls before and after the latest decrease: a refusal of an
    earlier one has been taken into account already, so many refusals at one moment count once.

    Args:
        most: the limit is never higher.
        start: the initial limit.
        on_change: called with the limit, at first and whenever it changes. Must not raise.
    """

    def __init__(
        self, most: int, *, start: int | None = None, on_change: Callable[[int], None] = lambda _: None
    ) -> None:
        self.limit = most if start is None else min(start, most)
        self.in_flight = 0
        self._exempt = 0
        self._most = most
        self._on_change = on_change
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._generation = 0
        self._successes = 0  # that count towards the next increase
        self._raise_after = RAISE_AFTER
        self._round: _Round | None = _Round()  # while it doubles
        self._doubles = True  # rather than rises by one
        on_change(self.limit)

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn."""
        return len(self._waiting)

    @property
    def _is_free(self) -> bool:
        return self.in_flight - self._exempt < self.limit and self.in_flight < self._most

    async def __aenter__(self) -> int:
        if self._is_free:  # then no call waits
            self.in_flight += 1
            return self._generation
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # it was removed already
                    self._waiting.remove(turn)
            else:  # it was our turn already
                self._leave()
            raise
        return self._generation

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    @contextmanager
    def exempting(self, after: float) -> Iterator[Callable[[], None]]:
        """Around a part of a call: so many seconds after what it yields is called, that call does not count any more.
        There are no more than the maximum in all."""
        timer: asyncio.TimerHandle | None = None
        is_exempt = False

        def exempt() -> None:
            nonlocal is_exempt
            is_exempt = True
            self._exempt += 1
            self._let_in()

        def begin() -> None:
            nonlocal timer
            timer = asyncio.get_running_loop().call_later(after, exempt)

        try:
            yield begin
        finally:
            if timer is not None:
                timer.cancel()
            self._exempt -= is_exempt

    def succeeded(self, generation: int, took: float = 0.0) -> None:
        """
        Args:
            took: seconds.
        """
        if generation != self._generation or self.in_flight - self._exempt < self.limit:
            return
        is_tried = self._round is not None and self._round.before is not None
        if self.limit >= self._most and not is_tried:
            return
        if self._round is not None:
            self._round.note(took)
            if self._round.is_over(self.limit):
                self._judge(self._round)
            return
        self._successes += 1
        if self._successes >= self._raise_after:
            self._successes = 0
            if self._doubles:
                self._round = _Round()
            else:
                self._raised()
                self._set_limit(self.limit + 1)

    def refused(self, generation: int, works: int | None = None) -> None:
        """Too many calls: lower the limit, but always allow one call at a time.

        Args:
            works: how many calls work now, if that is known.
        """
        if generation == self._generation and self.limit > 1:
            self._generation += 1
            self._successes = 0
            self._round, self._doubles = None, False
            if works is None:
                self._set_limit(self.limit // 2)
            else:
                self._raise_in_vain()
                self._set_limit(max(1, min(works, self.limit - 1)))

    def _judge(self, over: _Round) -> None:
        """Double the limit, or go back if that brought too little the last time."""
        if over.before is not None:
            if not over.gained(self.limit):
                self._round = None
                self._raise_in_vain()
                self._set_limit(over.before[0])
                return
            self._raised()
        if self.limit >= self._most:
            self._round = None
            return
        # Those in flight were begun with fewer beside them.
        self._round = _Round(before=(self.limit, over.rate(self.limit)), skipping=self.in_flight - 1)
        self._set_limit(min(2 * self.limit, self._most))

    def _raised(self) -> None:
        self._raise_after = max(RAISE_AFTER, self._raise_after // 2)

    def _raise_in_vain(self) -> None:
        self._raise_after = min(4 * self._raise_after, MOST_RAISE_AFTER)

    def _set_limit(self, limit: int) -> None:
        self.limit = limit
        self._on_change(limit)
        self._let_in()

    def _leave(self) -> None:
        self.in_flight -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._is_free:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.in_flight += 1
                turn.set_result(None)


class _Round:
    """Calls at one limit, and how fast they were."""

    def __init__(self, *, before: tuple[int, float] | None = None, skipping: int = 0) -> None:
        """
        Args:
            before: the limit of the round before, and its calls a second.
            skipping: so many calls are not of this round.
        """
        self.before = before
        self._skipping = skipping
        self._took: list[float] = []

    def note(self, took: float) -> None:
        if self._skipping:
            self._skipping -= 1
        else:
            self._took.append(took)

    def is_over(self, limit: int) -> bool:
        return len(self._took) >= max(SETTLED, limit)

    def rate(self, limit: int) -> float:
        """Calls a second, if so many are always in flight (Little's law)."""
        return limit * len(self._took) / (sum(self._took) or 1e-9)

    def gained(self, limit: int) -> bool:
        """Is it enough faster than the round before, if there was one?"""
        if self.before is None:
            return True
        limit_before, rate_before = self.before
        return self.rate(limit) >= rate_before * (1 + (GAIN - 1) * (limit / limit_before - 1))
