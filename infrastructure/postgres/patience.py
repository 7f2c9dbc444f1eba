"""How long a request waits for the database in all, whatever it asks of it: the wait is handed on with the task."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import timedelta
from math import inf
from typing import Final

LONGEST: Final = timedelta(seconds=1.9)
"""A database that hangs costs a request at most two seconds; whether it hangs is looked at every 100 ms."""


class Patience:
    """What is left of it, counted down by those who wait.

    Attributes:
        left: seconds.
    """

    __slots__ = ("left",)

    def __init__(self, left: float) -> None:
        self.left = left


_ENDLESS: Final = Patience(inf)

_current: ContextVar[Patience] = ContextVar("patience with the database", default=_ENDLESS)

current = _current.get
"""Of the task that asks; without end for whoever is no request: followers, workers, commands."""


class limited:  # noqa: N801 - used like a function, and half as dear as a generator: it is around every request
    """What is asked of the database in this block gets an answer in so much time together, or an error."""

    __slots__ = ("_seconds", "_token")

    def __init__(self, longest: timedelta = LONGEST) -> None:
        self._seconds = longest.total_seconds()

    def __enter__(self) -> None:
        self._token = _current.set(Patience(self._seconds))

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
