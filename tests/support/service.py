"""The service in the test's own process, built by the same functions as its roles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from pydantic import SecretStr

from application.handlers import Handlers
from entrypoints.api.parts import Parts
from entrypoints.bootstrap.api import has_front_door
from entrypoints.bootstrap.core import Timing
from entrypoints.bootstrap.delivery import open_mailbox
from entrypoints.bootstrap.desk import Desk, latest_of_mailbox
from entrypoints.bootstrap.roles import Process, process, serve, up, work
from infrastructure.circuits import Circuits
from infrastructure.crypto.keyring import Keyring
from infrastructure.event_store.store import EventStore
from infrastructure.mail.mailbox import Mailbox
from infrastructure.mail.smtp.servers import SmtpServers
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.pool import QueryPool
from infrastructure.rabbitmq.connection import Broker
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import Listen
from infrastructure.telemetry.metrics import Metrics
from tests.support.leaks import must_not_tell


@dataclass(frozen=True, slots=True)
class Service:
    """A process, and at hand what tests look at.

    Attributes:
        api: what applications are created with.
    """

    settings: Settings
    process: Process
    api: Parts

    @property
    def dsn(self) -> str:
        return self.process.core.database.dsn

    @property
    def store(self) -> EventStore:
        return self.process.core.store

    @property
    def pool(self) -> QueryPool:
        return self.process.core.pool

    @property
    def keyring(self) -> Keyring:
        return self.process.core.keyring

    @property
    def handlers(self) -> Handlers:
        return self.process.core.handlers

    @property
    def metrics(self) -> Metrics:
        return self.process.core.metrics

    @property
    def desk(self) -> Desk:
        latest = partial(latest_of_mailbox, self.process.core)
        return Desk(self.handlers, latest, self.api.queries.mails, self.api.queries.parked)

    @property
    def broker(self) -> Broker | None:
        return self.process.broker

    @property
    def servers(self) -> SmtpServers | None:
        return self.process.delivery.servers if self.process.delivery else None

    @property
    def mailbox(self) -> Mailbox | None:
        return self.api.mailbox


@asynccontextmanager
async def open_service(
    settings: Settings,
    *,
    follows: bool,
    works: bool = False,
    clock: DatabaseClock | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    circuits: Callable[..., Circuits] = Circuits,
) -> AsyncIterator[Service]:
    """One of the roles, by what it does; where no mail server is set, each has the embedded mailbox, not `up` alone.

    Args:
        follows: run the followers; without a broker, with the mail delivery behind them.
        works: take mails from the broker and send them.
    """
    timing = Timing(clock or DatabaseClock(), sleep, circuits)
    role = {(False, False): serve, (True, False): process, (False, True): work, (True, True): up}[follows, works]
    async with AsyncExitStack() as stack:
        mailbox = await open_mailbox(settings, stack)
        if mailbox is not None:
            urls = SecretStr(f"smtp://127.0.0.1:{mailbox.port}?starttls=never")
            settings = settings.model_copy(update={"smtp_urls": urls})
        # Every role has an API here, as one has that listens for operators.
        listens = settings.model_copy(update={"admin_listen": settings.admin_listen or Listen("127.0.0.1", 0)})
        running = await stack.enter_async_context(role(listens, timing))
        assert running.api is not None
        front_door = has_front_door(settings, mailbox=mailbox is not None)
        yield Service(settings, running, replace(running.api, mailbox=mailbox, front_door=front_door))
        must_not_tell(metrics=running.core.metrics.render().decode())
