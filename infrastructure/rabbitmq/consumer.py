"""Consumes a queue, across all the connections of a `Broker`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

from aio_pika.exceptions import AMQPError
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

from infrastructure.rabbitmq.topology import REPLY_TIMEOUT

BUG_PAUSE: Final = timedelta(seconds=1)
"""Before a message whose handler failed is requeued: it must not cause a busy loop."""

Handle = Callable[[RabbitMessage], Coroutine[Any, Any, None]]
"""Handles a message to its end, acknowledgement included. Must not raise."""


class Consumer:
    """Consumes one of the queues, across all connections of a `Broker`; can be paused.

    Attributes:
        stopping: set once no more messages will be taken: a handler that only waits should give up its message.
    """

    def __init__(self, queue: str, handle: Handle, *, prefetch: int) -> None:
        """
        Args:
            prefetch: maximum number of messages in hand; each has a task of its own.
        """
        self.queue = queue
        self.stopping = asyncio.Event()
        self._handle = handle
        self._prefetch = prefetch
        self._subscription: _Subscription | None = None
        self._paused = False
        self._finishing = False
        self._lock = asyncio.Lock()
        self._in_hand: set[asyncio.Task[Any]] = set()

    def attach(self, broker: RabbitBroker) -> None:
        """Consume on this connection once it is started."""
        self._finishing = False
        self.stopping.clear()
        self._subscription = _Subscription(broker, self.queue, self._take, prefetch=self._prefetch)

    @property
    def is_paused(self) -> bool:
        return self._paused

    async def pause(self) -> None:
        """Take no more messages; those in hand stay in hand."""
        self._paused = True
        await self._sync_consumption()

    async def resume(self) -> None:
        self._paused = False
        await self._sync_consumption()

    async def started(self, on_loss: Callable[[], None]) -> None:
        """The connection has started: consume from here on, unless paused.

        Args:
            on_loss: called when the broker cancels the consumer or closes the channel, even if the connection lives.
        """
        assert self._subscription is not None  # noqa: S101 - attached
        await self._subscription.watch(on_loss)
        await self._sync_consumption()

    async def finish(self, within: timedelta) -> None:
        """Take no more messages from this connection, and wait for the handlers of those in hand."""
        self._finishing = True  # not a pause: a pause or resume meanwhile applies to the next connection, too
        await self._sync_consumption()
        self.stopping.set()
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=within.total_seconds())

    async def end(self, within: timedelta) -> None:
        """`finish` for good, including messages from connections that were lost, and cancel what does not finish."""
        if not self._finishing:
            await self.finish(within)
        rest = list(self._in_hand)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def detach(self) -> None:
        """The connection is gone. The handlers of messages in hand go on; the messages are delivered again."""
        self._subscription = None
        self.stopping.set()

    async def _sync_consumption(self) -> None:
        """Start or cancel consuming, as it should be now. A lost connection is ignored: the next one starts afresh."""
        async with self._lock:
            subscription = self._subscription
            if subscription is None or not subscription.is_started:
                return
            with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
                async with asyncio.timeout(REPLY_TIMEOUT.total_seconds()):
                    wanted = not self._paused and not self._finishing
                    if subscription.is_consuming and not wanted:
                        await subscription.cancel()
                    elif wanted and not subscription.is_consuming:
                        await subscription.consume()

    async def _take(self, message: RabbitMessage) -> None:
        # In a task of its own: the library cancels the current one when the channel closes, and a mail that is cut off
        # after its content has to be sent again.
        task = asyncio.create_task(self._handle(message))
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)


class _Subscription:
    """A FastStream subscriber on one connection, whose consumption can be cancelled and started again.

    The only class that uses what FastStream 0.7.8 keeps private: a subscriber's `running`, `_consumer_tag` and
    `_queue_obj`. Its public `stop` waits for handlers first and cancels then, so that each message that arrives
    meanwhile uses up a delivery (docs/library-notes.md). tests/integration/test_subscription.py fails when a new
    version changes them.
    """

    def __init__(self, broker: RabbitBroker, queue: str, take: Handle, *, prefetch: int) -> None:
        self._subscriber = broker.subscriber(
            # Not the queue as it was declared: FastStream would remember that, with the channel it was declared on, and
            # consume there, without a prefetch.
            RabbitQueue(queue, declare=False, robust=False),
            channel=Channel(prefetch_count=prefetch),
            ack_policy=AckPolicy.MANUAL,
            decoder=_undecoded,
            no_reply=True,
        )
        self._subscriber(take)

    @property
    def is_started(self) -> bool:
        """The connection has been started, which starts its subscribers."""
        return self._subscriber.running

    @property
    def is_consuming(self) -> bool:
        return self._subscriber._consumer_tag is not None

    async def consume(self) -> None:
        await self._subscriber.start()

    async def cancel(self) -> None:
        queue, tag = self._subscriber._queue_obj, self._subscriber._consumer_tag
        assert queue is not None  # noqa: S101 - started
        assert tag is not None  # noqa: S101 - consuming
        self._subscriber._consumer_tag = None
        await queue.cancel(tag)

    async def watch(self, on_loss: Callable[[], None]) -> None:
        """Have `on_loss` called when the channel closes, or the broker cancels the consumer."""
        assert self._subscriber._queue_obj is not None  # noqa: S101 - started
        channel = self._subscriber._queue_obj.channel
        channel.close_callbacks.add(lambda *_: on_loss())
        (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(lambda _: on_loss())


async def _undecoded(message: RabbitMessage) -> RabbitMessage:
    """Hands the whole message to the handler instead of its decoded body, which is not trusted yet."""
    return message


async def acknowledge(message: RabbitMessage) -> None:
    """Acknowledge it. If the connection is gone, the message is delivered again, and recognised."""
    with suppress(AMQPError, OSError, RuntimeError):
        await message.ack()


async def reject(message: RabbitMessage, *, requeue: bool = False) -> None:
    """Dead-letter it, or requeue it; not by `nack`, which RabbitMQ 4 does not count as a delivery. If the connection is
    gone, the message is delivered again."""
    with suppress(AMQPError, OSError, RuntimeError):
        await message.reject(requeue=requeue)
