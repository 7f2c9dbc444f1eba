"""The algorithm (GCRA, ITU-T I.371), and the limiter that counts inside of the process.

Of each key one time is kept: when it will have paid for all that has passed (its theoretical arrival time, TAT). A
request moves that by the policy's interval; it passes as long as the time is not more than `burst` intervals ahead.
`gcra.lua` is the same for Redis, whose clock may be set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

MICROSECONDS: Final = 1_000_000
"""In a second; times are whole microseconds, which Redis' TIME has as well."""

MOST_KEYS: Final = 100_000
"""Keys that one generation holds: 25 MB for both. Whoever has so many networks gets a second allowance for it."""


class Check(NamedTuple):
    """One policy of one request.

    Attributes:
        key: of whom it counts. Other figures need another key: of two limits with the same one, either would take the
            times of the other for its own.
        interval: microseconds in which one more request may come.
        burst: how many may come at once.
        enforced: whether one that is too much is refused; otherwise it only counts.
    """

    key: str
    interval: int
    burst: int
    enforced: bool = True


class Limiter(Protocol):
    async def decide(self, checks: Sequence[Check]) -> Sequence[int]:
        """Microseconds until each check would let the request pass, 0 for those that do; in the order of the checks.

        The request passes if all that are enforced are 0, and counts everywhere but for a shadow that would refuse it;
        otherwise it counts nowhere. Atomic, across processes if they share the counts. Never fails.
        """
        ...

    async def works(self) -> bool | None:
        """Does it count where it is to count? None if that is here."""
        ...


class LocalLimiter:
    """Counts inside of the process.

    Its memory is bounded: what was not asked for while `most_keys` others were, is forgotten.
    """

    def __init__(
        self, *, share: int = 1, clock: Callable[[], float] = time.monotonic, most_keys: int = MOST_KEYS
    ) -> None:
        """
        Args:
            share: one part in so many of each policy is what passes here, at least one request.
            clock: monotonic seconds.
        """
        self._share = share
        self._clock = clock
        self._most_keys = most_keys
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}

    async def decide(self, checks: Sequence[Check]) -> list[int]:
        return self.decide_now(checks)

    async def works(self) -> None:
        return None

    def decide_now(self, checks: Sequence[Check]) -> list[int]:
        """See `Limiter.decide`."""
        now, share = int(self._clock() * MICROSECONDS), self._share
        waits, paid = [], []
        passes = True
        for key, interval, burst, enforced in checks:
            tat = max(self._tat(key), now) + interval * share
            wait = tat - now - interval * share * (burst // share or 1)
            if wait > 0:
                passes = passes and not enforced
            else:
                wait = 0
                paid.append((key, tat))
            waits.append(wait)
        if passes:
            for key, tat in paid:
                self._keep(key, tat)
        return waits

    def _tat(self, key: str) -> int:
        tat = self._young.get(key)
        if tat is not None:
            return tat
        tat = self._old.pop(key, None)
        if tat is None:
            return 0
        self._keep(key, tat)  # asked for: it stays
        return tat

    def _keep(self, key: str, tat: int) -> None:
        if len(self._young) >= self._most_keys and key not in self._young:
            self._young, self._old = {}, self._young
        self._young[key] = tat
