"""A matrix of faults and alerts: each real fault fires exactly the alerts of its row, and they resolve."""

from __future__ import annotations

import time

import pytest

from tests.alerts.faults import FAULTS
from tests.alerts.world import World


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.timeout(480)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_fires_exactly_its_alerts_and_they_resolve(world: World, fault: str) -> None:
    begun, found = time.time(), FAULTS[fault]
    async with found.breaks(world):
        await world.until_fired(*found.fires)
    await world.until_fired(*found.then)
    await world.until_silent()

    assert world.have_fired(begun) == found.fires | found.then
