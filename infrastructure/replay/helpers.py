"""Reviews windows of the log in processes beside this one. Each reads by itself, so that little goes to and fro."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Final

from application.what_if import Difference
from domain.policy import Policy
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.replay.histories import Window
from infrastructure.replay.judging import Judge, Scope
from infrastructure.replay.swap import CannotReplay

HELPERS: Final = 2
"""As many as keep two cores busy, together with the database."""


async def reviewed_by_helpers(
    windows: Iterable[Window], dsn: str, statement_timeout: timedelta, policy: Policy, scope: Scope
) -> AsyncGenerator[tuple[Window, int, list[Difference]]]:
    """Each window, in order, with the number of its registrations and what would be different about them.

    Raises:
        CannotReplay: a helper was ended.
        Unavailable: the database is away.
    """
    loop = asyncio.get_running_loop()
    setup = (dsn, statement_timeout, policy, scope, gc.get_threshold())
    pool = ProcessPoolExecutor(HELPERS, mp_context=get_context("spawn"), initializer=_begin, initargs=setup)
    under_way: deque[tuple[Window, asyncio.Future[tuple[int, list[Difference]]]]] = deque()
    try:
        for window in windows:
            under_way.append((window, loop.run_in_executor(pool, _review, window)))
            if len(under_way) > 2 * HELPERS:
                earliest, found = under_way.popleft()
                yield (earliest, *await found)
        for window, found in under_way:
            yield (window, *await found)
    except BrokenProcessPool:
        raise CannotReplay("A helper process was ended; is there enough memory?") from None
    finally:
        await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        await asyncio.gather(*(found for _, found in under_way), return_exceptions=True)


# --- In a helper ------------------------------------------------------------------------------


class _Helper:
    """An event loop of its own, on which one window after the other is reviewed."""

    def __init__(self, dsn: str, statement_timeout: timedelta, policy: Policy, scope: Scope) -> None:
        self._runner = asyncio.Runner()
        self._connection = ReconnectingConnection(
            dsn, name="what-if", statement_timeout=statement_timeout, read_only=True
        )
        self._judge = Judge(policy, scope)

    def review(self, window: Window) -> tuple[int, list[Difference]]:
        return self._runner.run(self._judge.review(self._connection, window))


_helper: list[_Helper] = []
"""The one of this process, once it has begun."""


def _begin(
    dsn: str, statement_timeout: timedelta, policy: Policy, scope: Scope, threshold: tuple[int, int, int]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all processes of a terminal: the first ends the others
    gc.set_threshold(*threshold)
    Thread(target=_end_with_the_first, daemon=True).start()
    _helper.append(_Helper(dsn, statement_timeout, policy, scope))


def _end_with_the_first() -> None:
    """A process that is killed cannot end its helpers, which would wait for it for ever."""
    first = parent_process()
    assert first is not None  # noqa: S101 - this is a helper
    first.join()
    os._exit(1)


def _review(window: Window) -> tuple[int, list[Difference]]:
    return _helper[0].review(window)
