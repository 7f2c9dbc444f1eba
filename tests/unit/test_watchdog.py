"""The watchdog: where a loop stands still is told while it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from infrastructure.telemetry.watchdog import watched
from tests.support.facts import eventually


def blocked_by_a_bug(until_told: Sequence[object], deadline: float) -> None:
    while not until_told and time.monotonic() < deadline:
        time.sleep(0.005)  # what must not be done on a loop


@pytest.mark.fault("F13")
async def test_a_loop_that_stands_still_is_told_with_its_stack_once_and_again_the_next_time() -> None:
    with capture_logs() as told, watched(timedelta(milliseconds=100)):
        for _ in range(2):
            told.clear()
            blocked_by_a_bug(told, time.monotonic() + 60)
            [entry] = told
            assert (entry["event"], entry["log_level"]) == ("loop.blocked", "error")
            assert "blocked_by_a_bug" in entry["stack"]
            await asyncio.sleep(0)
            turned = asyncio.Event()
            asyncio.get_running_loop().call_later(0.2, turned.set)
            await eventually(turned.is_set)
        assert len(told) == 1


@pytest.mark.fault("F13")
async def test_of_a_loop_that_turns_nothing_is_told() -> None:
    turns = 0
    with capture_logs() as told, watched(timedelta(milliseconds=200)):

        def turned() -> bool:
            nonlocal turns
            turns += 1
            return turns > 50

        await eventually(turned)
    assert told == []
