"""What is declared in RabbitMQ: exchanges, queues and bindings (docs/contract.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelPreconditionFailed
from faststream.rabbit import ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue

MAIL_EXCHANGE: Final = RabbitExchange("registrar", type=ExchangeType.TOPIC)
DEAD_EXCHANGE: Final = RabbitExchange("registrar.dlx", type=ExchangeType.TOPIC)
EVENTS_EXCHANGE: Final = RabbitExchange("registrar.events", type=ExchangeType.TOPIC)
EXCHANGES: Final = (MAIL_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE)

MAIL_QUEUE: Final = "registrar.mail"
FAILED_QUEUE: Final = "registrar.mail.failed"
MAIL_REQUESTED: Final = "mail.requested"
MAIL_FAILED: Final = "mail.failed"

DELIVERY_LIMIT: Final = 3
"""Deliveries after which a message counts as the cause of the crashes, and becomes a dead letter (docs/contract.md)."""

DEAD_DELIVERY_LIMIT: Final = 20
"""The same for a dead letter, which is then dropped: what cannot be decoded on the wire ends the connection of every
consumer that it is delivered to, before any code of ours sees it. RabbitMQ 4's own default; if it was a mail of ours,
the saga requests it again."""

MAX_QUEUE_LENGTH: Final = 100_000
"""Maximum number of messages in a queue: beyond it publishing is refused, and mails wait in the log, without loss."""

APP_ID: Final = "registrar"

CANARY: Final = "registrar.canary"
"""Type of the messages that test at the start of a connection whether the queues accept messages."""

REPLY_TIMEOUT: Final = timedelta(seconds=3)
"""A queue that does not confirm a message for that long is dead or blocked (docs/reliability.md, C3)."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The two mail queues, as they are declared."""

    mail: RabbitQueue
    failed: RabbitQueue

    @classmethod
    def of(cls, *, queue_ttl: timedelta) -> Topology:
        """
        Args:
            queue_ttl: how long any message may wait in the mail queue (`QUEUE_TTL`).
        """
        return cls(
            RabbitQueue(
                MAIL_QUEUE,
                queue_type=QueueType.QUORUM,
                robust=False,
                routing_key=MAIL_REQUESTED,
                arguments={
                    "x-message-ttl": int(queue_ttl.total_seconds() * 1000),
                    "x-delivery-limit": DELIVERY_LIMIT,
                    "x-dead-letter-exchange": DEAD_EXCHANGE.name,
                    "x-dead-letter-routing-key": MAIL_FAILED,
                    "x-dead-letter-strategy": "at-least-once",
                    "x-overflow": "reject-publish",
                    "x-max-length": MAX_QUEUE_LENGTH,
                },
            ),
            RabbitQueue(
                FAILED_QUEUE,
                queue_type=QueueType.QUORUM,
                robust=False,
                routing_key=MAIL_FAILED,
                arguments={
                    "x-overflow": "reject-publish",
                    "x-max-length": MAX_QUEUE_LENGTH,
                    "x-delivery-limit": DEAD_DELIVERY_LIMIT,
                },
            ),
        )

    @property
    def bindings(self) -> Sequence[tuple[RabbitQueue, RabbitExchange]]:
        return ((self.mail, MAIL_EXCHANGE), (self.failed, DEAD_EXCHANGE))


class TopologyMismatch(Exception):
    """A queue or exchange exists with other properties than ours; the message says how to migrate."""

    @classmethod
    def of_queues(cls) -> TopologyMismatch:
        return cls(
            f"{MAIL_QUEUE} or {FAILED_QUEUE} exists with other properties than it should have "
            "(REGISTRAR_QUEUE_TTL is one of them); `registrar broker declare --anew` deletes the queues and declares "
            "them again; what they held is requested again within minutes."
        )

    @classmethod
    def of_exchange(cls, exchange: RabbitExchange) -> TopologyMismatch:
        return cls(
            f"The exchange {exchange.name} exists with other properties than it should have (topic, durable); "
            "find out who uses it, delete it, and let `registrar broker declare` create it."
        )


async def declare(broker: RabbitBroker, topology: Topology) -> None:
    """Declare exchanges, queues and bindings; idempotent.

    Raises:
        TopologyMismatch: something exists with other properties.
    """
    await declare_exchanges(broker)
    try:
        for queue, exchange in topology.bindings:
            declared = await broker.declare_queue(queue)
            await declared.bind(await broker.declare_exchange(exchange), routing_key=queue.routing(), robust=False)
    except ChannelPreconditionFailed:
        raise TopologyMismatch.of_queues() from None


async def declare_exchanges(broker: RabbitBroker) -> None:
    """
    Raises:
        TopologyMismatch: one exists with other properties.
    """
    for exchange in EXCHANGES:
        try:
            await broker.declare_exchange(exchange)
        except ChannelPreconditionFailed:
            raise TopologyMismatch.of_exchange(exchange) from None


async def queue_counts(connection: AbstractConnection) -> dict[str, dict[str, int]]:
    """The number of waiting messages and of consumers of each of our queues; changes nothing.

    Raises:
        ChannelNotFoundEntity: a queue is missing.
        AMQPError, OSError, TimeoutError: the broker is away.
    """
    found = {}
    async with asyncio.timeout(REPLY_TIMEOUT.total_seconds()):
        channel = await connection.channel(publisher_confirms=False)
        try:
            for name in (MAIL_QUEUE, FAILED_QUEUE):
                result = (await channel.declare_queue(name, passive=True)).declaration_result
                found[name] = {"messages": result.message_count or 0, "consumers": result.consumer_count or 0}
        finally:
            with suppress(AMQPError, OSError, RuntimeError):
                await channel.close()
    return found
