"""The whole service as it runs in earnest, and a Prometheus that watches it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from tests.alerts.scaled import configure
from tests.faults.fleet import Fleet, Node
from tests.faults.scene import Scene
from tests.support import prometheus
from tests.support.facts import eventually
from tests.support.http import NO_TLS
from tests.support.prometheus import PrivatePrometheus
from tests.support.rabbitmq import PrivateRabbit, free_ports
from tests.support.redis import PrivateRedis
from tests.support.smtp_stub import SmtpStub
from tests.support.tcp_proxy import TcpProxy
from tests.support.webhook_stub import WebhookStub

SILENT_WITHIN: Final = 200.0
"""Seconds: the longest window that keeps an alert is one of six hours in earnest, two minutes here."""


PASSWORD: Final = "correct-horse-battery"
"""Of the mail provider that reports bounces."""


@dataclass(slots=True)
class World:
    """Use `opened`.

    Attributes:
        serve, process, work: one of each.
        checkpoints: the directory that they are published to.
        broker_url: of the virtual host.
        front: in front of `serve`; synthetic registrations come that way.
    """

    scene: Scene
    serve: Node
    process: Node
    work: Node
    redis: PrivateRedis
    rabbit: PrivateRabbit
    broker_url: str
    webhook: WebhookStub
    checkpoints: Path
    prometheus: PrivatePrometheus
    front: TcpProxy
    http: httpx.AsyncClient
    _people: Iterator[int] = field(default_factory=count)

    @property
    def dsn(self) -> str:
        return self.scene.fleet.dsn

    @property
    def sink(self) -> SmtpStub:
        return self.scene.sink

    async def register(self) -> tuple[str, UUID]:
        """Somebody new: the address and the registration."""
        address = f"person-{next(self._people)}@example.com"
        answer = await self.http.post("/v1/registrations", json={"email": address, "name": "Ada Lovelace"})
        assert answer.status_code == 202, answer.text
        return address, UUID(answer.json()["registration_id"])

    async def verify(self, registration: UUID, code: str) -> int:
        """Offer a code; the status of the answer."""
        answer = await self.http.post(f"/v1/registrations/{registration}/verification", json={"code": code})
        return answer.status_code

    async def join(self) -> None:
        """Somebody new registers, gets the mail and offers its code."""
        address, registration = await self.register()
        assert await self.verify(registration, await self.scene.code_of(address)) == 200

    async def until_well(self) -> None:
        """Wait until every process is scraped, every rule judged, somebody could join, and nothing fires."""

        def judged() -> bool:
            targets = self.prometheus.ask("targets")["activeTargets"]
            assert [(target["health"], target["lastError"]) for target in targets] == [("up", "")] * 3
            rules = [rule for group in self.prometheus.ask("rules")["groups"] for rule in group["rules"]]
            assert rules
            assert {rule["health"] for rule in rules} == {"ok"}
            return True

        await eventually(judged, within=60)
        await self.join()
        await self.until_silent()

    async def until_fired(self, *alerts: str, within: float = 150) -> None:
        """Wait until all of these fire at the same time."""
        missing = set(alerts)

        def fire() -> bool:
            nonlocal missing
            missing = set(alerts) - set(self.prometheus.firing())
            assert not missing, f"{missing} do not fire; {self.prometheus.firing()}"
            return True

        await eventually(fire, within=within, every=0.2)

    async def until_silent(self) -> None:
        def silent() -> bool:
            assert self.prometheus.firing() == {}
            return True

        await eventually(silent, within=SILENT_WITHIN, every=0.2)

    def have_fired(self, since: float) -> set[str]:
        """All alerts that have fired since a moment, however shortly.

        Args:
            since: by Prometheus' clock, which is `time.time`.
        """
        found = self.prometheus.ask(
            "query_range", query='ALERTS{alertstate="firing"}', start=f"{since}", end=f"{time.time()}", step="400ms"
        )
        return {series["metric"]["alertname"] for series in found["result"]}


@asynccontextmanager
async def opened(
    dsn: str,
    redis: PrivateRedis,
    rabbit: PrivateRabbit,
    directory: Path,
    reached: Path,
    of_process: Mapping[str, str],
) -> AsyncIterator[World]:
    """All of it, up and judged to be well.

    Args:
        of_process: settings of `process`, on top of the usual ones.
    """
    checkpoints = directory / "checkpoints"
    async with AsyncExitStack() as stack:
        sink = await stack.enter_async_context(SmtpStub())
        webhook = await stack.enter_async_context(WebhookStub())
        broker_url = rabbit.vhost()
        fleet = Fleet(
            dsn,
            sink.port,
            directory=directory,
            reached=reached,
            broker_url=broker_url,
            rate_limit_url=redis.url,
            alert_url=webhook.url,
            bounce_address="bounces@mail.example.org",
            checkpoint_dir=str(checkpoints),
            checkpoint_key="ab" * 32,
            verify_interval="1",
        )
        scene = await stack.enter_async_context(Scene.on(fleet, sink))
        ports = dict(zip(("serve", "process", "work"), free_ports(3), strict=True))
        serve = await fleet.serve(
            admin_listen=f"127.0.0.1:{ports['serve']}", limits="mails=off", bounce_webhooks=f"postmark={PASSWORD}"
        )
        front = await stack.enter_async_context(TcpProxy(("127.0.0.1", urlsplit(serve.url).port or 0)))
        process = await fleet.process(
            admin_listen=f"127.0.0.1:{ports['process']}", synthetic_url=f"http://127.0.0.1:{front.port}", **of_process
        )
        work = await fleet.work(admin_listen=f"127.0.0.1:{ports['work']}")
        configure(directory, ports)
        watching = stack.enter_context(prometheus.server(directory))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=serve.url, timeout=30, verify=NO_TLS))
        world = World(
            scene, serve, process, work, redis, rabbit, broker_url, webhook, checkpoints, watching, front, http
        )
        await world.until_well()
        yield world
