"""How many calls may be in flight at once, when the other side says "too many" but not how many it takes.

As TCP does it: a slow start, in which each call that succeeds while the limit is reached raises it by one, so it
doubles with each round, until calls take twice as long as at first, so that more of them bring nothing (as in HyStart,
RFC 9406); from then, or from the first "too many" on, additive increase, multiplicative decrease (AIMD): "too many"
halves the limit, and a number of successes raises it by one. Who knows how many calls work at that moment says so
instead: then the limit is that many, and each attempt to raise it that fails makes the next one come later.
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


SLOWER: Final = 2.0
"""Times as long as the first calls: what further calls at once do to a machine that is busy already."""

SETTLED: Final = 8
"""Calls whose mean duration is compared: the first ones', and then a moving mean with that weight."""


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
        self._starting = True
        self._first: list[float] = []
        self._mean = 0.0
        self._raise_after = RAISE_AFTER
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
        if self._starting:
            self._starting = not self._takes_longer(took)
        if self.limit < self._most and generation == self._generation and self.in_flight - self._exempt >= self.limit:
            self._successes += 1
            if self._starting or self._successes >= self._raise_after:
                self._successes = 0
                self._raise_after = max(RAISE_AFTER, self._raise_after // 2)
                self._set_limit(self.limit + 1)

    def refused(self, generation: int, works: int | None = None) -> None:
        """Too many calls: lower the limit, but always allow one call at a time.

        Args:
            works: how many calls work now, if that is known.
        """
        if generation == self._generation and self.limit > 1:
            self._generation += 1
            self._successes = 0
            self._starting = False
            if works is None:
                self._set_limit(self.limit // 2)
            else:
                self._raise_after = min(4 * self._raise_after, MOST_RAISE_AFTER)  # a raise halves it
                self._set_limit(max(1, min(works, self.limit - 1)))

    def _takes_longer(self, took: float) -> bool:
        if len(self._first) < SETTLED:
            self._first.append(took)
            self._mean = sum(self._first) / len(self._first)
            return False
        self._mean += (took - self._mean) / SETTLED
        return self._mean > SLOWER * sum(self._first) / SETTLED

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
