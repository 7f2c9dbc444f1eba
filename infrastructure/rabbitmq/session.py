"""One connection to RabbitMQ, from opening it to losing it.

FastStream connects, declares and publishes. Its own recovery after a loss is not used; everything is set up again, from
the topology on: so there is one way to start, and every start tests it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from traceback import walk_tb
from typing import Final
from uuid import uuid4

import structlog
from aio_pika import Message, RobustConnection
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import (
    AMQPError,
    ChannelNotFoundEntity,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)
from aiormq.exceptions import ChannelAccessRefused
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitQueue
from pamqp.commands import Connection
from yarl import URL

from infrastructure.rabbitmq.addresses import ReachedRobustConnection
from infrastructure.rabbitmq.consumer import Consumer
from infrastructure.rabbitmq.topology import (
    APP_ID,
    CANARY,
    REPLY_TIMEOUT,
    Topology,
    declare,
    declare_exchanges,
    queue_counts,
)

log = structlog.get_logger(__name__)

LOOP_QUEUES: Final = "registrar.loop."
"""Prefix of the queues in which each connection receives its messages to itself."""

CONNECT_TIMEOUT: Final = timedelta(seconds=5)

CHECK_INTERVAL: Final = timedelta(seconds=5)
"""Between two checks of the queues and their consumers."""

HEARTBEAT: Final = 10
"""Seconds; a broker that is silent for twice as long counts as gone."""

REFUSALS: Final = (ProbableAuthenticationError, ChannelAccessRefused)
"""What is raised where RabbitMQ refuses us: because of the password, of a virtual host that does not exist or is closed
to us (see `telling_refusals`), or of a missing permission."""

REFUSAL_HINT: Final = (
    "correct user, password or virtual host in REGISTRAR_BROKER_URL, or that user's rights in RabbitMQ"
)
"""What to do about them."""

_NO_ROOM: Final = re.compile(r"connection limit \(\d+\) is reached\Z")
"""530 is also said where a virtual host, a user or a node has as many connections as it may have, which passes. Before
that the text has names, which may be any text."""


class VirtualHostRefused(ProbableAuthenticationError):
    """There is no virtual host of this name, or it is closed to the user."""


@contextmanager
def telling_refusals() -> Iterator[None]:
    """For making a connection: raises one of `REFUSALS` where RabbitMQ closes it because we may not use it.

    What it sends where it should open a virtual host, the library takes for an invalid frame, whatever it is: a reason
    that is about us, or that the broker is shutting down; and so it takes what a connection cut short leaves behind.
    The frame itself is only in the traceback.
    """
    try:
        yield
    except InvalidFrameError as error:
        received = [value for frame, _ in walk_tb(error.__traceback__) for value in frame.f_locals.values()]
        for close in received:
            if (
                isinstance(close, Connection.Close)
                and close.reply_code == 530
                and not _NO_ROOM.search(close.reply_text)
            ):
                raise VirtualHostRefused("the virtual host is not open to us") from None
        raise


class Session:
    """One connection, from opening it to losing it.

    Attributes:
        lost: set when the connection, or what it needs on it, is gone.
        is_complete: no queue was missing at the latest check.
        queues: what that check has counted; see `queue_counts`.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        topology: Topology | None,
        consumers: Sequence[Consumer],
        check_interval: timedelta = CHECK_INTERVAL,
    ) -> None:
        self.lost = asyncio.Event()
        self.is_complete = True
        self.queues: dict[str, dict[str, int]] = {}
        self._topology = topology
        self._consumers = consumers
        self._check_interval = check_interval
        self._round_trips: dict[str, asyncio.Future[None]] = {}
        address = URL(url)
        self.broker = RabbitBroker(
            str(address.update_query(heartbeat=str(HEARTBEAT), name=f"registrar {name}")),
            reconnect_interval=3600,  # we reconnect ourselves, and set everything up again
            timeout=CONNECT_TIMEOUT.total_seconds(),
            default_channel=Channel(on_return_raises=True),
            on_close=[lambda *_: self.lost.set()],
            graceful_timeout=None,
            app_id=APP_ID,
            apply_types=False,
            logger=None,
        )
        # What FastStream hands to aio-pika, which takes it; FastStream itself does not
        # (tests/integration/test_broker.py).
        self.broker._connection_kwargs["connection_class"] = ReachedRobustConnection
        self._connection: RobustConnection | None = None
        self._own_queue = ""

    async def begin(self, *, delete: Sequence[str] = ()) -> None:
        """Connect, declare, test that messages get through, consume; without a topology, only connect and inspect.

        Args:
            delete: queues to delete before they are declared.

        Raises:
            TopologyMismatch: something exists with other properties than ours.
            AMQPError, OSError, TimeoutError: the broker is away, or refuses us (`REFUSALS`).
        """
        self._connection = await self._connect()
        await self._open_own_queue(self._connection)
        await self.round_trip()
        if self._topology is None:
            with suppress(ChannelNotFoundEntity):  # another process declares it
                await self.counts()
            return
        await self._declare(self._topology, delete)
        async with asyncio.timeout(2 * CONNECT_TIMEOUT.total_seconds()):
            for consumer in self._consumers:
                await consumer.attach(self._connection, self.lost.set)

    async def _connect(self) -> RobustConnection:
        """Connect within the library's deadline. If we cut it off earlier it would go on in the background, where it
        cannot be cancelled: the process could not exit."""
        connecting = asyncio.create_task(self.broker.connect())
        library_deadline = 2 * CONNECT_TIMEOUT.total_seconds()
        try:
            with telling_refusals():
                async with asyncio.timeout(library_deadline):
                    return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            await asyncio.wait({asyncio.gather(connecting, return_exceptions=True)}, timeout=library_deadline)
            raise
        finally:
            connecting.cancel()

    async def _open_own_queue(self, connection: RobustConnection) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds()):
            channel = await connection.channel(on_return_raises=True)
            channel.close_callbacks.add(lambda *_: self.lost.set())
            own = await channel.declare_queue(
                f"{LOOP_QUEUES}{uuid4().hex}", exclusive=True, auto_delete=True, robust=False
            )
            await own.consume(self._returned, no_ack=True, robust=False)
        self._own_channel, self._own_queue = channel, own.name

    async def _declare(self, topology: Topology, delete: Sequence[str]) -> None:
        async with asyncio.timeout(2 * CONNECT_TIMEOUT.total_seconds()):
            await declare_exchanges(self.broker)  # before anything is deleted that would not come back
        for name in delete:
            await self._delete(name)
        async with asyncio.timeout(2 * CONNECT_TIMEOUT.total_seconds()):
            await declare(self.broker, topology)
        for queue, exchange in topology.bindings:
            await self._test_queue(topology, exchange, queue)

    async def round_trip(self) -> timedelta:
        """Send a message to ourselves; returns how long that took.

        Raises:
            AMQPError, OSError, TimeoutError: it did not arrive.
        """
        name = uuid4().hex
        returned = self._round_trips[name] = asyncio.get_running_loop().create_future()
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(REPLY_TIMEOUT.total_seconds()):
                await self._own_channel.default_exchange.publish(
                    Message(b"", message_id=name), routing_key=self._own_queue
                )
                await returned
        finally:
            self._round_trips.pop(name, None)
        return timedelta(seconds=asyncio.get_running_loop().time() - started)

    async def _returned(self, message: AbstractIncomingMessage) -> None:
        returned = self._round_trips.get(message.message_id or "")
        if returned is not None and not returned.done():
            returned.set_result(None)

    async def _test_queue(self, topology: Topology, exchange: RabbitExchange, queue: RabbitQueue) -> None:
        """Test that the queue accepts messages, and replace it if it is dead.

        A quorum queue whose broker died within a second of its declaration is dead for ever: it confirms nothing, or
        refuses everything though it is empty. If other messages do get through, that is what has happened: the queue is
        deleted and declared again; what it held is requested again."""
        try:
            await self._send_canary(exchange, queue)
            return
        except PublishError:
            raise
        except DeliveryError:
            if (await self.counts())[queue.name]["messages"]:
                # It works, and is full; only its consumers can change that.
                log.warning("broker.queue_is_full", queue=queue.name, hint="mails wait in the log until it has room")
                return
        except TimeoutError:
            await self.round_trip()  # otherwise the broker is slow or blocked, and the queue may be fine
        log.warning("broker.queue_is_dead", queue=queue.name, hint="it is deleted and declared again")
        await self._delete(queue.name)
        async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds()):
            await declare(self.broker, topology)
        await self._send_canary(exchange, queue)

    async def _send_canary(self, exchange: RabbitExchange, queue: RabbitQueue) -> None:
        async with asyncio.timeout(REPLY_TIMEOUT.total_seconds()):
            await self.broker.publish(
                b"",
                exchange=exchange,
                routing_key=queue.routing(),
                message_type=CANARY,
                expiration=REPLY_TIMEOUT,
            )

    async def _delete(self, queue: str) -> None:
        assert self._connection is not None  # noqa: S101 - connected
        channel = await self._connection.channel()
        with suppress(AMQPError, TimeoutError):  # INTERNAL_ERROR where it has no leader: it is deleted all the same
            await channel.queue_delete(queue, timeout=CONNECT_TIMEOUT.total_seconds())
        with suppress(AMQPError, OSError):
            await channel.close()

    async def counts(self) -> dict[str, dict[str, int]]:
        """See `queue_counts`."""
        assert self._connection is not None  # noqa: S101 - connected
        try:
            self.queues = await queue_counts(self._connection)
        except ChannelNotFoundEntity:
            self.is_complete = False
            raise
        self.is_complete = True
        return self.queues

    async def watch(self) -> None:
        """Return when the connection is lost.

        Raises:
            ChannelNotFoundEntity: a queue that we declare is gone, or has lost our consumer.
            AMQPError, OSError, TimeoutError: the broker does not respond.
        """
        while not self.lost.is_set():
            reraise_cancellation()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._check_interval.total_seconds()):
                    await self.lost.wait()
                    return
            try:
                counts = await self.counts()
            except ChannelNotFoundEntity:
                if self._topology is None:
                    continue
                raise
            for consumer in self._consumers:
                if not consumer.is_paused and not counts[consumer.queue]["consumers"]:
                    raise ChannelNotFoundEntity(f"nobody consumes from {consumer.queue}")

    async def end(self, finish_within: timedelta) -> None:
        """Close in order, as far as the broker responds."""
        if not self.lost.is_set():
            await asyncio.gather(*(consumer.finish(finish_within) for consumer in self._consumers))
        for consumer in self._consumers:
            consumer.detach()
        with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(REPLY_TIMEOUT.total_seconds()):
                await self.broker.stop()


def reraise_cancellation() -> None:
    """Raise the cancellation that was requested of this task, in case the library has swallowed it: otherwise the
    process could not exit."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
