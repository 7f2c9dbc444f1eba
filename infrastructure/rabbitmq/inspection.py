"""RabbitMQ from the command line: declare, compare with what exists, count messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from aio_pika import connect
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from infrastructure.rabbitmq.addresses import ReachedConnection
from infrastructure.rabbitmq.session import CONNECT_TIMEOUT, Session, telling_refusals
from infrastructure.rabbitmq.topology import EXCHANGES, Topology, TopologyMismatch, queue_counts


@asynccontextmanager
async def connected(url: str, topology: Topology, *, delete: Sequence[str] = ()) -> AsyncIterator[Session]:
    """One connection for a command, with the topology declared; without retries.

    Args:
        delete: see `Session.begin`.

    Raises:
        TopologyMismatch, AMQPError, OSError, TimeoutError: see `Session.begin`.
    """
    session = Session(url, name="command", topology=topology, consumers=())
    try:
        await session.begin(delete=delete)
        yield session
    finally:
        await session.end(timedelta(0))


async def counts_of(url: str) -> dict[str, dict[str, int]]:
    """See `queue_counts`; on a connection of its own."""
    with telling_refusals():
        async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds()):
            connection = await connect(url, connection_class=ReachedConnection)
    async with connection:
        return await queue_counts(connection)


async def compare(url: str, topology: Topology) -> bool:
    """Compare what exists with what we would declare, on a connection of its own. Changes nothing: what is missing
    stays missing.

    Returns False if we may not declare all of it: then RabbitMQ does not let us see its properties.

    Raises:
        TopologyMismatch: something exists with other properties.
        AMQPError, OSError, TimeoutError: the broker is away, or refuses us (`session.REFUSALS`).
    """
    with telling_refusals():
        async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds()):
            connection = await connect(url, connection_class=ReachedConnection)
    refused: list[str] = []
    async with connection, asyncio.timeout(2 * CONNECT_TIMEOUT.total_seconds()):
        for exchange in EXCHANGES:
            mismatch = TopologyMismatch.of_exchange(exchange)
            async with _comparing(connection, exchange.name, mismatch, refused) as channel:
                for passive in (True, False):  # passively first: what is missing must not be created
                    await channel.declare_exchange(
                        exchange.name, exchange.type.value, durable=exchange.durable, passive=passive
                    )
        for queue, _ in topology.bindings:
            async with _comparing(connection, queue.name, TopologyMismatch.of_queues(), refused) as channel:
                for passive in (True, False):
                    await channel.declare_queue(
                        queue.name, durable=queue.durable, arguments=queue.arguments, passive=passive
                    )
    return not refused


@asynccontextmanager
async def _comparing(
    connection: AbstractConnection, name: str, mismatch: TopologyMismatch, refused: list[str]
) -> AsyncIterator[AbstractChannel]:
    """A channel to compare one thing, as a refusal closes it.

    Args:
        mismatch: raised if its properties are not those asked for.
        refused: its name is added if we may not declare it.
    """
    channel = await connection.channel(publisher_confirms=False)
    try:
        yield channel
    except ChannelNotFoundEntity:
        pass
    except ChannelAccessRefused:
        refused.append(name)
    except ChannelPreconditionFailed:
        raise mismatch from None
