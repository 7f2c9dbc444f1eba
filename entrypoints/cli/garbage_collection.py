"""How often a process collects garbage; those of `bench/` do the same, to be comparable."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Let the garbage collector run seldom.

    Nearly everything a request makes dies by reference count. With Python's own thresholds the collector took a
    third of the time of a registration: 1,735/s became 2,300/s (medians of two pairs, 64 connections, 2026-11-23).
    Nearly everything that is made at the start stays: there it took a twelfth (2026-11-27).
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
