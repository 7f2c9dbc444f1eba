"""The limiter that counts in Redis, for all processes together; while Redis is away, a stricter one in this process.

A decision is one call of a script (`gcra.lua`) with everything that limits the request, and has 100 ms; requests that
come while a call is under way share the next one. What goes wrong is never the requester's trouble: the local limiter
decides instead, and lets half of each policy through in each process. Once three calls in a row have failed, or half
of them are too slow, Redis is left alone for two seconds; then one request, or a health check, tries it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from hashlib import sha1
from importlib.resources import files
from itertools import islice
from typing import Final

import structlog
from redis.asyncio import Redis
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

from application.ports import Overloaded, Unavailable
from infrastructure.circuits import CLOSED, AsyncCircuitBreaker, Circuit, CircuitOpen, Circuits, OnTransition, StateName
from infrastructure.limits.gcra import Check, LocalLimiter
from infrastructure.postgres.batching import Batcher

log = structlog.get_logger(__name__)

BUDGET: Final = timedelta(milliseconds=100)
"""For a call, a connect included (docs/reliability.md, D2)."""

STEPS: Final = 5
"""In which the budget passes."""

SLOW: Final = 3
"""Steps after which an answer is used and counts against Redis: 60 ms (D3)."""

FAILURES: Final = 3
"""Calls in a row that failed: so many times requests wait in vain."""

OPEN_FOR: Final = timedelta(seconds=2)
"""Until Redis is tried again."""

SHARE: Final = 2
"""While Redis is away, half of each policy passes: a process does not know what the others let through."""

MOST_CHECKS: Final = 500
"""In one call, which Redis does nothing else during: under 1 ms."""

MOST_WAITING: Final = 10_000
"""Requests that wait for a call: more than a process lets in at once."""

AWAY: Final = (RedisError, OSError)
"""What a call that failed raises; a TimeoutError is an OSError."""

CIRCUIT: Final = "rate-limits"

_SCRIPT: Final = files("infrastructure.limits").joinpath("gcra.lua").read_text(encoding="utf-8")
_DIGEST: Final = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

_PROBE: Final = (Check("{registrar}:probe", interval=1, burst=1),)

_LATE: Final = ("no answer in time", "look whether it hangs, or is far away")
_REASONS: Final = (
    (AuthenticationError, "it refuses user or password", "correct them in REGISTRAR_RATE_LIMIT_URL"),
    (NoPermissionError, "its user may not run scripts", "give it EVAL, EVALSHA, GET, SET and TIME on {registrar}:*"),
    (ReadOnlyError, "it is a read-only replica", "name the primary in REGISTRAR_RATE_LIMIT_URL"),
    (OutOfMemoryError, "it is full", "give it more memory, or a policy that evicts keys (volatile-ttl)"),
    (MovedError, "it is a node of a cluster that has other keys", "name the primary that has the slot of {registrar}"),
    (TimeoutError, *_LATE),
)
_UNREACHED: Final = ("it cannot be reached", "look whether it runs, and at REGISTRAR_RATE_LIMIT_URL")


class SharedLimiter:
    """Implements `infrastructure.limits.gcra.Limiter`.

    Attributes:
        degraded: whether Redis is left alone at present.
    """

    def __init__(
        self,
        url: str,
        *,
        on_change: Callable[[bool], None] = lambda _: None,
        on_transition: OnTransition = lambda *_: None,
        circuits: Callable[..., Circuits] = Circuits,
    ) -> None:
        """
        Args:
            url: `redis://` or `rediss://`.
            on_change: called with whether it is degraded, at each change and at first.
            on_transition: called at each change of the circuit.
        """
        self._redis = connect(url)
        self._local = LocalLimiter(share=SHARE)
        self._circuits = circuits(minimum_calls=2 * FAILURES, open_for=OPEN_FOR, on_transition=self._moved)
        self._breaker: AsyncCircuitBreaker | None = None
        self._calls: Batcher[Sequence[Check], Sequence[int]] = Batcher(
            self._call, name="rate limits", max_batch=MOST_CHECKS, max_waiting=MOST_WAITING, weigh=len
        )
        self._on_change = on_change
        self._on_transition = on_transition
        self._failed_in_a_row = 0
        self._trouble = _UNREACHED
        self.degraded = False
        on_change(self.degraded)

    async def close(self) -> None:
        await self._calls.close()
        await self._redis.aclose()

    async def decide(self, checks: Sequence[Check]) -> Sequence[int]:
        if self._is_left_alone():
            return self._local.decide_now(checks)
        try:
            return await self._calls.do(checks)
        except (*AWAY, CircuitOpen, Unavailable, Overloaded):
            return self._local.decide_now(checks)

    async def works(self) -> bool:
        """Asks, if the last answer was none: also with no requests it is noticed that Redis is back."""
        if self.degraded:
            await self.decide(_PROBE)
        return not self.degraded

    def _is_left_alone(self) -> bool:
        return self._breaker is not None and _circuit(self._breaker).ready_in() > 0

    async def _call(self, requests: Sequence[Sequence[Check]]) -> Sequence[Sequence[int]]:
        """
        Raises:
            RedisError, OSError, CircuitOpen: Redis does not decide.
        """
        if self._breaker is None:
            self._breaker = await self._circuits.get_breaker(CIRCUIT)
        try:
            async with self._breaker:
                waits = await self._call_in_time(requests)
        except _Slow as slow:
            waits = slow.waits
        except AWAY:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILURES:
                _circuit(self._breaker).open()
            raise
        self._failed_in_a_row = 0
        return waits

    async def _call_in_time(self, requests: Sequence[Sequence[Check]]) -> Sequence[Sequence[int]]:
        try:
            async with _in_steps() as steps:
                waits = await ask(self._redis, requests)
        except AWAY as error:
            self._trouble = explain(error)
            raise
        if len(steps) >= SLOW:
            self._trouble = _LATE
            raise _Slow(waits)
        return waits

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

    def __init__(self, waits: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.waits = waits


@asynccontextmanager
async def _in_steps() -> AsyncIterator[list[float]]:
    """The budget for the block, as a list of the steps of it that are over.

    With a timer for the whole, a loop that is busy with requests for 100 ms would take that for Redis' time, and let
    more of them through than there should be. A step ends only when the loop has looked at its sockets since the last.

    Raises:
        TimeoutError: it is used up.
    """
    loop = asyncio.get_running_loop()
    step = BUDGET.total_seconds() / STEPS
    steps: list[float] = []
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as deadline:

        def over() -> None:
            nonlocal timer
            steps.append(loop.time())
            if len(steps) == STEPS:
                deadline.reschedule(loop.time())
            else:
                timer = loop.call_later(step, over)

        timer = loop.call_later(step, over)
        try:
            yield steps
        finally:
            timer.cancel()


def connect(url: str) -> Redis:
    """A client that neither tries again nor waits by itself: there is one deadline, the caller's."""
    return Redis.from_url(
        url,
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,
    )


async def ask(redis: Redis, requests: Sequence[Sequence[Check]]) -> Sequence[Sequence[int]]:
    """The decisions about some requests, as `Limiter.decide` returns them, in one call.

    Raises:
        RedisError, OSError: there are none; whether they were counted is unknown.
    """
    keys = [key.encode() for checks in requests for key, *_ in checks]
    given = " ".join([f"{len(checks)} {_figures(checks)}" for checks in requests])
    try:
        answer: bytes = await redis.evalsha(_DIGEST, len(keys), *keys, given)
    except NoScriptError:  # a new or restarted server: this one stores it
        answer = await redis.eval(_SCRIPT, len(keys), *keys, given)
    waits = map(int, answer.split())
    return [[*islice(waits, len(checks))] for checks in requests]


def _figures(checks: Sequence[Check]) -> str:
    return " ".join([f"{interval} {burst} {enforced:d}" for _, interval, burst, enforced in checks])


async def try_out(url: str) -> None:
    """Decide once, as for a request.

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
    return _UNREACHED


def _circuit(breaker: AsyncCircuitBreaker) -> Circuit:
    assert isinstance(breaker.context, Circuit)  # noqa: S101 - `Circuits` makes no other
    return breaker.context
