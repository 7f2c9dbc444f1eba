"""The pace of what is never refused, only made to wait: the same algorithm as `infrastructure.limits.gcra`, read as a
timetable. Who asks is told when it is their turn, and has it for certain; so nobody asks again, and nobody overtakes.
"""

from __future__ import annotations

from infrastructure.limits.gcra import MICROSECONDS
from infrastructure.settings.limits import Limit


class Pace:
    """`burst` at once, and then one in each interval, in the order in which they ask."""

    def __init__(self, limit: Limit) -> None:
        self._interval = limit.interval
        self._ahead = limit.interval * (limit.burst - 1)
        self._paid_until = 0

    def turn(self, now: float) -> float:
        """In how many seconds one more may pass; it counts from here on.

        Args:
            now: seconds, of the same clock each time.
        """
        wait = self.wait(now)
        self._paid_until = max(self._paid_until, int(now * MICROSECONDS)) + self._interval
        return wait

    def wait(self, now: float) -> float:
        """The same for what passes in the line and does not count."""
        at = int(now * MICROSECONDS)
        return max(0, max(self._paid_until, at) - at - self._ahead) / MICROSECONDS
