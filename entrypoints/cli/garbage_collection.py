"""How often a process that keeps running collects garbage; those of `bench/` do the same, to be comparable."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Let the garbage collector run seldom, and never look at what lives as long as the process.

    Nearly everything a request makes dies by reference count. With Python's own thresholds the collector took a
    third of the time of a registration: 1,735/s became 2,300/s (medians of two pairs, 64 connections, 2026-11-23).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
