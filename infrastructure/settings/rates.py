"""How often something is done, as an operator writes it: `1/min`, `6/h`, `1/30s`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final

from pydantic import BeforeValidator

from infrastructure.settings.values import duration

SHORTEST: Final = timedelta(seconds=1)
LONGEST: Final = timedelta(days=1)
"""From one time to the next."""

_UNITS: Final = {"s": "1s", "min": "1m", "m": "1m", "h": "1h", "d": "1d"}
"""A unit alone is one of it."""


def interval(value: object) -> object:
    """Parse `COUNT/DURATION` into the time from one to the next.

    Raises:
        ValueError: it is something else, or too often or too rare.
    """
    if not isinstance(value, str):
        return value
    count, slash, per = value.partition("/")
    if not slash or not count.isascii() or not count.isdigit() or len(count) > 6 or not int(count):
        raise ValueError("is not how often, as in 1/min, 6/h or 1/30s")
    length = duration(_UNITS.get(per, per))
    assert isinstance(length, timedelta)  # noqa: S101 - of text it is
    every = length / int(count)
    if not SHORTEST <= every <= LONGEST:
        raise ValueError("is more often than once a second, or rarer than once a day")
    return every


Rate = Annotated[timedelta, BeforeValidator(interval)]
