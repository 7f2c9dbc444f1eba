"""Timers that go off together: what a process does every few seconds wakes it up once, and not once for each."""

from __future__ import annotations

import asyncio
from datetime import timedelta


def until_tick(period: timedelta) -> timedelta:
    """How long until the running loop's clock comes to a multiple of `period`: a millisecond at least."""
    now = asyncio.get_running_loop().time()
    return timedelta(seconds=after(now, period) - now)


def after(moment: float, period: timedelta) -> float:
    """The first multiple of `period` that is a millisecond after a moment or later, in seconds: so that time passes."""
    seconds = period.total_seconds()
    return ((moment + 0.001) // seconds + 1) * seconds
