"""Who sends the mails: the relay itself, or workers behind a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta

import psycopg
import structlog
from purgatory.domain.model import CLOSED, OPENED
from purgatory.typing import StateName

from application.mail_delivery import MailDelivery
from application.ports import MailRequest, Unavailable
from entrypoints.service import CannotStart, Service
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.event_store.tail import LogTail
from infrastructure.followers.relay import Relay
from infrastructure.mail.circuits import Circuits, OnTransition
from infrastructure.mail.rendering import TemplateLetters
from infrastructure.mail.send_claims import StoredSendClaims
from infrastructure.mail.smtp.pool import Limits
from infrastructure.mail.smtp.servers import SmtpServers
from infrastructure.postgres.connection import Connection, Line
from infrastructure.postgres.notifications import LOOK_ANYWAY
from infrastructure.rabbitmq.connection import Broker
from infrastructure.rabbitmq.consumer import Consumer
from infrastructure.rabbitmq.dead_letters import DeadLetterConsumer
from infrastructure.rabbitmq.mail_publisher import MailPublisher
from infrastructure.rabbitmq.mail_worker import MailWorker
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import MailServer
from infrastructure.telemetry.metrics import traced

log = structlog.get_logger(__name__)

SEND_MARGIN = timedelta(seconds=15)
"""What a mail's claim outlasts its three tries by: the waits between them, and the recording of the outcome."""

RECORDING = timedelta(seconds=3)
"""What of that is for the recording: sending is given up so long before the claim ends."""

WORKERS_PACE = timedelta(milliseconds=3)
"""Least time between two batches of what a worker asks the database. A mail that comes alone waits for nothing; of many,
a worker sends 1,630 a second instead of 1,350, and no more with 5 or 10 ms (2 cores, 2026-11-25)."""

PUBLISHING = 128
"""Requests on their way to the broker at the same time: confirms come in milliseconds, and not one by one."""

MakeRelay = Callable[[LogTail], Relay]
"""Makes the relay once there is a log for it to follow."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The sending of mails, the same behind the in-process relay and behind the broker's queue. Made by `open_delivery`."""

    servers: SmtpServers
    claims: StoredSendClaims
    line: Line
    deliver: Callable[[MailRequest], Awaitable[None]]

    async def until_database_ready(self) -> None:
        """Return when the database answers (again)."""

        async def ask(connection: Connection) -> None:
            await connection.execute("SELECT 1")

        while True:
            await asyncio.sleep(LOOK_ANYWAY.total_seconds())
            with suppress(Unavailable, psycopg.Error):
                await self.line.ask(ask)
                return


async def open_delivery(
    service: Service,
    stack: AsyncExitStack,
    *,
    sleep: Callable[[float], Awaitable[None]],
    circuits: Callable[..., Circuits],
    pace: timedelta = timedelta(0),
) -> Delivery:
    """Everything that sending a mail takes; taken down with the stack.

    Args:
        pace: of what it asks the database; see `infrastructure.postgres.batching.Batcher`.
        sleep, circuits: see `entrypoints.bootstrap.open_service`.

    Raises:
        CannotStart: there is no mail server.
    """
    settings = service.settings
    service.servers = SmtpServers(
        _mail_servers(service),
        sender=settings.mail_from,
        circuits=circuits(on_transition=_telling(service)),
        may_probe=service.shared_circuits.may_probe,
        on_opened=service.shared_circuits.share,
        limits=Limits(timeout=settings.send_timeout),
        on_attempt=service.metrics.mail,
        on_concurrency=service.metrics.mail_concurrency,
        sleep=sleep,
    )
    stack.push_async_callback(service.servers.close)
    line = Line(service.dsn, name="mail", statement_timeout=settings.statement_timeout)
    stack.push_async_callback(line.close)
    lease = 3 * settings.send_timeout + SEND_MARGIN
    claims = StoredSendClaims(line, lease=lease, pace=pace)
    stack.push_async_callback(_give_back, claims)
    if settings.database_url is None and stack.enter_context(DataDirectory(settings.data_dir).following()):
        await claims.forget_the_dead()
    delivery = MailDelivery(
        log=service.store,
        handlers=service.handlers,
        secrets=service.keyring,
        claims=claims,
        servers=service.servers,
        letters=TemplateLetters(ttl=settings.otp_ttl, public_url=settings.public_url, sender=settings.mail_from),
        clock=service.clock,
        policy=service.policy,
        retry_claimed_after=timedelta(seconds=5),
        give_up_after=lease - RECORDING,
        sleep=sleep,
        on_first_mail=service.metrics.time_to_inbox,
    )
    return Delivery(service.servers, claims, line, traced(service.tracing, delivery.deliver))


