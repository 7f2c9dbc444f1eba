"""Circuit breakers: purgatory's factory, unit of work, listeners and context manager over states of our own.

purgatory 3.0.1 counts failures in a row (four failures and a success, for ever, never open it), lets every call through
when half open, counts a cancellation as a failure and raises the same exception object every time. So `Circuits`
creates `Circuit`s where the factory would create its `Context`; everything around them is purgatory's. The rules are
those of opossum, a Node.js library: more than 50 % of the calls of a minute, five at least, open a circuit for 30 s
(`docs/contract.md`).

purgatory notifies its listeners of a change when the call that caused it ends; `on_transition` is called at once, and
gets the previous state as well.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Final

if "redis" not in sys.modules:
    # purgatory loads the client of Redis wherever there is one, for a store of its own that is not used here: a quarter
    # of a second at every start.
    sys.modules["redis"] = None  # type: ignore[assignment]
    importlib.import_module("purgatory")
    del sys.modules["redis"]

from purgatory import AsyncAbstractUnitOfWork, AsyncCircuitBreakerFactory, CircuitBreakerCreated
from purgatory.domain.messages.commands import CreateCircuitBreaker
from purgatory.domain.model import CLOSED, HALF_OPENED, OPENED, Context, ExcludeType, State
from purgatory.service._async.circuitbreaker import AsyncCircuitBreaker
from purgatory.typing import StateName

__all__ = ["CLOSED", "OPENED", "AsyncCircuitBreaker", "Circuit", "CircuitOpen", "Circuits", "OnTransition", "StateName"]
"""What others need of purgatory they have from here, where it is loaded."""

WINDOW_SECONDS: Final = 60.0
"""Seconds over which calls are counted."""
BUCKETS: Final = 10
"""The window moves on in steps of a tenth (opossum's default), so it covers 54 to 60 s."""
TOLERATED_RATE: Final = 0.5
"""Failure rate up to and including which a circuit stays closed."""

OnTransition = Callable[[str, StateName, StateName], None]
"""Called with the circuit's name, its old and its new state: "closed", "half-opened" or "opened". Must not raise."""


class CircuitOpen(Exception):
    """The call was rejected and not made. Each rejection raises a new object, so that none collects tracebacks.

    Attributes:
        retry_after: seconds until the circuit may let a call through; a guess while a probe is running.
    """

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"circuit {name} is open")
        self.retry_after = retry_after


