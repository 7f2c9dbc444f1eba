"""Admission: how many registrations one process works on at a time.

A service that takes in more than it can do responds late to everybody, and does less: it spends its time on requests
whose clients have gone. So it is decided at the door (`entrypoints.api.http_server`), before anything is spent on a
request. What ends a registration (a code, a look at it) and what operators need (health, metrics) is always let in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from infrastructure.telemetry.metrics import Metrics

BURST: Final = 512
"""Registrations under way at most: a burst is taken in as long as its last one waits for less than a second (1,100/s
on two shared cores, 2026-11-25)."""

PATIENCE: Final = timedelta(milliseconds=250)
"""A registration that takes longer than that has waited."""

HICCUP: Final = timedelta(milliseconds=500)
"""If nobody has come out within `PATIENCE` for so long, those under way are no burst but a queue, however slow the
machine is; what is over sooner was a commit that the disk held up (330 ms at 250 registrations a second: without this,
two of 7,500 were turned away for it)."""

STEADY: Final = 64
"""Registrations under way while there are more than can be done. The rate is the same from 16 to 256 (same
measurement); a queue that never ends only makes everybody wait."""

CALM: Final = timedelta(seconds=1)
"""Without a refusal for so long, there is room for a burst again."""

ROUTE: Final = "/v1/registrations"

PLACE: Final = "registrar.place"
"""Under this name the ASGI scope of a registration holds its `AdmissionSlot`."""


class Admission:
    """Counts what is under way.

    Attributes:
        under_way: registrations that were let in and have no response yet.
        clock: monotonic seconds.
        paths: of registrations, with and without the prefix of `PUBLIC_URL`, which a proxy may take off or pass on.
    """

    def __init__(self, metrics: Metrics, *, prefix: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.under_way = 0
        self.paths = {ROUTE.encode(), f"{prefix}{ROUTE}".encode()}
        self._metrics = metrics
        self.clock = clock
        self._crowded_until = 0.0
        self._slow_since: float | None = None

    @property
    def full(self) -> bool:
        """Is one more to be turned away?"""
        if self.under_way < STEADY:
            return False
        now = self.clock()
        return (
            self.under_way >= BURST
            or now < self._crowded_until
            or (self._slow_since is not None and now > self._slow_since + HICCUP.total_seconds())
        )

    def acquire(self) -> None:
        """A registration is under way."""
        self.under_way += 1

    def release(self, took: float) -> None:
        """It is not any more, after so many seconds."""
        self.under_way -= 1
        if took <= PATIENCE.total_seconds() or not self.under_way:  # with nobody left, what comes next starts afresh
            self._slow_since = None
        elif self._slow_since is None:
            self._slow_since = self.clock()

    def refused(self) -> None:
        """A registration was turned away at the door, where nobody else counts it."""
        self._crowded_until = self.clock() + CALM.total_seconds()
        self._metrics.shed("busy")
        self._metrics.registration("overloaded")
        self._metrics.request(ROUTE, 503, 0.0)

    def refused_connection(self) -> None:
        self._metrics.shed("connections")


class AdmissionSlot:
    """One registration's place: held from its last byte to its response, so that a slow sender keeps nobody out."""

    __slots__ = ("_admission", "_over", "_since")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._since: float | None = None
        self._over = False

    def take(self) -> None:
        """Repeatable; without effect once it was left."""
        if self._since is None and not self._over:
            self._since = self._admission.clock()
            self._admission.acquire()

    def leave(self) -> None:
        """Repeatable."""
        if self._since is not None and not self._over:
            self._admission.release(self._admission.clock() - self._since)
        self._over = True
