"""What `/metrics` shows, all of it: its form, its names, its size, and what no process is there to tell."""

from __future__ import annotations

import json
import re
from contextlib import AbstractAsyncContextManager
from itertools import product
from pathlib import Path

import pytest

from application.story.words import FAILURES
from entrypoints.api.admission import MOST
from entrypoints.api.problems import STATUS_OF
from infrastructure.followers.names import names_of_followers
from infrastructure.settings.limits import DEFAULTS
from infrastructure.telemetry.durations import OTHER
from infrastructure.telemetry.metrics import MOST_SERIES, PEOPLES, Metrics
from projections import PROJECTIONS
from tests.support import prometheus
from tests.support.facts import T0, eventually
from tests.support.http import ADMIN, Api, open_api
from tests.support.redis import PrivateRedis

ROOT = Path(__file__).parents[2]
ROUTES = json.loads((ROOT / "tests" / "golden" / "names" / "routes.json").read_text())
CONTRACT = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
ID = "01234567-89ab-7cde-8f01-23456789abcd"


def everywhere(dsn: str, broker_url: str, redis: PrivateRedis, checkpoints: Path) -> AbstractAsyncContextManager[Api]:
    """One process that does all there is to do."""
    return open_api(
        dsn,
        works=True,
        broker_url=broker_url,
        rate_limit_url=redis.url,
        limits="admin-login=off,network=off",
        checkpoint_key="9" * 64,
        checkpoint_dir=str(checkpoints),
        checkpoint_url="http://127.0.0.1:9/",
    )


async def everything_is_asked_for(api: Api) -> None:
    """A registration that gets its mail, and every route: well, badly, and by somebody who may not."""
    await api.active()
    for route, headers, body in product(ROUTES, ({}, ADMIN, ADMIN | {"X-Reason": "to see"}), ({}, {"code": "000000"})):
        method, _, path = route.partition(" ")
        filled = path.replace("{name}", "mail").replace("{stream_id}", ID)
        filled = re.sub(r"\{\w+\}", ID, filled)
        if not path.startswith("/mailbox") and "export" not in path:
            await api.http.request(method, filled, headers=headers, json=body if method == "POST" else None)


