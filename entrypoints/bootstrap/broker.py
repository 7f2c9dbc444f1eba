"""The connection to RabbitMQ, what is published there, and the consumers of its queues.

FastStream and aio-pika are a sixth of the start of a process (our measurement): only a process with a broker imports
them.
"""

# ruff: noqa: PLC0415 - see above
from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal

from entrypoints.bootstrap.core import Core
from infrastructure.settings.settings import Settings

if TYPE_CHECKING:
    from entrypoints.bootstrap.delivery import Delivery
    from infrastructure.followers.integration_events import PublishesEvents
    from infrastructure.followers.relay import Relay
    from infrastructure.followers.turns import Turns
    from infrastructure.rabbitmq.connection import Broker
    from infrastructure.rabbitmq.consumer import Consumer

PUBLISHING = 128
"""Requests on their way to the broker at the same time: confirms come in milliseconds, and not one by one."""


def broker_for(role: Literal["serve", "process", "work"], settings: Settings, *consumers: Consumer) -> Broker | None:
    """The connection to RabbitMQ, which runs later; None where none is set, and mail is handed over inside the
    process."""
    if settings.broker_url is None:
        return None
    from infrastructure.rabbitmq.connection import Broker
    from infrastructure.rabbitmq.topology import Topology

    return Broker(
        settings.broker_url.get_secret_value(),
        name=role,
        # A process that neither publishes nor consumes only looks, and needs no rights to what is there (S27).
        topology=None if role == "serve" else Topology.of(queue_ttl=settings.queue_ttl),
        consumers=consumers,
        finish_within=finish_within(settings),
    )


def finish_within(settings: Settings) -> timedelta:
    """How long a stop waits for mails that are being sent: one that is cut off in the middle may go out twice."""
    return settings.send_timeout + timedelta(seconds=5)


def mail_consumers(core: Core, delivery: Delivery, stack: AsyncExitStack) -> tuple[Consumer, Consumer]:
    """The consumers of the queues: the mail worker, and that of dead letters. Taken down with the stack."""
    from infrastructure.rabbitmq.dead_letters import DeadLetterConsumer
    from infrastructure.rabbitmq.mail_worker import MailWorker
    from infrastructure.rabbitmq.spans import burying, consuming

    worker = MailWorker(
        deliver=consuming(core.tracing, delivery.deliver),
        until_mail_ready=delivery.servers.until_ready,
        until_database_ready=delivery.until_database_ready,
    )
    stack.push_async_callback(worker.close)
    dead_letters = DeadLetterConsumer(
        do=core.handlers.handle,
        until_database_ready=delivery.until_database_ready,
        traced=partial(burying, core.tracing),
    )
    return worker.consumer, dead_letters.consumer


def relay_to(broker: Broker, core: Core, settings: Settings, turns: Turns) -> Relay:
    """A relay that has the mails sent by the workers behind the broker."""
    from infrastructure.followers.relay import Relay
    from infrastructure.rabbitmq.mail_publisher import MailPublisher
    from infrastructure.rabbitmq.spans import publishing

    publisher = MailPublisher(broker, message_ttl=settings.message_ttl, circuits=core.shared_circuits)
    return Relay(
        tail=core.tail,
        notifications=core.notifications,
        hand_over=publishing(core.tracing, publisher.hand_over),
        until_ready=publisher.until_ready,
        turns=turns,
        at_once=PUBLISHING,
    )


def publisher_to(broker: Broker | None, core: Core) -> PublishesEvents | None:
    """The integration events' way out, None without a broker."""
    if broker is None:
        return None
    from infrastructure.rabbitmq.event_publisher import EventPublisher

    return EventPublisher(broker, core.tracing)
