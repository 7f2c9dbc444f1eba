"""What a consumer uses of FastStream's privates: these tests fail when a new version changes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version

from faststream.rabbit import RabbitBroker, RabbitMessage

from infrastructure.rabbitmq.consumer import _Subscription
from infrastructure.rabbitmq.inspection import connected, counts_of
from infrastructure.rabbitmq.topology import MAIL_QUEUE, Topology
from tests.support.broker import put, vhost_of
from tests.support.facts import eventually
from tests.support.rabbitmq import PrivateRabbit


@dataclass
class Subscribed:
    """A subscription to the mail queue, and what it took."""

    subscription: _Subscription
    broker: RabbitBroker
    bodies: list[bytes]


@asynccontextmanager
async def subscribed(url: str) -> AsyncIterator[Subscribed]:
    """Not started; the queue exists, and is empty."""
    broker, bodies = RabbitBroker(url, logger=None), list[bytes]()

    async def take(message: RabbitMessage) -> None:
        bodies.append(message.raw_message.body)
        await message.ack()

    async with connected(url, Topology.of(queue_ttl=timedelta(minutes=5))) as session:
        channel = await session._own_channel.get_underlay_channel()
        await channel.queue_purge(MAIL_QUEUE)
        try:
            yield Subscribed(_Subscription(broker, MAIL_QUEUE, take, prefetch=3), broker, bodies)
        finally:
            await broker.stop()


async def consumers(url: str) -> int:
    """How many RabbitMQ knows of."""
    return (await counts_of(url))[MAIL_QUEUE]["consumers"]


def test_the_privates_are_those_of_the_version_that_is_installed() -> None:
    assert f"FastStream {version('faststream')} " in (_Subscription.__doc__ or "")


async def test_a_subscription_consumes_from_the_start_of_the_connection(broker_url: str) -> None:
    async with subscribed(broker_url) as ours:
        subscription = ours.subscription
        assert (subscription.is_started, subscription.is_consuming) == (False, False)

        await ours.broker.start()

        assert (subscription.is_started, subscription.is_consuming) == (True, True)
        assert await consumers(broker_url) == 1


async def test_a_subscription_that_is_cancelled_takes_nothing_until_it_consumes_again(broker_url: str) -> None:
    async with subscribed(broker_url) as ours:
        await ours.broker.start()

        await ours.subscription.cancel()
        await put(broker_url, b"later")
        assert (ours.subscription.is_started, ours.subscription.is_consuming) == (True, False)
        assert (await consumers(broker_url), ours.bodies) == (0, [])

        await ours.subscription.consume()
        await eventually(lambda: ours.bodies == [b"later"])
        assert await consumers(broker_url) == 1


async def test_a_subscription_that_loses_its_queue_or_its_channel_says_so(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    lost = list[str]()
    async with subscribed(broker_url) as ours:
        await ours.broker.start()
        await ours.subscription.watch(lambda: lost.append("channel"))
        queue = ours.subscription._subscriber._queue_obj
        assert queue is not None

        channel = await queue.channel.get_underlay_channel()
        await channel.basic_ack(delivery_tag=999)  # RabbitMQ closes a channel over a tag that it has not given out

        await eventually(lambda: "channel" in lost)

    async with subscribed(broker_url) as ours:
        await ours.broker.start()
        await ours.subscription.watch(lambda: lost.append("queue"))

        rabbit.ask("DELETE", f"queues/{vhost_of(broker_url)}/{MAIL_QUEUE}")

        await eventually(lambda: "queue" in lost)