def every_label_has_every_value(metrics: Metrics) -> None:
    """Whatever the code can count, in a fleet with two mail servers, and a client who tries every route."""
    codes, failures = [*STATUS_OF], ["accepted", *FAILURES]
    for code in codes:
        metrics.registration(code)
        metrics.verification(code)
    for provider, outcome in product(("a:25", "b:25"), failures):
        metrics.mail(provider, outcome)
    for provider, state in product(("a:25", "b:25", "redis"), ("opened", "half-opened", "closed")):
        metrics.circuit(provider, "closed", state)
        metrics.mail_concurrency(provider, 1)
    for limit, outcome in product(DEFAULTS, ("passed", "refused")):
        metrics.limit(limit.name, outcome)
    for reason in ("busy", *(f"busy-{name}" for name in MOST), "connections", "queue-full"):
        metrics.shed(reason)
    alerts = re.findall(r"^\| `([a-z-]+)` \| ", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    for alert, outcome in product(alerts, ("told", "failed")):
        metrics.alert(alert, outcome)
    metrics.webhook("delivered")
    metrics.webhook("failed")
    metrics.takes_bounces()
    for doubt in ("misspelt-domain", "disposable-domain"):
        metrics.doubtful_address(doubt, "hint")
    for name in names_of_followers([one.name for one in PROJECTIONS], publishes=True):
        metrics.measured.follower(name, lag_events=1, lag_seconds=1, parked_streams=1)
    for read_model in PROJECTIONS:
        metrics.measured.projection(read_model.name, mismatches=0, verified_at=T0)
    metrics.measured.troubles({"a:25": "refusing", "b:25": "deferring"})
    for route, status in product(ROUTES, {*STATUS_OF.values(), 200, 202, 499}):
        metrics.request(route.partition(" ")[2], status, 0.1)


def series_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def requests_in(text: str) -> float:
    counts = [line for line in series_of(text) if line.startswith("registrar_requests_seconds_count{")]
    return sum(float(line.rpartition(" ")[2]) for line in counts)


async def shown(api: Api) -> str:
    text: str = (await api.http.get("/metrics")).text
    return text


async def test_a_process_has_five_hundred_series_at_most_whatever_is_asked_of_it(
    dsn: str, broker_url: str, redis: PrivateRedis, tmp_path: Path
) -> None:
    async with everywhere(dsn, broker_url, redis, tmp_path) as api:
        await everything_is_asked_for(api)
        await shown(api)
        every_label_has_every_value(api.service.metrics)

        found = series_of(api.service.metrics.render().decode())

    assert len(found) <= MOST_SERIES
    assert len(found) > MOST_SERIES - 50  # or not everything was touched


async def test_no_request_is_uncounted_where_there_are_more_routes_than_series() -> None:
    metrics = Metrics()
    asked = [(f"/{number}", status) for number, status in product(range(100), (200, 404, 503))]
    for route, status in asked:
        metrics.request(route, status, 0.1)
    metrics.request("/v1/registrations", 503, 0.1)

    text = metrics.render().decode()
    assert requests_in(text) == len(asked) + 1
    assert f'registrar_requests_seconds_count{{route="{OTHER}",status="5xx"}}' in text
    assert 'registrar_requests_seconds_count{route="/v1/registrations",status="503"} 1.0' in text


async def test_prometheus_finds_no_fault_with_them(dsn: str, broker_url: str, pytestconfig: pytest.Config) -> None:
    prometheus.demand(pytestconfig)
    async with open_api(dsn, works=True, broker_url=broker_url) as api:
        await api.active()
        every_label_has_every_value(api.service.metrics)

        assert prometheus.promtool("check", "metrics", said=await shown(api)) == ""


async def test_the_contract_names_each_and_each_that_it_names_is_there(
    dsn: str, broker_url: str, redis: PrivateRedis, tmp_path: Path
) -> None:
    listed = CONTRACT.partition("## Metrics\n")[2].partition("\n## ")[0]
    async with everywhere(dsn, broker_url, redis, tmp_path) as api:
        await api.active()
        found = set(re.findall(r"^# TYPE (\S+) ", await shown(api), re.MULTILINE))

    assert found == set(re.findall(r"`((?:registrar|process)_\w+)", listed))


async def test_the_objectives_are_at_the_ends_of_buckets() -> None:
    metrics = Metrics()
    for route, status in PEOPLES.items():
        metrics.request(route, status, 0.1)
    text = metrics.render().decode()

    for name, ends in (
        ("registrar_requests_seconds", (0.5, 5.0, 60.0)),
        ("registrar_time_to_inbox_seconds", (0.5, 5.0, 60.0)),
    ):
        found = set(re.findall(rf'^{name}_bucket{{.*?le="([\d.]+)"', text, re.MULTILINE))
        assert {float(one) for one in found} >= set(ends)


async def test_the_first_failure_of_a_route_is_an_increase() -> None:
    text = Metrics().render().decode()
    for route, status in product(PEOPLES, (500, 503, 504)):
        assert f'registrar_requests_seconds_count{{route="{route}",status="{status}"}} 0.0' in text
    assert 'registrar_registrations_total{outcome="accepted"} 0.0' in text
    assert 'registrar_verifications_total{outcome="wrong-code"} 0.0' in text


async def test_lag_is_counted_from_the_end_of_the_log_though_nobody_follows_it(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        await api.register()
        head = await api.service.store.head()
        text = await shown(api)

    assert head > 0
    assert f"registrar_log_position {head}.0" in text
    for name in names_of_followers([one.name for one in PROJECTIONS], publishes=False):
        assert f'registrar_follower_lag_events{{follower="{name}"}} {head}.0' in text


async def test_it_shows_whether_it_is_ready_what_it_is_and_what_waits_in_it(dsn: str) -> None:
    async with open_api(dsn, follows=False) as api:
        await api.register()
        text = await shown(api)
        api.service.api.checks.stop()
        stopping = await shown(api)

    assert "registrar_ready 1.0" in text
    assert "registrar_ready 0.0" in stopping
    assert re.search(r'^registrar_info{role="serve",version="[\d.]+"} 1.0$', text, re.MULTILINE)
    assert "registrar_append_queue_depth 0.0" in text
    assert "registrar_pool_waiting 0.0" in text
    assert re.search(r'^registrar_pool_connections{state="(?:idle|used)"} [1-8].0$', text, re.MULTILINE)


async def test_the_queues_of_rabbitmq_and_who_takes_from_them_are_shown(dsn: str, broker_url: str) -> None:
    async with open_api(dsn, works=True, broker_url=broker_url) as api:

        async def counted() -> bool:
            await api.http.get("/health/rabbitmq")
            text = await shown(api)
            return 'registrar_broker_consumers{queue="registrar.mail"} 1.0' in text

        await eventually(counted)
        assert 'registrar_broker_messages{queue="registrar.mail"} 0.0' in await shown(api)


def test_a_mail_server_that_is_no_longer_in_use_is_not_shown() -> None:
    metrics = Metrics()
    metrics.circuit("redis", "closed", "opened")
    metrics.circuits({"a:25": "opened", "b:25": "closed"})
    metrics.circuits({"b:25": "closed"})

    lines = [line for line in metrics.render().decode().splitlines() if line.startswith("registrar_circuit_state{")]
    assert lines == ['registrar_circuit_state{name="redis"} 2.0', 'registrar_circuit_state{name="b:25"} 0.0']
