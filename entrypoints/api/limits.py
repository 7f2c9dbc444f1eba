"""Which rate limits a request of the public API comes under, and the answer to one that is too much.

Only what the requester did is counted here: what is counted by the address across requesters would tell one of them of
another, and is silent (docs/security.md, S3). A domain is not a person; its limit nevertheless only counts unless an
operator turns it on, as whoever has ten networks could keep everybody of a large provider out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, Self
from uuid import UUID

import structlog
from starlette.types import Scope

from application.addresses import canonical_address
from entrypoints.api.client_address import Requester, is_forwarded, requester_of
from infrastructure.limits.gcra import MICROSECONDS, Check, Limiter
from infrastructure.settings.limits import Limit
from infrastructure.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

REGISTERING: Final = ("network", "network-day", "larger-network")
VERIFYING: Final = ("verifications",)
ASKING_FOR_A_CODE: Final = ("new-codes",)
LOGGING_IN: Final = ("admin-login",)
REPEATING: Final = ("repeats",)
"""The limits by network of each thing that is limited."""

CHECKING: Final = ("password-checks", "all-password-checks")
"""The limits of checks of passwords: of one account, and of all. Who asks is an operator, whatever the network."""

MOST_BLOCKED: Final = 10_000
"""Networks that are remembered as refused; those that are forgotten are asked about again."""


class OverLimit(Exception):
    """The requester has asked for too much.

    Attributes:
        headers: say when to come again.
    """

    def __init__(self, refused: Sequence[tuple[Limit, float]]) -> None:
        super().__init__(", ".join(limit.name for limit, _ in refused))
        self.headers = fields_of([(limit, math.ceil(wait)) for limit, wait in refused])


class RequestLimits:
    """What limits the requests to a process. The limiter is asked at most once for each request.

    A network that was refused is remembered until it may come again, so that a flood costs neither a parse nor a call.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        limiter: Limiter,
        *,
        hashed: Callable[[str], str],
        metrics: Metrics,
        spare_loopback: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            hashed: a keyed hash, the same in all processes; only what it returns is in the limiter's keys. Where these
                leave the process nowhere, it may return what it is given.
            spare_loopback: whether limits by network are for others than this machine.
            clock: monotonic seconds.
        """
        self._counters = {limit.name: _Counter.of(limit) for limit in limits if limit.mode != "off"}
        self._of_others = [self._counters.get(name) for name in ("registrations", *REGISTERING, "domain")]
        self._of_anybody = self._of_others[:1]
        self._limiter = limiter
        self._hashed = hashed
        self._metrics = metrics
        self._spare_loopback = spare_loopback
        self._clock = clock
        self._blocked: dict[tuple[str, str], float] = {}
        self._warned = False

    def requester(
        self, scope: Scope, names: Sequence[str], *, keyed: bool = False, spared: Callable[[], bool] = lambda: False
    ) -> Requester:
        """Whose request it is. `is_loopback` is False also where this machine speaks for somebody else.

        Args:
            names: limits by network.
            keyed: whether it has an Idempotency-Key: it may be a repeat, which has a limit of its own.
            spared: called where it would be refused, says whether no limit is for it.

        Raises:
            OverLimit: one of them has just refused this network, and its time is not over.
        """
        requester = self._counted_as(requester_of(scope), scope)
        if self._blocked:  # hardly ever
            refused = self._refused(requester, names)
            if refused and not (keyed and self._may_repeat(requester)) and not spared():
                for limit, _ in refused:
                    self._metrics.limit(limit.name, "refused")
                raise OverLimit(refused)
        return requester

    def _refused(self, requester: Requester, names: Sequence[str]) -> list[tuple[Limit, float]]:
        """What has just refused this network, and for how long it does."""
        now = self._clock()
        waits = {name: self._blocked.get((name, _network(requester, name)), now) - now for name in names}
        return [(self._counters[name].limit, wait) for name, wait in waits.items() if wait > 0]

    def _may_repeat(self, requester: Requester) -> bool:
        """May this network's keys be looked for, as far as this process knows?"""
        return "repeats" in self._counters and not self._refused(requester, REPEATING)

    async def let_in(
        self, requester: Requester, count: Callable[[], Awaitable[None]], *, keyed: bool
    ) -> Callable[[bool], Awaitable[None]] | None:
        """Count a request by `count`; with an Idempotency-Key only once that has been looked for, and then not if it
        is known: so a repeat uses up nothing of what the first one needed, and what that has used up refuses nobody
        the answer. Both repeats and looks in vain that a limit refuses then have a limit of their own; whoever is
        beyond it is counted as if there were no key.

        Returns:
            What is to be called with whether the key is known; None: the request is let in.

        Raises (also what is returned):
            OverLimit: it is one too many.
        """
        if keyed and self._may_repeat(requester):
            return partial(self._admit, requester, count)
        await count()
        return None

    async def _admit(self, requester: Requester, count: Callable[[], Awaitable[None]], known: bool) -> None:
        if known:
            with suppress(OverLimit):
                await self.count(requester, REPEATING)
                return
        try:
            await count()
        except OverLimit:
            if not known:
                with suppress(OverLimit):
                    await self.count(requester, REPEATING)
            raise

    def _counted_as(self, requester: Requester, scope: Scope) -> Requester:
        if not requester.is_loopback or (self._spare_loopback and not is_forwarded(scope)):
            return requester
        if self._spare_loopback and not self._warned:
            self._warned = True
            hint = "a proxy on this machine passes requests on; name it in REGISTRAR_TRUSTED_PROXIES"
            log.warning("limits.proxy_not_trusted", hint=f"{hint}, or all its clients share the limits of one")
        return Requester(requester.network, requester.larger, is_loopback=False)

    async def registration(self, requester: Requester, email: str) -> None:
        """Count a registration.

        Raises:
            OverLimit: it is one too many; then it is not counted.
        """
        address = canonical_address(email)
        of_both = f"{requester.network} {address}"
        if requester.is_loopback:
            await self._count(requester, self._of_anybody, (of_both,))
            return
        network, domain = requester.network, address.rpartition("@")[2]
        await self._count(requester, self._of_others, (of_both, network, network, requester.larger, domain))

    async def password_check(self, account_id: UUID) -> None:
        """Count a check of an account's password, whether or not there is such an account.

        Raises:
            OverLimit: it is one too many; then it is not counted.
        """
        await self._count(_NOBODY, [self._counters.get(name) for name in CHECKING], (str(account_id), "all"))

    async def request(self, scope: Scope, names: Sequence[str]) -> None:
        """Count a request that is limited by its network alone.

        Raises:
            OverLimit: it is one too many; then it is not counted.
        """
        await self.count(self.requester(scope, names), names)

    async def count(self, requester: Requester, names: Sequence[str]) -> None:
        """The second half of `request`."""
        if not requester.is_loopback:
            counters = [self._counters.get(name) for name in names]
            await self._count(requester, counters, [_network(requester, name) for name in names])

    async def _count(self, requester: Requester, counters: Sequence[_Counter | None], whom: Sequence[str]) -> None:
        """
        Args:
            counters: None in place of one that is off.
            whom: whose requests each of them counts.
        """
        hashed = self._hashed
        checks = [
            Check(counter.prefix + hashed(of), counter.interval, counter.burst, counter.enforced)
            for counter, of in zip(counters, whom, strict=True)
            if counter is not None
        ]
        if not checks:
            return
        waits = await self._limiter.decide(checks)
        if any(waits):
            self._judge(requester, [counter.limit for counter in counters if counter is not None], waits)
        else:
            self._metrics.limits_passed(tuple([counter.name for counter in counters if counter is not None]))

    def _judge(self, requester: Requester, limits: Sequence[Limit], waits: Sequence[int]) -> None:
        """At least one of the limits is exceeded; a shadow refuses nobody."""
        found = [(limit, wait / MICROSECONDS) for limit, wait in zip(limits, waits, strict=True)]
        refused = [(limit, wait) for limit, wait in found if wait and limit.mode == "on"]
        for limit, wait in found:
            if wait:
                self._metrics.limit(limit.name, "refused" if limit.mode == "on" else "would-refuse")
            elif not refused:
                self._metrics.limit(limit.name, "passed")
        if refused:
            self._remember(requester, refused)
            raise OverLimit(refused)

    def _remember(self, requester: Requester, refused: Sequence[tuple[Limit, float]]) -> None:
        for limit, wait in refused:
            if limit.name in _OF_NETWORKS:
                if len(self._blocked) >= MOST_BLOCKED:
                    del self._blocked[next(iter(self._blocked))]
                self._blocked[limit.name, _network(requester, limit.name)] = self._clock() + wait


