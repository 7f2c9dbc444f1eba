"""How many calls may be under way at the same time, when the other side says "too many" but not how many it bears.

Additive increase, multiplicative decrease, as TCP does it: "too many" halves their number, calls that succeed while all
slots are taken raise it one by one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

RAISE_AFTER: Final = 20
"""Successes, with all slots taken, that add a slot: who bears K gets a call too many once in 10 K. From 1 to 32 slots it
takes 620."""


class Slots:
    """Use it as a context manager around a call, and tell it how the call ended.

    async with slots as begun:
        …
        slots.succeeded(begun)    # or slots.refused(begun)

    First come, first served. What `begun` tells apart is calls of before and after the latest decrease: the others were
    refused for what has been mended since, so that many refusals of one moment count once.

    Args:
        most: slots to begin with, and never more.
        on_change: told the number of slots, now and whenever it changes. Must not raise.
    """

    def __init__(self, most: int, *, on_change: Callable[[int], None] = lambda _: None) -> None:
        self.allowed = most
        self.taken = 0
        self._most = most
        self._on_change = on_change
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._decreases = 0
        self._successes = 0  # that count for the next slot
        on_change(most)

    async def __aenter__(self) -> int:
        if self.taken < self.allowed:  # then nobody waits
            self.taken += 1
            return self._decreases
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # it was passed over already
                    self._waiting.remove(turn)
            else:  # it was our turn already
                self._give_back()
            raise
        return self._decreases

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    def succeeded(self, begun: int) -> None:
        if self.allowed < self._most and begun == self._decreases and self.taken >= self.allowed:
            self._successes += 1
            if self._successes == RAISE_AFTER:
                self._successes = 0
                self._allow(self.allowed + 1)

    def refused(self, begun: int) -> None:
        """There were too many. A single call at a time is always allowed: fewer would be none."""
        if begun == self._decreases and self.allowed > 1:
            self._decreases += 1
            self._successes = 0
            self._allow(self.allowed // 2)

    def _allow(self, number: int) -> None:
        self.allowed = number
        self._on_change(number)
        self._let_in()

    def _give_back(self) -> None:
        self.taken -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self.taken < self.allowed:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.taken += 1
                turn.set_result(None)
