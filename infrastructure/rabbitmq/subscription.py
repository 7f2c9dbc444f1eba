"""The messages of a queue on one channel, and what is told RabbitMQ about each of them.

FastStream connects, declares and publishes. Messages are taken from the channel that aio-pika opens on its connection:
FastStream's way to a handler (parser, decoder, middlewares, exit stacks and context variables, in two tasks more) took
a tenth of a worker's CPU, and acknowledgements that are written one by one a seventh (docs/performance.md).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, cast

from aio_pika.abc import AbstractConnection
from aiormq import Channel
from aiormq.abc import ChannelFrame, DeliveredMessage
from pamqp.commands import Basic


class Message:
    """A message in hand, until it is acknowledged or rejected. If that does not get through, it is delivered again."""

    __slots__ = ("_settle", "_tag", "body", "properties")

    def __init__(self, delivered: DeliveredMessage, settle: Callable[[int, bool | None], None]) -> None:
        assert isinstance(delivered.delivery, Basic.Deliver)  # noqa: S101 - narrows the library's type
        self.body: bytes = delivered.body
        self.properties: Basic.Properties = delivered.header.properties
        self._tag: int = delivered.delivery.delivery_tag or 0
        self._settle = settle

    @property
    def type(self) -> str | None:
        return self.properties.message_type

    @property
    def headers(self) -> Mapping[str, Any]:
        return self.properties.headers or {}

    def acknowledge(self) -> None:
        self._settle(self._tag, None)

    def reject(self, *, requeue: bool = False) -> None:
        """Dead-letter it, or requeue it; not by `nack`, which RabbitMQ 4 does not count as a delivery."""
        self._settle(self._tag, requeue)


class Settled:
    """The messages of a channel that are settled, and what RabbitMQ is to be told of them.

    It numbers a channel's messages 1, 2, 3, … (their tags). An acknowledgement of several names the last of them, which
    must not have been settled before, and stands for all before it.
    """

    def __init__(self) -> None:
        self._acknowledged: list[int] = []
        self._rejected: list[Basic.Reject] = []
        self._upto = 0  # it and all before it are settled
        self._beyond: set[int] = set()

    def add(self, tag: int, requeue: bool | None) -> None:
        """
        Args:
            requeue: None: it is acknowledged; otherwise it is rejected.
        """
        self._beyond.add(tag)
        if requeue is None:
            self._acknowledged.append(tag)
        else:
            self._rejected.append(Basic.Reject(tag, requeue))

    def frames(self) -> list[Basic.Ack | Basic.Reject]:
        """What was not told yet: what is acknowledged up to the first message in hand at once, the rest one by one."""
        acknowledged, rejected = sorted(self._acknowledged), self._rejected
        self._acknowledged, self._rejected = [], []
        while self._upto + 1 in self._beyond:
            self._upto += 1
            self._beyond.remove(self._upto)
        together = bisect_right(acknowledged, self._upto)
        several = [Basic.Ack(acknowledged[together - 1], multiple=True)] if together else []
        return [*rejected, *several, *(Basic.Ack(tag) for tag in acknowledged[together:])]


class Subscription:
    """Consumption of a queue on a channel of its own, which can be cancelled and begun again.

    What is done with messages is told in one write for all of a turn of the event loop, and in one acknowledgement for
    all up to the first that is still in hand. Used of aiormq 7.2.4 beyond its documented calls: a channel's
    `write_queue`, `number` and `create_future`, and `ChannelFrame`, as its own acknowledgement uses them
    (tests/integration/test_subscription.py).
    """

    def __init__(self, queue: str, take: Callable[[Message], None]) -> None:
        self._queue = queue
        self._take = take
        self._channel: Channel | None = None
        self._consumer_tag: str | None = None
        self._settled = Settled()
        self._telling: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self, connection: AbstractConnection, *, prefetch: int, on_loss: Callable[[], None]) -> None:
        """
        Args:
            prefetch: maximum number of messages in hand.
            on_loss: called when the channel closes, or the broker cancels the consumer.
        """
        channel = await connection.channel(publisher_confirms=False)
        channel.close_callbacks.add(lambda *_: on_loss())
        await channel.set_qos(prefetch_count=prefetch)
        self._channel = cast("Channel", await channel.get_underlay_channel())
        self._channel.on_consumer_cancel_callbacks.add(lambda _: on_loss())

    @property
    def is_open(self) -> bool:
        return self._channel is not None

    @property
    def is_consuming(self) -> bool:
        return self._consumer_tag is not None

    async def consume(self) -> None:
        assert self._channel is not None  # noqa: S101 - open
        self._consumer_tag = (await self._channel.basic_consume(self._queue, self._taken)).consumer_tag

    async def cancel(self) -> None:
        assert self._channel is not None  # noqa: S101 - open
        tag, self._consumer_tag = self._consumer_tag, None
        assert tag is not None  # noqa: S101 - consuming
        await self._channel.basic_cancel(tag)

    async def told(self, within: timedelta) -> None:
        """Return when RabbitMQ was told of all that is settled."""
        if self._telling is not None:
            await asyncio.wait({self._telling}, timeout=within.total_seconds())

    def close(self) -> None:
        """The connection is gone, or about to be: tell nothing more."""
        self._closed = True
        if self._telling is not None:
            self._telling.cancel()

    async def _taken(self, delivered: DeliveredMessage) -> None:
        self._take(Message(delivered, self._settle))

    def _settle(self, tag: int, requeue: bool | None) -> None:
        """
        Args:
            requeue: None: it is acknowledged.
        """
        self._settled.add(tag, requeue)
        if not self._closed and (self._telling is None or self._telling.done()):
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        channel = self._channel
        assert channel is not None  # noqa: S101 - it has delivered a message
        while (frames := self._settled.frames()) and not channel.is_closed:
            written = channel.create_future()  # fails when the channel closes
            await channel.write_queue.put(ChannelFrame.marshall(channel.number, frames, written))
            await asyncio.wait({written})