class _Counter(NamedTuple):
    """A limit, as the limiter is asked about it.

    Attributes:
        prefix: of its keys. All are in the same slot of a cluster. A process with other figures has other keys.
    """

    limit: Limit
    name: str
    prefix: str
    interval: int
    burst: int
    enforced: bool

    @classmethod
    def of(cls, limit: Limit) -> Self:
        prefix = f"{{registrar}}:{limit.name}:{limit.interval}/{limit.burst}:"
        return cls(limit, limit.name, prefix, limit.interval, limit.burst, limit.mode == "on")


_NOBODY: Final = Requester("", "", is_loopback=False)
"""Where it does not matter who asks."""

_OF_NETWORKS: Final = frozenset((*REGISTERING, *VERIFYING, *ASKING_FOR_A_CODE, *LOGGING_IN, *REPEATING))


def _network(requester: Requester, name: str) -> str:
    return requester.larger if name == "larger-network" else requester.network


def fields_of(refused: Sequence[tuple[Limit, int]]) -> dict[str, str]:
    """`Retry-After`, and the fields of draft-ietf-httpapi-ratelimit-headers, whose names and parameters change from one
    draft to the next: here they are those of -10.

    Args:
        refused: the limits that were exceeded, and in how many seconds each lets the next request pass.
    """
    policies = (f'"{limit.name}";q={limit.count};w={limit.per.total_seconds():.0f}' for limit, _ in refused)
    return {
        "Retry-After": str(max(wait for _, wait in refused)),
        "RateLimit-Policy": ", ".join(policies),
        "RateLimit": ", ".join(f'"{limit.name}";r=0;t={wait}' for limit, wait in refused),
    }