def finish_within(settings: Settings) -> timedelta:
    """How long a stop waits for mails that are being sent: one that is cut off in the middle may go out twice."""
    return settings.send_timeout + timedelta(seconds=5)


def relay_inside(service: Service, delivery: Delivery) -> MakeRelay:
    """A relay that sends the mails itself."""
    return lambda tail: Relay(
        tail=tail,
        announcements=service.announcements,
        hand_over=delivery.deliver,
        until_ready=delivery.servers.until_ready,
        finish_within=finish_within(service.settings),
        give_back=lambda: _give_back(delivery.claims),
    )


def relay_to(service: Service, broker: Broker) -> MakeRelay:
    """A relay that has the mails sent by the workers behind the broker."""
    publisher = MailPublisher(broker, message_ttl=service.settings.message_ttl, circuits=service.shared_circuits)
    return lambda tail: Relay(
        tail=tail,
        announcements=service.announcements,
        hand_over=publisher.hand_over,
        until_ready=publisher.until_ready,
        at_once=PUBLISHING,
    )


def _telling(service: Service) -> OnTransition:
    """Count a circuit's change, tell the other workers of it, and the log."""

    def tell(name: str, old: StateName, new: StateName) -> None:
        service.metrics.circuit(name, old, new)
        service.shared_circuits.changed(name, old, new)
        if new == OPENED:
            log.warning(
                "mail.circuit_opened", provider=name, hint="mails wait, or go to the next server; look at this one"
            )
        elif new == CLOSED:
            log.info("mail.circuit_closed", provider=name)

    return tell


async def open_worker(
    service: Service,
    stack: AsyncExitStack,
    *,
    sleep: Callable[[float], Awaitable[None]],
    circuits: Callable[..., Circuits],
) -> tuple[Consumer, ...]:
    """What consumes from the broker's queues: the mail worker, and the consumer of dead letters.

    Args and Raises: as `open_delivery`.
    """
    delivery = await open_delivery(service, stack, sleep=sleep, circuits=circuits, pace=WORKERS_PACE)
    worker = MailWorker(
        deliver=delivery.deliver,
        until_mail_ready=delivery.servers.until_ready,
        until_database_ready=delivery.until_database_ready,
    )
    stack.push_async_callback(worker.close)
    dead_letters = DeadLetterConsumer(do=service.handlers.handle, until_database_ready=delivery.until_database_ready)
    return worker.consumer, dead_letters.consumer


async def _give_back(claims: StoredSendClaims) -> None:
    with suppress(Unavailable, psycopg.Error):  # then the leases end by themselves
        await claims.close()


def _mail_servers(service: Service) -> tuple[MailServer, ...]:
    if service.settings.mail_servers:
        return service.settings.mail_servers
    if service.mailbox is None:
        raise CannotStart(
            "REGISTRAR_SMTP_URLS is not set, and the embedded mailbox is part of `registrar up` only; set it."
        )
    return (
        MailServer(
            scheme="smtp", host="127.0.0.1", port=service.mailbox.port, username=None, password=None, starttls="never"
        ),
    )
