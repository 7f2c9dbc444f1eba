"""Everybody at once against the real service; and the same with weaker settings, which the claims must notice.

`make attack` does it with 100,000 requests and the settings of the documents, `make chaos` with a million.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.attack.running import Stage, run
from tests.attack.wire import Who
from tests.support.redis import PrivateRedis
from tests.support.smtp_stub import SmtpStub

REQUESTS = 4000
COOLDOWN = 1.0
"""So that mailboxes come to the hourly part of their budget."""


@pytest.fixture
async def stage(dsn: str, redis: PrivateRedis, tmp_path: Path, reached_directory: Path) -> AsyncIterator[Stage]:
    async with SmtpStub() as sink:
        yield Stage(dsn, sink, redis, tmp_path, reached_directory)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_an_attack_from_200_networks_gets_no_mail_over_budget_no_code_and_tells_no_account_apart(
    stage: Stage,
) -> None:
    report = await run(REQUESTS, stage, seed=13, cooldown=COOLDOWN)

    assert not report.violations, str(report)
    assert report.requests >= REQUESTS * 0.9
    assert all(report.statuses[who].total() for who in Who)
