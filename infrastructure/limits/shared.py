"""The limiter that counts in Redis, for all processes together; while Redis is away, a stricter one in this process.

A decision is one call of a script (`gcra.lua`) with everything that limits the request, and has 100 ms. What goes wrong
meanwhile is never the requester's trouble: the local limiter decides instead, and lets half of each policy through in
each process. Once three calls in a row have failed, or half of them are too slow, Redis is left alone for two seconds;
then one request, or a health check, tries it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from hashlib import sha1
from importlib.resources import files
from typing import Final

import structlog
from purgatory.domain.model import CLOSED
from purgatory.service._async.circuitbreaker import AsyncCircuitBreaker
from purgatory.typing import StateName
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)

from infrastructure.circuits import Circuit, CircuitOpen, Circuits, OnTransition
from infrastructure.limits.gcra import Check, LocalLimiter

log = structlog.get_logger(__name__)

BUDGET: Final = timedelta(milliseconds=100)
"""For a decision, the wait for a connection included (docs/reliability.md, D2)."""

SLOW: Final = timedelta(milliseconds=50)
"""A call that takes longer counts against Redis, though its answer is used (D3)."""

FAILURES: Final = 3
"""Calls in a row that failed: so many requests wait in vain."""

OPEN_FOR: Final = timedelta(seconds=2)
"""Until Redis is tried again."""

CONNECTIONS: Final = 8
"""To Redis, at most. One does 10,000 decisions a second (bench, group `limits`)."""

SHARE: Final = 2
"""While Redis is away, half of each policy passes: a process does not know what the others let through."""

CIRCUIT: Final = "rate-limits"

_SCRIPT: Final = files("infrastructure.limits").joinpath("gcra.lua").read_text(encoding="utf-8")
_DIGEST: Final = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

_PROBE: Final = Check("{registrar}:probe", interval=1, burst=1)

_LATE: Final = ("no answer in time", "look whether it hangs, or is far away")
_REASONS: Final = (
    (AuthenticationError, "it refuses user or password", "correct them in REGISTRAR_RATE_LIMIT_URL"),
    (NoPermissionError, "its user may not run scripts", "give it EVAL, EVALSHA, GET, SET and TIME on {registrar}:*"),
    (ReadOnlyError, "it is a read-only replica", "name the primary in REGISTRAR_RATE_LIMIT_URL"),
    (OutOfMemoryError, "it is full", "give it more memory, or a policy that evicts keys (volatile-ttl)"),
    (MovedError, "it is a node of a cluster that has other keys", "name the primary that has the slot of {registrar}"),
    (TimeoutError, *_LATE),
)
_AWAY: Final = ("it cannot be reached", "look whether it runs, and at REGISTRAR_RATE_LIMIT_URL")


class SharedLimiter:
    """Implements `infrastructure.limits.gcra.Limiter`."""

    def __init__(
        self,
        url: str,
        *,
        on_change: Callable[[bool], None] = lambda _: None,
        on_transition: OnTransition = lambda *_: None,
        local: LocalLimiter | None = None,
        circuits: Callable[..., Circuits] = Circuits,
    ) -> None:
        """
        Args:
            url: `redis://` or `rediss://`.
            on_change: called with whether it is degraded, at each change and at first.
            on_transition: called at each change of the circuit.
            local: who decides while Redis does not.
        """
        self._redis = connect(url)
        self._local = local or LocalLimiter(share=SHARE)
        self._circuits = circuits(minimum_calls=2 * FAILURES, open_for=OPEN_FOR, on_transition=self._moved)
        self._breaker: AsyncCircuitBreaker | None = None
        self._on_change = on_change
        self._on_transition = on_transition
        self._failed_in_a_row = 0
        self._trouble = _AWAY
        self.degraded = False
        on_change(self.degraded)

    async def close(self) -> None:
        await self._redis.aclose()

    async def decide(self, checks: Sequence[Check]) -> Sequence[int]:
        waits = await self._try(checks)
        return self._local.decide_now(checks) if waits is None else waits

    async def works(self) -> bool:
        """Asks, if the last answer was none: also with no requests it is noticed that Redis is back."""
        if self.degraded:
            await self._try([_PROBE])
        return not self.degraded

    async def _try(self, checks: Sequence[Check]) -> Sequence[int] | None:
        """What Redis decides; None if it does not."""
        breaker = self._breaker or await self._breaker_made()
        if _circuit(breaker).ready_in() > 0:
            return None
        try:
            async with breaker:
                waits = await self._in_time(checks)
        except _Slow as slow:
            waits = slow.waits
        except CircuitOpen:
            return None
        except (RedisError, OSError) as error:  # a TimeoutError is one
            self._failed(error, _circuit(breaker))
            return None
        self._failed_in_a_row = 0
        return waits

    async def _in_time(self, checks: Sequence[Check]) -> Sequence[int]:
        now = asyncio.get_running_loop().time
        begun = now()
        async with asyncio.timeout(BUDGET.total_seconds()):
            waits = await ask(self._redis, checks)
        if now() - begun > SLOW.total_seconds():
            self._trouble = _LATE
            raise _Slow(waits)
        return waits

    async def _breaker_made(self) -> AsyncCircuitBreaker:
        self._breaker = await self._circuits.get_breaker(CIRCUIT)
        return self._breaker

    def _failed(self, error: Exception, circuit: Circuit) -> None:
        self._trouble = explain(error)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= FAILURES:
            circuit.open()

    def _moved(self, name: str, old: StateName, new: StateName) -> None:
        """The circuit has changed. Half open, nothing is known that was not before."""
        self._on_transition(name, old, new)
        degraded = new != CLOSED
        if degraded == self.degraded:
            return
        self.degraded = degraded
        self._on_change(degraded)
        if degraded:
            says, hint = self._trouble
            log.warning("limits.degraded", reason=says, hint=f"{hint}; each process lets half of each limit through")
        else:
            log.info("limits.restored")


class _Slow(Exception):
    """Redis has decided, too late for a service that depends on it."""

    def __init__(self, waits: Sequence[int]) -> None:
        super().__init__()
        self.waits = waits


def connect(url: str) -> Redis:
    """A client that neither tries again nor waits by itself: there is one deadline, the caller's."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=None,
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,
    )
    return Redis.from_pool(pool)


async def ask(redis: Redis, checks: Sequence[Check]) -> Sequence[int]:
    """One decision.

    Raises:
        RedisError, OSError: there is none; whether it was counted is unknown.
    """
    arguments: list[str | int] = [check.key for check in checks]
    for check in checks:
        arguments += (check.interval, check.burst, int(check.enforced))
    try:
        waits: Sequence[int] = await redis.evalsha(_DIGEST, len(checks), *arguments)
    except NoScriptError:  # a new or restarted server: this one stores it
        waits = await redis.eval(_SCRIPT, len(checks), *arguments)
    return waits


async def try_out(url: str) -> None:
    """Decide once, as a request would.

    Raises:
        RedisError, OSError: it does not; see `explain`.
    """
    redis = connect(url)
    try:
        await ask(redis, [_PROBE])
    finally:
        await redis.aclose()


def explain(error: Exception) -> tuple[str, str]:
    """What is the matter with Redis, and what to do; never the library's text, which may repeat what it was sent."""
    for kind, says, hint in _REASONS:
        if isinstance(error, kind):
            return says, hint
    return _AWAY


def _circuit(breaker: AsyncCircuitBreaker) -> Circuit:
    assert isinstance(breaker.context, Circuit)  # noqa: S101 - `Circuits` makes no other
    return breaker.context
