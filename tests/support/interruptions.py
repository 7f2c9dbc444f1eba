"""Cancels a piece of work at any of its waits, and sees what is left to the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg.waiting
import pytest


class _Interrupted:
    """A coroutine whose task is cancelled at its `at`-th wait, and again at each of the next ones, `times` in all."""

    def __init__(self, work: Coroutine[Any, Any, Any], *, at: int, times: int) -> None:
        self._work = work
        self._at = range(at, at + times)
        self.waits = 0

    def __await__(self) -> Generator[Any, None, None]:
        task = asyncio.current_task()
        assert task is not None
        error: BaseException | None = None
        while True:
            try:
                future = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration:
                return
            self.waits += 1
            if self.waits in self._at:
                task.cancel()
            error = None
            try:
                yield future
            except BaseException as thrown:  # noqa: BLE001 - the coroutine is to see it, whatever it is
                error = thrown


async def interrupt(work: Coroutine[Any, Any, Any], *, at: int, times: int = 1) -> bool:
    """Run `work` to its end, cancelled at its `at`-th wait; False if it did not wait so often.

    Raises:
        Exception: from `work`. A cancellation that it answers with anything else was lost.
    """
    interrupted = _Interrupted(work, at=at, times=times)

    async def run() -> None:
        await interrupted

    task = asyncio.create_task(run())
    await asyncio.wait({task})
    assert task.cancelled() or task.result() is None
    return interrupted.waits >= at


@contextmanager
def nothing_left_behind(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing in the block is left for the garbage collector that then fails, where nobody could catch it."""
    failed: list[str] = []
    with patch.context() as patched:
        patched.setattr(sys, "unraisablehook", lambda one: failed.append(f"{one.object!r}: {one.exc_value!r}"))
        yield
        gc.collect()
    assert not failed, failed


def wait_as_under_load(patch: pytest.MonkeyPatch) -> None:
    """Let psycopg give way to the event loop before each message, as it does when the loop has been busy for 5 ms."""
    patch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0.0)
