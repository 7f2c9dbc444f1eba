"""Methods of dataclasses, compiled when they are first called.

A process loads four hundred dataclasses and hardly ever prints, compares, hashes or changes an object of most of them.
To compile the methods for it took a fifth of the CPU of a start (our measurement, 2026-11-29).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, Final

_HARDLY_EVER: Final = frozenset({"__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"})
_KNOWN: Final = ((3, 11), (3, 12))
"""Python's versions that compile each method by itself. Later ones compile a class at once, for less."""

_Create = Callable[..., Callable[..., Any]]


def compile_when_called() -> None:
    """Have the dataclasses that are made from now on compile those methods when they are first called.

    They do the same as ever. Only `__init__`, whose signature others read, is compiled at once.
    """
    create: _Create | None = vars(dataclasses).get("_create_fn")
    if create is not None and sys.version_info[:2] in _KNOWN:
        vars(dataclasses)["_create_fn"] = _lazily(create)


def _lazily(create: _Create) -> _Create:
    def create_later(name: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        if name in _HARDLY_EVER:
            return _stand_in(name, lambda: create(name, *arguments, **options))
        return create(name, *arguments, **options)

    return create_later


def _stand_in(name: str, compiled: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """Compiles the method at the first call, and has it take its own place in the class."""
    method: Callable[..., Any] | None = None

    def stand_in(self: object, *arguments: Any) -> Any:
        nonlocal method
        if method is None:
            method = compiled()
            method.__qualname__ = stand_in.__qualname__
            for owner in type(self).__mro__:
                if vars(owner).get(name) is stand_in:
                    setattr(owner, name, method)
        return method(self, *arguments)

    stand_in.__name__ = stand_in.__qualname__ = name
    return stand_in
