"""What tests of alerts stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.alerts import world as worlds
from tests.alerts.faults import FAULTS
from tests.alerts.world import World
from tests.support import prometheus
from tests.support.rabbitmq import PrivateRabbit
from tests.support.redis import PrivateRedis


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what takes minutes, before anything is started for it."""
    if not item.config.getoption("--full-size"):
        pytest.skip("takes minutes: make test-alerts")


@pytest.fixture
def of_process(fault: str) -> Mapping[str, str]:
    """Settings of `process`, on top of the usual ones."""
    return FAULTS[fault].process


@pytest.fixture
async def world(
    dsn: str,
    redis: PrivateRedis,
    killable_rabbit: PrivateRabbit,
    tmp_path: Path,
    reached_directory: Path,
    pytestconfig: pytest.Config,
    of_process: Mapping[str, str],
) -> AsyncIterator[World]:
    """The whole service, and a Prometheus that finds nothing wrong with it."""
    prometheus.demand(pytestconfig)
    async with worlds.opened(dsn, redis, killable_rabbit, tmp_path, reached_directory, of_process) as world:
        yield world
