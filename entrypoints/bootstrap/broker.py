"""The connection to RabbitMQ, and the consumers of its queues."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Literal

from entrypoints.bootstrap.core import Core
from entrypoints.bootstrap.delivery import Delivery, finish_within
from infrastructure.rabbitmq.connection import Broker
from infrastructure.rabbitmq.consumer import Consumer
from infrastructure.rabbitmq.dead_letters import DeadLetterConsumer
from infrastructure.rabbitmq.mail_worker import MailWorker
from infrastructure.rabbitmq.topology import Topology
from infrastructure.settings.settings import Settings


def broker_for(role: Literal["serve", "process", "work"], settings: Settings, *consumers: Consumer) -> Broker | None:
    """The connection to RabbitMQ, which runs later; None where none is set, and mail is handed over inside the process."""
    if settings.broker_url is None:
        return None
    return Broker(
        settings.broker_url.get_secret_value(),
        name=role,
        # A process that neither publishes nor consumes only looks, and needs no rights to what is there (S27).
        topology=None if role == "serve" else Topology.of(queue_ttl=settings.queue_ttl),
        consumers=consumers,
        finish_within=finish_within(settings),
    )


def mail_consumers(core: Core, delivery: Delivery, stack: AsyncExitStack) -> tuple[Consumer, Consumer]:
    """The consumers of the queues: the mail worker, and that of dead letters. Taken down with the stack."""
    worker = MailWorker(
        deliver=delivery.deliver,
        until_mail_ready=delivery.servers.until_ready,
        until_database_ready=delivery.until_database_ready,
    )
    stack.push_async_callback(worker.close)
    dead_letters = DeadLetterConsumer(do=core.handlers.handle, until_database_ready=delivery.until_database_ready)
    return worker.consumer, dead_letters.consumer
