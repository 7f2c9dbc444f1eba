"""How messages are taken from a queue and settled, with what of aiormq is used beyond its documented calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version

from aio_pika import RobustConnection, connect_robust
from aiormq import Channel

from infrastructure.rabbitmq.inspection import connected, counts_of
from infrastructure.rabbitmq.subscription import Message, Subscription
from infrastructure.rabbitmq.topology import MAIL_QUEUE, Topology
from tests.support.broker import put, vhost_of
from tests.support.facts import eventually
from tests.support.rabbitmq import PrivateRabbit

PREFETCH = 6
LONG = timedelta(seconds=60)


@dataclass
class Subscribed:
    """A subscription to the mail queue, the messages that it took and left in hand, and what it lost."""

    url: str
    connection: RobustConnection
    taken: list[Message] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.subscription = Subscription(MAIL_QUEUE, self.taken.append)

    async def begin(self) -> None:
        await self.subscription.open(self.connection, prefetch=PREFETCH, on_loss=lambda: self.lost.append("it"))
        await self.subscription.consume()

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.taken]

    async def has(self, *bodies: bytes) -> None:
        """Publish these, and see them taken."""
        before = len(self.taken)
        await put(self.url, *bodies)
        await eventually(lambda: self.bodies[before:] == [*bodies])

    @property
    def channel(self) -> Channel:
        """The library's."""
        assert self.subscription._channel is not None
        return self.subscription._channel


@asynccontextmanager
async def subscribed(url: str) -> AsyncIterator[Subscribed]:
    """Not begun; the queue exists, and is empty."""
    async with connected(url, Topology.of(queue_ttl=timedelta(minutes=5))) as session:
        channel = await session._own_channel.get_underlay_channel()
        await channel.queue_purge(MAIL_QUEUE)
    async with await connect_robust(url) as connection:
        yield Subscribed(url, connection)


async def consumers(url: str) -> int:
    """How many RabbitMQ knows of."""
    return (await counts_of(url))[MAIL_QUEUE]["consumers"]


def test_what_is_used_is_that_of_the_version_that_is_installed() -> None:
    assert f"aiormq {version('aiormq')} " in (Subscription.__doc__ or "")


async def test_a_subscription_that_is_cancelled_takes_nothing_until_it_consumes_again(broker_url: str) -> None:
    async with subscribed(broker_url) as ours:
        assert (ours.subscription.is_open, ours.subscription.is_consuming) == (False, False)
        await ours.begin()
        assert (ours.subscription.is_open, ours.subscription.is_consuming) == (True, True)
        assert await consumers(broker_url) == 1

        await ours.subscription.cancel()
        await put(broker_url, b"later")
        assert (ours.subscription.is_open, ours.subscription.is_consuming) == (True, False)
        assert (await consumers(broker_url), ours.bodies) == (0, [])

        await ours.subscription.consume()
        await eventually(lambda: ours.bodies == [b"later"])
        assert await consumers(broker_url) == 1


async def test_a_subscription_that_loses_its_queue_or_its_channel_says_so(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    async with subscribed(broker_url) as ours:
        await ours.begin()
        await ours.channel.basic_ack(delivery_tag=999)  # RabbitMQ closes a channel over a tag that it has not given out
        await eventually(lambda: bool(ours.lost))

    async with subscribed(broker_url) as ours:
        await ours.begin()
        rabbit.ask("DELETE", f"queues/{vhost_of(broker_url)}/{MAIL_QUEUE}")
        await eventually(lambda: bool(ours.lost))


async def test_what_is_settled_in_any_order_is_gone_and_what_is_in_hand_is_delivered_again(broker_url: str) -> None:
    async with subscribed(broker_url) as ours:
        await ours.begin()
        await ours.has(b"1", b"2", b"3", b"4", b"5", b"6")
        one, two, three, _, five, six = ours.taken

        for batch in ((two,), (one, three), (six,)):
            for message in batch:
                message.acknowledge()
            await ours.subscription.told(LONG)
        five.reject()
        await ours.subscription.told(LONG)

        await ours.has(b"7", b"8", b"9", b"10", b"11")  # there is room for as many as are settled
        assert ours.lost == []
    async with subscribed_again(broker_url) as ours:
        await eventually(lambda: sorted(ours.bodies) == [b"10", b"11", b"4", b"7", b"8", b"9"])


@asynccontextmanager
async def subscribed_again(url: str) -> AsyncIterator[Subscribed]:
    """Begun, to a queue that has something."""
    async with await connect_robust(url) as connection:
        ours = Subscribed(url, connection)
        await ours.begin()
        yield ours


async def test_what_is_settled_after_the_connection_was_lost_or_given_up_is_told_nobody(broker_url: str) -> None:
    async with subscribed(broker_url) as ours:
        await ours.begin()
        await ours.has(b"lost")
        await ours.connection.close()

        ours.taken[0].acknowledge()

        await ours.subscription.told(LONG)
    async with subscribed_again(broker_url) as ours:
        await eventually(lambda: ours.bodies == [b"lost"])
        ours.subscription.close()

        ours.taken[0].acknowledge()

        await ours.subscription.told(LONG)
    async with subscribed_again(broker_url) as ours:
        await eventually(lambda: ours.bodies == [b"lost"])
