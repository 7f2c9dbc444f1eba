"""Run `registrar` so that it kills itself at a crash point.

    python -m tests.faults.armed worker.after_claim:3 DIRECTORY -- process

At the third passing of `worker.after_claim` the process notes in DIRECTORY that it got there, and dies of SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

from application.crash_points import CRASH_POINTS, CrashPoint, armed
from entrypoints.cli.main import run
from tests.faults.reached import note

A_TURN_LATER = frozenset[CrashPoint]({"worker.before_eod_reply"})
"""Where the loop must go round once before the death: the last bytes written are only then with the kernel."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(point: CrashPoint, passing: int, then: Callable[[], None]) -> Callable[[CrashPoint], None]:
    """A hook that calls `then` at the given passing of the point, counted from 1, and at no other."""
    if point not in CRASH_POINTS:
        raise KeyError(f"{point} is no crash point")
    passed = 0
    lock = threading.Lock()  # passwords are hashed in threads

    def hook(name: CrashPoint) -> None:
        nonlocal passed
        if name == point:
            with lock:
                passed += 1
                due = passed == passing
            if due:
                then()

    return hook


def parse(words: str) -> tuple[CrashPoint, int]:
    """`worker.after_claim:3` is the third passing, `worker.after_claim` the first."""
    name, _, passing = words.partition(":")
    if name not in CRASH_POINTS:
        raise KeyError(f"{name} is no crash point")
    return cast("CrashPoint", name), int(passing or 1)


def main(arguments: list[str]) -> int:
    words, directory, dashes, *command = arguments
    assert dashes == "--"
    point, passing = parse(words)

    def then() -> None:
        note(Path(directory), point)
        if point in A_TURN_LATER:
            asyncio.get_running_loop().call_soon(die)
        else:
            die()

    with armed(at(point, passing, then)):
        return run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
