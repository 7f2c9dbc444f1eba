"""Admission: how many requests of each kind one process works on at a time.

A service that takes in more than it can do responds late to everybody, and does less: it spends its time on requests
whose clients have gone. So it is decided at the door (`entrypoints.api.http_protocol`), before anything is spent on a
request. Each kind of request has a bound of its own, so that a flood of one keeps out no other: what ends a
registration (a code, a look at it) and what operators need (health, metrics) goes on while registrations are refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final, Literal

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

Class = Literal["register", "verify", "resend", "look", "wait", "check", "operate", "health", "other"]

MOST: Final[dict[Class, int]] = {
    # Each costs about what a registration does, and the rate is the same from 16 to 256 (see `STEADY`).
    "verify": 128,
    "resend": 64,
    "look": 128,
    # Reads with `min_position`, which wait for the read model, for two seconds by default; also on when their client
    # has gone, so they do not share the bound of those that do not wait. Each holds nothing but memory: 6 KiB, and its
    # connection 11 (500 of them at `registrar serve`: what its private memory grew by, 2026-11-29): 9 MiB for all.
    "wait": 512,
    # Those that are hashed, and those that wait for it (`infrastructure.crypto.password_hashing`), with some in front.
    "check": 48,
    # What the database has for queries, and lets wait for it: 8 and 16 (docs/reliability.md, B14).
    "operate": 24,
    # Orchestrators, load balancers and Prometheus are few, and share one look at the database.
    "health": 32,
    # The mailbox, the front door, documents, paths that there are not.
    "other": 64,
}
"""Requests of a class that are under way at most, beside registrations; see docs/limits.md, "Overload"."""

ROUTE: Final = "/v1/registrations"

ACCOUNTS: Final = "/v1/admin/accounts"
CHECK: Final = "/password-check"

_ROUTES: Final[Mapping[Class, str]] = {
    "register": ROUTE,
    "verify": f"{ROUTE}/{{registration_id}}/verification",
    "resend": f"{ROUTE}/{{registration_id}}/otp",
    "look": f"{ROUTE}/{{registration_id}}",
    "wait": f"{ROUTE}/{{registration_id}}",
    "check": f"{ACCOUNTS}/{{registration_id}}{CHECK}",
}
"""Those of which all requests of a class are, as metrics name them."""

PLACE: Final = "registrar.place"
"""Under this name the ASGI scope of a request holds its `AdmissionSlot`."""


class Bound:
    """Counts what is under way of one class.

    Attributes:
        name: of the class.
        under_way: requests that were let in and have no response yet.
        clock: monotonic seconds.
    """

    def __init__(self, name: Class, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.name: Class = name
        self.under_way = 0
        self.clock = clock
        self._metrics = metrics
        self._counted = "busy" if name == "register" else f"busy-{name}", _ROUTES.get(name, "unmatched")

    @property
    def full(self) -> bool:
        """Is one more to be turned away?"""
        return self.under_way >= MOST[self.name]

    def acquire(self) -> None:
        """A request is under way."""
        self.under_way += 1

    def release(self, took: float) -> None:  # noqa: ARG002 - registrations look at it
        """It is not any more, after so many seconds."""
        self.under_way -= 1

    def refused(self) -> None:
        """A request was turned away at the door, where nobody else counts it."""
        self._metrics.turned_away(*self._counted)

    def denied(self) -> None:
        """A request that had been let in to send its body found no place."""
        self._metrics.overloaded(self._counted[0])


class Registrations(Bound):
    """Counts registrations, and tells a burst, which is let in, from a queue."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("register", metrics, clock)
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

    def release(self, took: float) -> None:
        super().release(took)
        if took <= PATIENCE.total_seconds() or not self.under_way:  # with nobody left, what comes next starts afresh
            self._slow_since = None
        elif self._slow_since is None:
            self._slow_since = self.clock()

    def refused(self) -> None:
        super().refused()
        self._crowded_until = self.clock() + CALM.total_seconds()

    def denied(self) -> None:
        super().denied()
        self._crowded_until = self.clock() + CALM.total_seconds()


class Admission:
    """The bounds of one listener.

    Attributes:
        registrations: the bound that nearly every request of a flood meets.
    """

    def __init__(self, metrics: Metrics, *, prefix: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            prefix: of the path of `PUBLIC_URL`, which a proxy may take off or pass on.
            clock: monotonic seconds.
        """
        self.registrations = Registrations(metrics, clock)
        self._bounds: dict[Class, Bound] = {name: Bound(name, metrics, clock) for name in MOST}
        self._prefix = prefix.encode()
        self._metrics = metrics
        metrics.shows_under_way(self._under_way)

    def bound_of(self, method: bytes, path: bytes, query: bytes | None = None) -> Bound:
        """The bound of a request.

        Args:
            path: with nothing percent-encoded in it.
        """
        if self._prefix and path.startswith(self._prefix + b"/"):
            path = path[len(self._prefix) :]
        if path.startswith(_FORMS):  # a form is another spelling of these routes
            path = REGISTER + path[len(_FORMS) :]
        if path == REGISTER and method == b"POST":
            return self.registrations
        return self._bounds[_class_of(method, path, query)]

    def refused_connection(self) -> None:
        self._metrics.shed("connections")

    def _under_way(self) -> Mapping[str, int]:
        return {bound.name: bound.under_way for bound in (self.registrations, *self._bounds.values())}


REGISTER: Final = ROUTE.encode()
_FORMS: Final = b"/sign-up"
_ACCOUNTS: Final = ACCOUNTS.encode() + b"/"
_CHECK: Final = CHECK.encode()


def _class_of(method: bytes, path: bytes, query: bytes | None) -> Class:
    if path.startswith(REGISTER + b"/"):
        if method != b"POST":
            return "wait" if query else "look"
        if path.endswith(b"/verification"):
            return "verify"
        return "resend" if path.endswith(b"/otp") else "other"
    if path.startswith(_ACCOUNTS) and path.endswith(_CHECK) and method == b"POST":
        return "check"
    if path.startswith(b"/v1/admin/"):
        return "operate"
    return "health" if path.startswith(b"/health/") or path == b"/metrics" else "other"


class AdmissionSlot:
    """One request's place: held from its last byte to its response, so that a slow sender keeps nobody out.

    Attributes:
        denied: its last byte came when all places were taken.
    """

    __slots__ = ("_bound", "_over", "_since", "denied")

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._since: float | None = None
        self._over = False
        self.denied = False

    def take(self) -> None:
        """Repeatable; without effect once it was left."""
        if self._since is None and not self._over:
            if self._bound.full:
                self.denied = self._over = True
                self._bound.denied()
                return
            self._since = self._bound.clock()
            self._bound.acquire()

    def leave(self) -> None:
        """Repeatable."""
        if self._since is not None and not self._over:
            self._bound.release(self._bound.clock() - self._since)
        self._over = True
