"""A real Prometheus scrapes a real service by our rules: targets are up, and alerts fire by their faults."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from entrypoints.api.app import create_app
from entrypoints.api.http_server import Server
from tests.support import prometheus
from tests.support.facts import eventually
from tests.support.http import Api, open_api
from tests.support.prometheus import PrivatePrometheus
from tests.support.rabbitmq import PrivateRabbit
from tests.support.redis import PrivateRedis
from tests.support.smtp_stub import SmtpStub

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"


def configure(directory: Path, port: int) -> int:
    """Our rules and our job, with seconds in place of minutes; returns how many rules there are."""
    rules, number = directory / "rules", 0
    rules.mkdir()
    for file in (DEPLOY / "rules").glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        number += len(re.findall(r"^ +- (?:alert|record):", text, re.MULTILINE))
        (rules / file.name).write_text(re.sub(r"\bfor: \d+[mh]$", "for: 1s", text, flags=re.MULTILINE))
    (directory / "prometheus.yaml").write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                "rule_files": ["rules/*.yaml"],
                "scrape_configs": [{"job_name": "registrar", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
            }
        )
    )
    return number


async def fires(server: PrivatePrometheus, *expected: str) -> None:
    """Wait until these alerts fire, and no others."""

    async def exactly() -> bool:
        assert set(server.firing()) == set(expected)
        return True

    await eventually(exactly, within=200)


@asynccontextmanager
async def watched(api: Api, directory: Path) -> AsyncIterator[tuple[PrivatePrometheus, Server]]:
    """A Prometheus that scrapes the service and has judged it by every rule; and what the service listens with."""
    listener = Server(create_app(api.service.api), host="127.0.0.1", port=0, metrics=api.service.metrics)
    await listener.start()
    number = configure(directory, listener.port)
    with prometheus.server(directory) as server:

        async def judged() -> bool:
            targets = server.ask("targets")["activeTargets"]
            assert [(target["health"], target["lastError"]) for target in targets] == [("up", "")]
            rules = [rule for group in server.ask("rules")["groups"] for rule in group["rules"]]
            assert len(rules) == number
            assert {rule["health"] for rule in rules} == {"ok"}
            return True

        await eventually(judged, within=60)
        await fires(server)  # before the first scrape nobody was ready
        yield server, listener
    await listener.stop()


@pytest.mark.slow
async def test_faults_of_mails_and_followers_fire_their_alerts_which_resolve(
    dsn: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    prometheus.demand(pytestconfig)
    async with (
        SmtpStub() as mail_server,
        open_api(dsn, works=True, smtp_urls=f"smtp://127.0.0.1:{mail_server.port}?starttls=never") as api,
        watched(api, tmp_path) as (server, listener),
    ):
        mail_server.at("rcpt", "550 5.7.1 relaying denied")
        for name in ("ada", "bob", "eve"):
            assert (await api.register(f"{name}@example.com")).status_code == 202
        await fires(server, "RegistrarMailServerTakesNothing")
        mail_server.heal()
        assert (await api.register("kim@example.com")).status_code == 202
        await fires(server)

        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("INSERT INTO parked_events VALUES ('audit', gen_random_uuid(), 1, 'TopicError')")
            await fires(server, "RegistrarParkedStreams")
            connection.execute("DELETE FROM parked_events")
        await fires(server)

        await listener.stop()
        await fires(server, "RegistrarNotReady", "RegistrarProcessDown")


@pytest.mark.slow
async def test_faults_around_the_service_fire_their_alerts_which_resolve(
    dsn: str,
    killable_rabbit: PrivateRabbit,
    redis: PrivateRedis,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    prometheus.demand(pytestconfig)
    async with (
        open_api(
            dsn,
            works=True,
            broker_url=killable_rabbit.vhost(),
            rate_limit_url=redis.url,
        ) as api,
        watched(api, tmp_path) as (server, _),
    ):
        await api.active()
        redis.kill()
        for name in ("bob", "eve", "kim"):  # it is noticed by those who ask
            assert (await api.register(f"{name}@example.com")).status_code == 202
        await fires(server, "RegistrarLimiterDegraded")
        redis.start()
        await fires(server)

        killable_rabbit.kill()
        await fires(server, "RegistrarBrokerDown")
        killable_rabbit.start()
        await fires(server)


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.timeout(500)
async def test_a_row_that_is_changed_fires_until_it_is_as_the_log_says(
    dsn: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    prometheus.demand(pytestconfig)
    async with open_api(dsn, works=True, verify_interval="1") as api, watched(api, tmp_path) as (server, _):
        await api.active()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE read_registrations.registrations SET locale = 'xx'")
            await fires(server, "RegistrarReadModelDiffers")  # verification in the background takes its time
            connection.execute("UPDATE read_registrations.registrations SET locale = 'en'")
        await fires(server)


@pytest.mark.slow
async def test_a_follower_that_does_not_run_fires_though_it_cannot_tell(
    dsn: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    prometheus.demand(pytestconfig)
    async with open_api(dsn, follows=False) as api, watched(api, tmp_path) as (server, _):
        assert (await api.register()).status_code == 202
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
            connection.execute("UPDATE events SET recorded_at = recorded_at - interval '2 minutes'")

        await fires(server, "RegistrarFollowerLags", "RegistrarReadModelsBehind")
