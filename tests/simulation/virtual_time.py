"""Virtual time: an event loop without a selector, whose processes can be killed or frozen between any two steps.

The real code runs on it unchanged (asyncio's own tasks, locks and timeouts). Time moves only when nothing is left to
do now, and then at once to the next timer, so a day costs as much as what happens in it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from itertools import count
from typing import Any, cast


class Process:
    """What crashes as a whole: its tasks, and everything they were about to do.

    Attributes:
        fuse: steps until `on_fuse` is called, which kills or freezes it; None: nothing happens to it.
        lag: seconds that its copy of the database's clock is late.
    """

    def __init__(self, name: str, *, lag: float = 0.0) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.fuse: int | None = None
        self.on_fuse: Callable[[Process], None] = lambda _: None
        self.lag = lag
        self.held: list[Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.context: Context = copy_context()
        self.context.run(PROCESS.set, self)


PROCESS: ContextVar[Process] = ContextVar("process")


class Handle:
    """asyncio's `Handle` and `TimerHandle`, as far as asyncio's own classes use them."""

    __slots__ = ("args", "callback", "context", "gone", "process")

    def __init__(
        self, process: Process, callback: Callable[..., object], args: tuple[Any, ...], context: Context
    ) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.context = context
        self.gone = False

    def cancel(self) -> None:
        self.gone = True

    def cancelled(self) -> bool:
        return self.gone


class Pause:
    """Waits some time: a future as far as a task looks at it, at half of one's price."""

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_gone", "_handle", "_loop", "_when")

    def __init__(self, loop: VirtualLoop, seconds: float) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._when = loop.now + seconds
        self._gone = False

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> VirtualLoop:
        return self._loop

    def add_done_callback(self, callback: Callable[..., object], *, context: Context) -> None:
        self._callback, self._context = callback, context
        self._handle = self._loop.call_at(self._when, callback, self, context=context)

    def result(self) -> None:
        if self._gone:
            raise asyncio.CancelledError

    def cancel(self, msg: str | None = None) -> bool:
        self._gone = True
        self._handle.cancel()
        self._loop.call_soon(self._callback, self, context=self._context)
        return True


class NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class Livelock(Exception):
    """So many steps without an end: somebody turns in circles."""


class VirtualLoop:
    """Runs what is ready in order, then lets time pass. The same calls give the same run, always."""

    def __init__(self, *, max_steps: int) -> None:
        self.now = 0.0
        self.steps = 0
        self._max_steps = max_steps
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._numbers = count()
        self.world = Process("world")
        self.failures: list[BaseException] = []

    # --- What asyncio asks of a loop ----------------------------------------------------------

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        context = context or copy_context()
        handle = Handle(context.get(PROCESS, self.world), callback, args, context)
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        context = context or copy_context()
        handle = Handle(context.get(PROCESS, self.world), callback, args, context)
        heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=cast("Any", self))

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task = NumberedTask.__new__(NumberedTask)
        task.number = next(self._numbers)
        task.__init__(coro, loop=cast("Any", self), name=name or "task", context=context)  # type: ignore[misc]
        task._log_destroy_pending = False  # type: ignore[attr-defined] # a killed process leaves its tasks behind
        process = (context or copy_context()).get(PROCESS, self.world)
        process.tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Told of exceptions that nobody fetched, whenever memory is collected: `guard` sees them in time."""

    # --- What the simulation asks of it -------------------------------------------------------

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a task of a process."""
        return process.context.copy().run(self.create_task, coroutine)

    def later(self, delay: float, callback: Callable[..., object], *args: Any) -> Any:
        """Do something in the world, whoever's step it is now and whatever becomes of that process."""
        return self.call_at(self.now + delay, callback, *args, context=self.world.context)

    def wake(self, process: Process) -> None:
        """What a frozen process was about to do happens now, in order."""
        process.frozen = False
        held, process.held = process.held, []
        self._ready.extend(held)

    def run_until(self, end: float) -> None:
        """Run everything that happens before `end`, a time.

        Raises:
            Livelock: it does not come to rest.
        """
        ready, timers = self._ready, self._timers
        asyncio.events._set_running_loop(cast("Any", self))
        try:
            while True:
                while ready:
                    handle = ready.popleft()
                    process = handle.process
                    if handle.gone or not process.alive:
                        continue
                    if process.frozen:
                        process.held.append(handle)
                        continue
                    self.steps += 1
                    if self.steps > self._max_steps:
                        raise Livelock(f"{self.steps} steps")
                    if process.fuse is not None:
                        process.fuse -= 1
                        if process.fuse <= 0:
                            process.fuse = None
                            ready.appendleft(handle)
                            process.on_fuse(process)
                            continue
                    handle.context.run(handle.callback, *handle.args)
                    if self.failures:
                        raise self.failures[0]
                if not timers or timers[0][0] > end:
                    self.now = end
                    return
                when, _, handle = heappop(timers)
                if not handle.gone and handle.process.alive:
                    self.now = max(self.now, when)
                    ready.append(handle)
        finally:
            asyncio.events._set_running_loop(None)

    def dismantle(self, *processes: Process) -> None:
        """End what is still under way, the dead included. What they do on the way is of no account any more."""
        asyncio.events._set_running_loop(cast("Any", self))
        try:
            for process in (*processes, self.world):
                for task in process.tasks:
                    coroutine = task.get_coro()
                    for _ in range(10):
                        if task.done():
                            break
                        with suppress(BaseException):  # a `finally` may wait for something again
                            coroutine.close()
                            break
                process.tasks.clear()
                process.held.clear()
            self._ready.clear()
            self._timers.clear()
        finally:
            asyncio.events._set_running_loop(None)
