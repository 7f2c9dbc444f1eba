"""`registrar` on a machine that is not as it should be: `python -m tests.faults.launcher '{"shifts": [660]}' serve …`.

Everything is done to the process before it has imported any of ours:

* `shifts`: its wall clock is wrong by so many seconds; with several, by one after the other, a quarter of a second
  each.
* `descriptors`: it may open so many files.
* `durations`: constants of ours, by module and name, in seconds, so that a test need not wait for them.
"""

from __future__ import annotations

import datetime as dt
import importlib
import json
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

STEP = 0.25

_REAL = dt.datetime


def shift_wall_clock(shifts: Sequence[float]) -> None:
    """Every way to ask Python for the time of day answers a wrong one; the monotonic clock stays as it is."""
    true_time, true_clock = time.time, time.clock_gettime

    def wrong_by() -> float:
        return shifts[int(time.monotonic() / STEP) % len(shifts)]

    def wrong_time() -> float:
        return true_time() + wrong_by()

    def wrong_clock(clock: int) -> float:
        return wrong_time() if clock == time.CLOCK_REALTIME else true_clock(clock)

    time.time = wrong_time
    time.time_ns = lambda: int(wrong_time() * 1e9)
    time.clock_gettime = wrong_clock
    time.clock_gettime_ns = lambda clock: int(wrong_clock(clock) * 1e9)

    class _Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, _REAL)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, _REAL)

    class Wrong(_REAL, metaclass=_Kind):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return _REAL.__new__(_REAL, *args, **kwargs)

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return _REAL.fromtimestamp(wrong_time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return _REAL.fromtimestamp(wrong_time(), dt.UTC).replace(tzinfo=None)

    dt.datetime = Wrong  # type: ignore[misc]


def main() -> None:
    how = json.loads(sys.argv[1])
    if "shifts" in how:
        shift_wall_clock(how["shifts"])
    if "descriptors" in how:
        resource.setrlimit(resource.RLIMIT_NOFILE, (how["descriptors"], how["descriptors"]))
    for name, seconds in how.get("durations", {}).items():
        path, _, constant = name.rpartition(".")
        module = importlib.import_module(path)
        assert isinstance(getattr(module, constant), dt.timedelta)  # set where it is not read, it would change nothing
        setattr(module, constant, dt.timedelta(seconds=seconds))
    cli = importlib.import_module("entrypoints.cli.main")
    sys.exit(cli.run(sys.argv[2:]))


if __name__ == "__main__":
    main()
