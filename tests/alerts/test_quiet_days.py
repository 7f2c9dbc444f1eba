"""Nothing fires on a day on which nothing is wrong, however few come: eight minutes here, as time is scaled."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import pytest

from tests.alerts.scaled import SCALE
from tests.alerts.world import World
from tests.support.facts import eventually

DAY: Final = 86_400 / SCALE


@pytest.fixture
def of_process() -> Mapping[str, str]:
    """The probe is set."""
    return {"synthetic": "1/5s"}


async def until(moment: float) -> None:
    await eventually(lambda: time.time() >= moment, within=2 * DAY, every=0.2)


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.timeout(900)
@pytest.mark.parametrize("people", [0, 10])
async def test_no_alert_fires_for_a_whole_day_on_which_nothing_is_wrong(world: World, people: int) -> None:
    begun = time.time()
    for number in range(people):
        await until(begun + number * DAY / people)
        await world.join()
    await until(begun + DAY)

    assert world.have_fired(begun) == set()
    [passed] = world.prometheus.ask("query", query='registrar_synthetic_total{outcome="passed"}')["result"]
    assert float(passed["value"][1]) > DAY / 10
