"""Everybody at once against the real service; and the same with weaker settings, which the claims must notice.

`make attack` does it with 100,000 requests and the settings of the documents, `make chaos` with a million.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from entrypoints.api.http_server import Server
from infrastructure.limits.gcra import Check
from infrastructure.limits.shared import SharedLimiter
from infrastructure.postgres.connection import connect
from tests.attack.claims import judge, mailbox_of
from tests.attack.deeds import Field, Range, Run
from tests.attack.floods import MailBomb
from tests.attack.running import Stage, connections, run, until_mailed
from tests.attack.strangers import TellApart
from tests.attack.wire import Who, Wire
from tests.faults.evidence import MASTER_KEY, collect, keyring_of
from tests.faults.fleet import TOKEN
from tests.faults.journal import Journal
from tests.faults.people import Inbox
from tests.support.facts import MovableClock, eventually
from tests.support.http import open_api
from tests.support.log import query
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


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_same_attack_on_weaker_settings_is_noticed(stage: Stage) -> None:
    weaker = {
        "limits": "network=off",
        "resend_cooldown": f"{COOLDOWN:g}",
        "otp_max_attempts": "10",
        "reveal_duplicates": "true",
    }
    report = await run(REQUESTS * 3 // 4, replace(stage, settings=weaker), seed=13)

    # More pass than may, mails follow each other too soon, more guesses are compared, and an account is told.
    assert {one.invariant for one in report.violations} >= {"limits", "budget", "guesses", "statuses"}, str(report)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_in_a_day_of_attacks_from_200_networks_a_mailbox_gets_five_mails_and_no_end_tells_anybody_apart(
    dsn: str, clock: MovableClock
) -> None:
    """S13, S1: by a clock of our own, because a budget of a day takes a day, and so does the end of a registration."""
    comparing = TellApart(2)
    async with SmtpStub() as sink, _in_this_process(dsn, sink, clock) as (field, url):
        await comparing.prepare(field, [url])
        await comparing.attack(field, 60)
        await until_mailed(dsn)
        clock.now += timedelta(minutes=2)
        await comparing.look_again(field)
        bomb = MailBomb(1, Range(0, 200))
        for _ in range(25):
            await bomb.attack(field, 40)
            await until_mailed(dsn)
            clock.now += timedelta(hours=1)
        await eventually(lambda: _all_ended(dsn, clock.now - timedelta(hours=24)))
        await comparing.look_again(field, "after their end")
        evidence = await collect(dsn, journal=field.journal, mails=sink.mails, refold=False)

    run = Run(field.wire.ledger, seconds=0, uncounted=0, processes=1, cooldown=field.cooldown)
    assert judge(evidence, field.deeds, run, only=("budget", "alike", "side effects", "guesses", "guessed")) == []
    bombed = [mail for mail in evidence.mails if mailbox_of(mail.to).startswith("victim")]
    assert [mail.code is not None for mail in bombed] == [True] * 6  # the sixth in the 25th hour
    assert field.wire.statuses[Who.BOMBING].keys() <= {202, 429, 409}


async def test_a_call_to_redis_that_fails_shows_as_a_connection(redis: PrivateRedis) -> None:
    """Claims about limits allow for such a call: they must learn of it."""
    limiter, check = SharedLimiter(redis.url), Check("{registrar}:test", interval=1, burst=1)
    before = connections(redis)
    for _ in range(10):
        await limiter.decide([check])
    assert connections(redis) == before + 1 + 1  # one of its, one of ours

    redis.pause()
    await limiter.decide([check])
    redis.resume()
    await limiter.decide([check])
    await limiter.close()

    assert connections(redis) == before + 2 + 2


@asynccontextmanager
async def _in_this_process(dsn: str, sink: SmtpStub, clock: MovableClock) -> AsyncIterator[tuple[Field, str]]:
    """The whole service by this clock, and what attackers of it have at hand; and where it serves."""
    settings: dict[str, Any] = {
        "smtp_urls": f"smtp://127.0.0.1:{sink.port}?starttls=never",
        "trusted_proxies": "127.0.0.0/8",
        "master_key": MASTER_KEY,
        "admin_token": TOKEN,
    }
    async with open_api(dsn, clock=clock, **settings) as api:
        server = Server(api.app, host="127.0.0.1", port=0, trusted_proxies=(ip_network("127.0.0.0/8"),))
        await server.start()
        async with await connect(dsn, name="attack", statement_timeout=timedelta(seconds=10)) as connection:
            codes = await keyring_of(connection)
        wire = Wire([server.port])
        cooldown = timedelta(seconds=60)
        chance = random.Random(13)  # noqa: S311 - repeatable
        try:
            yield Field(wire, Journal(), Inbox(sink), codes, chance, cooldown), f"http://127.0.0.1:{server.port}"
        finally:
            wire.close()
            await server.stop()


async def _all_ended(dsn: str, begun_before: datetime) -> bool:
    """Every registration that had begun by then is over."""
    rows = await query(
        dsn,
        "SELECT count(*) FROM read_registrations.progress JOIN read_registrations.registrations USING (registration_id)"
        " WHERE status = 'PENDING' AND created_at < %s",
        begun_before,
    )
    return rows == [(0,)]
