"""Timers that go off together."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from infrastructure.ticks import after, until_tick
from tests.support.facts import eventually

PERIOD = timedelta(seconds=3)


@pytest.mark.parametrize(("moment", "tick"), [(0.0, 3.0), (2.999, 3.0), (3.0, 6.0), (100.5, 102.0)])
def test_the_next_tick_is_the_multiple_after_a_moment(moment: float, tick: float) -> None:
    assert after(moment, PERIOD) == tick


async def test_whenever_they_begin_to_wait_all_wait_for_the_same_tick() -> None:
    now = asyncio.get_running_loop().time

    first = now() + until_tick(timedelta(hours=1)).total_seconds()
    begun = now()
    await eventually(lambda: now() > begun + 0.01)
    second = now() + until_tick(timedelta(hours=1)).total_seconds()

    assert second == pytest.approx(first, abs=0.005)