class Closed(State):
    """Calls go through and are counted; the failure rate is checked whenever one fails."""

    name = CLOSED

    def __init__(self) -> None:
        self._buckets: deque[list[int]] = deque()  # [number of the tenth, calls, failures], oldest first

    def handle_new_request(self, context: Context) -> None:
        """Let it through."""

    def handle_end_request(self, context: Context) -> None:
        self._count(context, failed=False)

    def handle_exception(self, context: Context, exc: BaseException) -> None:  # noqa: ARG002 - purgatory's signature
        self._count(context, failed=True)
        calls = sum(bucket[1] for bucket in self._buckets)
        failures = sum(bucket[2] for bucket in self._buckets)
        context.mark_failure(failures)
        if calls >= context.threshold and failures > TOLERATED_RATE * calls:
            context.set_state(Opened(_circuit(context).clock(), context.ttl))

    def _count(self, context: Context, *, failed: bool) -> None:
        number = int(_circuit(context).clock() // (WINDOW_SECONDS / BUCKETS))
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append([number, 0, 0])
        while self._buckets[0][0] <= number - BUCKETS:
            self._buckets.popleft()
        self._buckets[-1][1] += 1
        self._buckets[-1][2] += failed


class Opened(State):
    """Nothing goes through before `until`; the outcome of calls that went through earlier says nothing new."""

    name = OPENED

    def __init__(self, opened_at: float, seconds: float) -> None:
        self.opened_at = opened_at
        self.until = opened_at + seconds

    def handle_new_request(self, context: Context) -> None:
        if (remaining := self.until - _circuit(context).clock()) > 0:
            raise CircuitOpen(context.name, remaining)
        context.set_state(HalfOpened())
        context.handle_new_request()

    def handle_end_request(self, context: Context) -> None:
        """Too late to count."""

    def handle_exception(self, context: Context, exc: BaseException) -> None:
        """Too late to count."""


class HalfOpened(State):
    """One call, the probe, decides; it is identified by its task, so that no late call decides in its place."""

    name = HALF_OPENED

    def __init__(self) -> None:
        self._probe: asyncio.Task[object] | None = None

    @property
    def probing(self) -> bool:
        return self._probe is not None and not self._probe.done()

    def handle_new_request(self, context: Context) -> None:
        if self.probing:
            raise CircuitOpen(context.name, retry_after=1.0)
        self._probe = asyncio.current_task()

    def handle_end_request(self, context: Context) -> None:
        if self._probe is asyncio.current_task():
            context.recover_failure()
            context.set_state(Closed())  # counting starts from zero: the failures that opened it are history

    def handle_exception(self, context: Context, exc: BaseException) -> None:  # noqa: ARG002 - purgatory's signature
        if self._probe is asyncio.current_task():
            context.set_state(Opened(_circuit(context).clock(), context.ttl))

    def handle_cancellation(self) -> None:
        if self._probe is asyncio.current_task():
            self._probe = None


class Circuit(Context):
    """The state of one circuit breaker; purgatory's `AsyncCircuitBreaker.context`."""

    def __init__(
        self,
        name: str,
        minimum_calls: int,
        open_for: float,
        *,
        clock: Callable[[], float],
        on_transition: OnTransition | None,
    ) -> None:
        super().__init__(name, minimum_calls, open_for)
        self.clock = clock
        self._on_transition = on_transition
        self._waiting: set[asyncio.Future[None]] = set()
        self._state = Closed()

    def set_state(self, state: State) -> None:
        old = self.state
        super().set_state(state)
        if self._on_transition is not None:
            self._on_transition(self.name, old, self.state)
        self.wake()

    def handle_exception(self, exc: BaseException) -> None:
        """Count it, unless the call was cancelled: that says nothing about the other side."""
        if isinstance(exc, Exception):
            super().handle_exception(exc)
        elif isinstance(self._state, HalfOpened):
            self._state.handle_cancellation()
            self.wake()

    def open(self, seconds: float | None = None) -> None:
        """Open now, whatever the counts: one reply, or another worker's report, is enough to know that calls will fail.

        Args:
            seconds: until a call may go through again; by default what a circuit stays open for.
        """
        if not isinstance(self._state, Opened):
            self.set_state(Opened(self.clock(), self.ttl if seconds is None else seconds))

    def close(self) -> None:
        """Close now: another worker has found that calls succeed."""
        if isinstance(self._state, Opened):
            self.set_state(Closed())

    @property
    def is_due(self) -> bool:
        """Would the next call be the probe?"""
        return isinstance(self._state, Opened) and self.ready_in() <= 0

    def make_due(self) -> None:
        """Let the next call be the probe, if the circuit is open."""
        if isinstance(self._state, Opened):
            self._state.until = min(self._state.until, self.clock())

    def put_off(self, seconds: float) -> None:
        """Stay open for at least that long: another worker is probing, or has just found that it must stay open."""
        if isinstance(self._state, Opened):
            self._state.until = max(self._state.until, self.clock() + seconds)

    def ready_in(self) -> float:
        """Seconds until a call may go through; infinite while a probe is running."""
        match self._state:
            case Opened(until=until):
                return max(0.0, until - self.clock())
            case HalfOpened(probing=True):
                return math.inf
        return 0.0

    async def until_ready(self) -> None:
        """Return when a call may go through: at once, when the time is up, or when the probe has ended."""
        while (seconds := self.ready_in()) > 0:
            changed = asyncio.get_running_loop().create_future()
            self._waiting.add(changed)
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if seconds == math.inf else seconds):
                        await changed
            finally:
                self._waiting.discard(changed)

    def wake(self) -> None:
        """Let all callers of `until_ready` check again: after a change, or after the clock has been moved."""
        for changed in self._waiting:
            if not changed.done():
                changed.set_result(None)


def _circuit(context: Context) -> Circuit:
    if not isinstance(context, Circuit):
        raise TypeError("these states need a `Circuit`")
    return context


class Circuits(AsyncCircuitBreakerFactory):
    """purgatory's factory, which creates our circuits: `async with await circuits.get_breaker(name): …`.

    The timeout of a call belongs inside the breaker; a cancellation from outside does not count.

    Args:
        minimum_calls: calls in the window below which nothing opens; `get_breaker`'s `threshold`.
        open_for: how long a circuit stays open before its probe; `get_breaker`'s `ttl`, in seconds.
        exclude: exceptions that mean that the other side works; see purgatory.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        minimum_calls: int = 5,
        open_for: timedelta = timedelta(seconds=30),
        exclude: ExcludeType | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_transition: OnTransition | None = None,
    ) -> None:
        super().__init__(default_threshold=minimum_calls, default_ttl=open_for.total_seconds(), exclude=exclude)
        self._clock = clock
        self._on_transition = on_transition
        self.messagebus.remove_listener(CreateCircuitBreaker, self._register)  # purgatory's own; a command has only one
        self.messagebus.add_listener(CreateCircuitBreaker, self._register)

    async def _register(self, command: CreateCircuitBreaker, uow: AsyncAbstractUnitOfWork) -> Circuit:
        circuit = Circuit(
            command.name, command.threshold, command.ttl, clock=self._clock, on_transition=self._on_transition
        )
        await uow.contexts.register(circuit)
        uow.contexts.messages.append(CircuitBreakerCreated(command.name, command.threshold, command.ttl))
        return circuit
