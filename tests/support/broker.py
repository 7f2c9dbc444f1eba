"""The words of the tests that look into RabbitMQ itself: what waits in a queue, and messages put there by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from aio_pika import Message, connect
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from faststream.rabbit import RabbitExchange

from infrastructure.rabbitmq.inspection import connected, counts_of
from infrastructure.rabbitmq.topology import (
    APP_ID,
    CANARY,
    DEAD_EXCHANGE,
    MAIL_EXCHANGE,
    MAIL_FAILED,
    MAIL_QUEUE,
    MAIL_REQUESTED,
    Topology,
)
from tests.support.facts import eventually
from tests.support.service import Service
from tests.support.tcp_proxy import TcpProxy


@asynccontextmanager
async def channel_to(url: str) -> AsyncIterator[AbstractChannel]:
    """A channel of somebody else's; what it took and did not acknowledge goes back at the end."""
    connection = await connect(url)
    async with connection:
        yield await connection.channel(on_return_raises=True)


async def put(url: str, *bodies: bytes, routing_key: str = MAIL_REQUESTED, **properties: Any) -> None:
    """Publish messages to the mails' exchange, one after the other."""
    async with channel_to(url) as channel:
        exchange = await channel.get_exchange(MAIL_EXCHANGE.name, ensure=False)
        for body in bodies:
            message = Message(body, **{"app_id": APP_ID, "correlation_id": str(uuid4()), **properties})
            await exchange.publish(message, routing_key=routing_key)


@asynccontextmanager
async def spy_on(
    url: str, exchange: RabbitExchange = MAIL_EXCHANGE, routing_key: str = MAIL_REQUESTED
) -> AsyncIterator[list[AbstractIncomingMessage]]:
    """Copies of all that comes to an exchange from now on, but for canaries: whoever looks into a queue counts as a
    delivery there."""
    seen: list[AbstractIncomingMessage] = []

    async def note(message: AbstractIncomingMessage) -> None:
        if message.type != CANARY:
            seen.append(message)

    async with channel_to(url) as channel:
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange.name, routing_key)
        await queue.consume(note, no_ack=True)
        yield seen


def spy_on_dead_letters(url: str) -> AbstractAsyncContextManager[list[AbstractIncomingMessage]]:
    """Copies of all that dies from now on; see `spy_on`."""
    return spy_on(url, DEAD_EXCHANGE, MAIL_FAILED)


async def until_up(service: Service) -> None:
    """Until it is connected to the broker and has proved that."""
    assert service.broker is not None
    async with asyncio.timeout(60):
        await service.broker.until_up()


async def declared(service: Service) -> None:
    """Declare, as a start of `process` or `work` does, and wait until the service sees it."""
    assert service.settings.broker_url is not None
    topology = Topology.of(queue_ttl=service.settings.queue_ttl)
    async with connected(service.settings.broker_url.get_secret_value(), topology):
        await until_up(service)


async def until_lost(service: Service) -> None:
    """Until it has noticed that the broker, or what it declared there, is away."""
    broker = service.broker
    assert broker is not None
    await eventually(lambda: not broker.is_up, within=60)


def vhost_of(url: str) -> str:
    """As the management API wants it."""
    return urlsplit(url).path.lstrip("/")


async def waiting(url: str, queue: str = MAIL_QUEUE) -> int:
    """How many messages wait in a queue; those in a consumer's hand do not."""
    return (await counts_of(url))[queue]["messages"]


async def until_empty(url: str, queue: str = MAIL_QUEUE, *, within: float = 60) -> None:
    async def empty() -> bool:
        return await waiting(url, queue) == 0

    await eventually(empty, within=within, every=0.2)


@asynccontextmanager
async def broker_through(url: str) -> AsyncIterator[tuple[TcpProxy, str]]:
    """A proxy in front of RabbitMQ, and the URL by way of it."""
    address = urlsplit(url)
    async with TcpProxy((address.hostname or "", address.port or 0)) as proxy:
        credentials = address.netloc.rpartition("@")[0]
        yield proxy, address._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}").geturl()
