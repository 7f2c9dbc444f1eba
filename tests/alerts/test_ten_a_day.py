"""Objectives hold at ten registrations a day, too, over five days: by promtool, whose days take seconds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import pytest

from tests.integration.test_alert_rules import (
    COMMANDS_FAIL,
    FAILED,
    IN_TIME,
    REGISTERED,
    SERVE,
    TICKET,
    Values,
    judged,
)
from tests.support.prometheus import demand

STEP, APART = 2, 144
DAY = 24 * 60
OUTAGE: Final = range(2 * DAY, 3 * DAY)
DAYS: Final = 5


def ten_a_day(failing: Collection[int]) -> dict[str, Values]:
    """One registration each 144 minutes, for five days; those at these minutes fail."""
    failed: list[float] = []
    registered: list[float] = []
    bad = good = 0
    for minute in range(0, DAYS * DAY + 1, STEP):
        failed.append(bad)
        registered.append(good)
        if minute % APART == 0:
            bad, good = bad + (minute in failing), good + (minute not in failing)
    ready = [1] * len(failed)
    return {
        f"registrar_ready{{{SERVE}}}": ready,
        f'registrar_info{{role="serve",version="1",{SERVE}}}': ready,
        FAILED: failed,
        f"registrar_requests_seconds_count{REGISTERED}": registered,
        IN_TIME: registered,
    }


@pytest.mark.slow
def test_an_outage_at_ten_a_day_fires_with_the_second_failure_until_the_first_success(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    demand(pytestconfig)
    first, last = OUTAGE.start, OUTAGE.stop

    judged(
        tmp_path,
        ten_a_day(OUTAGE),
        {
            first - 10: set(),
            first + APART - 10: set(),  # one failure wakes nobody
            **dict.fromkeys(range(first + APART + 10, last, 50), COMMANDS_FAIL),
            last + 10: {("RegistrarCommandsFail", TICKET)},  # until six hours have passed
            **{minute: set() for minute in range(last + 6 * 60, DAYS * DAY, 50)},
        },
        step=STEP,
    )


@pytest.mark.slow
@pytest.mark.parametrize("failing", [(), (OUTAGE.start,)], ids=["none fails", "one fails"])
def test_nothing_ever_fires_at_ten_a_day(failing: Collection[int], tmp_path: Path, pytestconfig: pytest.Config) -> None:
    demand(pytestconfig)

    judged(
        tmp_path,
        ten_a_day(failing),
        {DAYS * DAY: set()},
        step=STEP,
        query=f'group by (alertname, severity) (max_over_time(ALERTS{{alertstate="firing"}}[{DAYS}d]))',
    )
