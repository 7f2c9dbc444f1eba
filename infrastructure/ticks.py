"""Timers that go off together: what a process does every few seconds wakes it up once, and not once for each."""

from __future__ import annotations

import asyncio
from datetime import timedelta


def until_tick(period: timedelta) -> timedelta:
    """How long until the running loop's clock comes to a multiple of `period`: at least a millisecond, at most
    `period`."""
    now = asyncio.get_running_loop().time()
    return timedelta(seconds=max(0.001, after(now, period) - now))


def after(moment: float, period: timedelta) -> float:
    """The first multiple of `period` after a moment, in seconds."""
    seconds = period.total_seconds()
    return (moment // seconds + 1) * seconds
