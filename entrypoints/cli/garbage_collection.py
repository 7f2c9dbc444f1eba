"""How often a process collects garbage; those of `bench/` do the same, to be comparable."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def collect_nothing_yet() -> None:
    """Let the garbage collector rest until `collect_from_now_on`: nearly everything that imports make stays.

    There it took a twelfth of the time with Python's own thresholds, and a twentieth if it ran seldom (2026-11-28).
    """
    gc.disable()


def collect_from_now_on() -> None:
    """The end of `collect_nothing_yet`: what was made meanwhile is never looked at.

    One object in a hundred of it is garbage (0.4 MB), and to find those took a tenth of a start (2026-11-29).
    """
    gc.freeze()
    gc.enable()


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """For imports that come later; whether garbage is collected is afterwards as it was before."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def collect_rarely() -> None:
    """Let the garbage collector run seldom.

    Nearly everything a request makes dies by reference count. With Python's own thresholds the collector took a
    third of the time of a registration: 1,735/s became 2,300/s (medians of two pairs, 64 connections, 2026-11-23).
    """
    gc.set_threshold(20_000, 50, 100)


def collect_hardly_ever() -> None:
    """For a command that holds batches of five thousand events, which die by reference count.

    Their objects would be looked at over and over: that took a sixth of a rebuild (2026-11-28).
    """
    gc.set_threshold(500_000, 50, 1000)


def keep_what_is_there() -> None:
    """Never look again at what has been made by now, because it lives as long as the process."""
    gc.collect()
    gc.freeze()
