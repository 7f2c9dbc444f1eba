"""Work on the database in processes beside this one. Each reads by itself, so that little goes to and fro."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, Final, TypeVar

J = TypeVar("J")
R = TypeVar("R")

HELPERS: Final = 2
"""As many as keep two cores busy, together with the database."""


class HelperEnded(Exception):
    """A helper process was ended, by somebody or for want of memory."""


async def done_by_helpers(jobs: Iterable[J], make: Callable[[], Callable[[J], R]]) -> AsyncGenerator[tuple[J, R]]:
    """Each job, in order, with what came of it; jobs are taken as they are needed.

    Args:
        make: called once in each helper; makes what does a job. Both are sent to it (pickled).

    Raises:
        HelperEnded: see there; and whatever a job raises.
    """
    loop = asyncio.get_running_loop()
    pool = ProcessPoolExecutor(
        HELPERS, mp_context=get_context("spawn"), initializer=_begin, initargs=(make, gc.get_threshold())
    )
    under_way: deque[tuple[J, asyncio.Future[R]]] = deque()
    try:
        for job in jobs:
            under_way.append((job, loop.run_in_executor(pool, _do, job)))
            if len(under_way) > 2 * HELPERS:
                earliest, found = under_way.popleft()
                yield earliest, await found
        for job, found in under_way:
            yield job, await found
    except BrokenProcessPool:
        raise HelperEnded("A helper process was ended; is there enough memory?") from None
    finally:
        await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        await asyncio.gather(*(found for _, found in under_way), return_exceptions=True)


# --- In a helper ------------------------------------------------------------------------------


_work: list[Callable[[Any], Any]] = []
"""What does the jobs of this process, once it has begun."""


def _begin(make: Callable[[], Callable[[Any], Any]], threshold: tuple[int, int, int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all processes of a terminal: the first ends the others
    gc.set_threshold(*threshold)
    Thread(target=_end_with_the_first, daemon=True).start()
    _work.append(make())


def _end_with_the_first() -> None:
    """A process that is killed cannot end its helpers, which would wait for it for ever."""
    first = parent_process()
    assert first is not None  # noqa: S101 - this is a helper
    first.join()
    os._exit(1)


def _do(job: Any) -> Any:
    return _work[0](job)
