"""Consumes a queue, across all the connections of a `Broker`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError

from infrastructure.rabbitmq.subscription import Message, Subscription
from infrastructure.rabbitmq.topology import REPLY_TIMEOUT

BUG_PAUSE: Final = timedelta(seconds=1)
"""Before a message whose handler failed is requeued: it must not cause a busy loop."""

Handle = Callable[[Message], Coroutine[Any, Any, None]]
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
        self._subscription: Subscription | None = None
        self._paused = False
        self._resuming: asyncio.Task[None] | None = None
        self._is_to_resume = False
        self._finishing = False
        self._lock = asyncio.Lock()
        self._in_hand: set[asyncio.Task[Any]] = set()

    async def attach(self, connection: AbstractConnection, on_loss: Callable[[], None]) -> None:
        """Consume on this connection from here on, unless paused.

        Args:
            on_loss: called when the broker cancels the consumer or closes the channel, even if the connection lives.

        Raises:
            AMQPError, OSError: the connection is lost, or the broker refuses us the queue.
        """
        self._finishing = False
        self.stopping.clear()
        async with self._lock:
            self._subscription = Subscription(self.queue, self._take)
            await self._subscription.open(connection, prefetch=self._prefetch, on_loss=on_loss)
            if not self._paused:
                await self._subscription.consume()

    @property
    def is_paused(self) -> bool:
        return self._paused

    async def pause(self) -> None:
        """Take no more messages; those in hand stay in hand."""
        self._paused, self._is_to_resume = True, False
        await self._sync_consumption()

    async def resume(self) -> None:
        """Take messages again; where as many are in hand as may be, once one is done with.

        RabbitMQ does not count those of the consumer before: each pause would let as many more be taken.
        """
        self._is_to_resume = self._paused
        await self._resume_if_there_is_room()

    async def _resume_if_there_is_room(self) -> None:
        if self._is_to_resume and len(self._in_hand) < self._prefetch:
            self._paused = self._is_to_resume = False
            await self._sync_consumption()

    async def finish(self, within: timedelta) -> None:
        """Take no more messages from this connection, and wait for the handlers of those in hand."""
        self._finishing = True  # not a pause: a pause or resume meanwhile applies to the next connection, too
        await self._sync_consumption()
        self.stopping.set()
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=within.total_seconds())
        if self._subscription is not None:
            await self._subscription.told(REPLY_TIMEOUT)

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
        if self._subscription is not None:
            self._subscription.close()
        self._subscription = None
        self.stopping.set()

    async def _sync_consumption(self) -> None:
        """Start or cancel consuming, as it should be now. A lost connection is ignored: the next one starts afresh."""
        async with self._lock:
            subscription = self._subscription
            if subscription is None or not subscription.is_open:
                return
            with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
                async with asyncio.timeout(REPLY_TIMEOUT.total_seconds()):
                    wanted = not self._paused and not self._finishing
                    if subscription.is_consuming and not wanted:
                        await subscription.cancel()
                    elif wanted and not subscription.is_consuming:
                        await subscription.consume()

    def _take(self, message: Message) -> None:
        # In a task of its own: the library cancels the current one when the channel closes, and a mail that is cut off
        # after its content has to be sent again.
        task = asyncio.create_task(self._handle(message))
        self._in_hand.add(task)
        task.add_done_callback(self._put_down)

    def _put_down(self, task: asyncio.Task[Any]) -> None:
        self._in_hand.discard(task)
        if self._is_to_resume:
            self._resuming = asyncio.create_task(self._resume_if_there_is_room())
