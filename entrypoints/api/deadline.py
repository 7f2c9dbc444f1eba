"""A request's deadline: `asyncio.timeout_at` for a quarter of its time."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Deadline:
    """Ends the block with `TimeoutError` once it has passed.

    The library's sets a timer anew wherever the deadline is put off, and asks three times which loop is running, which
    is a system call each (CPython 3.11). This one looks when its timer is due whether it was put off.

    Attributes:
        expired: it has passed, and the block was cancelled.
    """

    __slots__ = ("_cancelling", "_loop", "_task", "_timer", "_when", "expired")
    _timer: asyncio.TimerHandle

    def __init__(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        """
        Args:
            when: in the loop's time.
        """
        self._loop = loop
        self._when = when
        self.expired = False

    def move(self, when: float) -> None:
        """Have it then instead; inside the block only, and without effect once it has passed."""
        sooner = when < self._when
        self._when = when
        if sooner and not self.expired:
            self._timer.cancel()
            self._timer = self._loop.call_at(when, self._due)

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 - narrows: a coroutine runs in a task
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = self._loop.call_at(self._when, self._due)
        return self

    def _due(self) -> None:
        if self._loop.time() < self._when:
            self._timer = self._loop.call_at(self._when, self._due)
        else:
            self.expired = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error  # whoever else has cancelled the task gets what they asked for
