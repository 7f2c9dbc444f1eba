"""RabbitMQ: what is declared there, and a connection that is made again for ever.

The broker is a wake-up line: whatever it loses, the saga asks for again. So nothing here waits for it for ever, and
everything that was never answered counts as unknown.

FastStream consumes and publishes. What its connection would restore by itself after a loss is made anew instead, from
the topology on: one way to begin, and it is the one that is tested at every start.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import uuid4

import structlog
from aio_pika import Message, RobustConnection, connect
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import (
    AMQPError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)
from aiormq.exceptions import ChannelAccessRefused
from faststream import AckPolicy
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue
from tenacity import AsyncRetrying, RetryCallState, wait_chain, wait_fixed, wait_random
from yarl import URL

from application.ports import BrokerAway, Unavailable

log = structlog.get_logger(__name__)

# --- Topology (docs/contract.md) ------------------------------------------------------------------

MAIL_EXCHANGE: Final = RabbitExchange("registrar", type=ExchangeType.TOPIC)
DEAD_EXCHANGE: Final = RabbitExchange("registrar.dlx", type=ExchangeType.TOPIC)
EVENTS_EXCHANGE: Final = RabbitExchange("registrar.events", type=ExchangeType.TOPIC)
EXCHANGES: Final = (MAIL_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE)

MAIL_QUEUE: Final = "registrar.mail"
FAILED_QUEUE: Final = "registrar.mail.failed"
MAIL_REQUESTED: Final = "mail.requested"
MAIL_FAILED: Final = "mail.failed"

DELIVERY_LIMIT: Final = 3
"""Deliveries after which a message is taken for the cause of the crashes, and becomes a dead letter (docs/contract.md)."""

DEAD_DELIVERY_LIMIT: Final = 20
"""The same for a dead letter, which is dropped then: what cannot be decoded on the wire ends the connection of whoever it
is delivered to, before any code of ours sees it. RabbitMQ 4's own default; the saga asks again for a mail of ours."""

MOST_MESSAGES: Final = 100_000
"""Messages in a queue at most: beyond it publishing is refused, and mails wait in the log, where they lose nothing."""

APP_ID: Final = "registrar"
LOOP_QUEUES: Final = "registrar.loop."
"""How the names of the queues begin that each connection has for its message to itself."""

CANARY: Final = "registrar.canary"
"""Type of the messages that prove at the begin of a connection that the queues take messages."""

CONNECT_WITHIN: Final = timedelta(seconds=5)
ANSWER_WITHIN: Final = timedelta(seconds=3)
"""A queue that does not confirm a message for so long is dead or blocked (docs/reliability.md, C3)."""

LOOK_WITHIN: Final = timedelta(seconds=2)
"""For a health check, loop message and counts together."""

PUBLISH_WITHIN: Final = timedelta(seconds=5)
"""A confirm is a matter of milliseconds; what comes later is unknown, and published again with the same id."""

STABLE_AFTER: Final = timedelta(seconds=10)
"""A connection that is lost sooner was no success: the next try waits as after a failed one."""

LOOK_EVERY: Final = timedelta(seconds=5)
HEARTBEAT: Final = 10
"""Seconds; a broker that says nothing for twice as long is gone."""

TRIES: Final = 5
PAUSES: Final = wait_chain(*(wait_fixed(min(30, 2**n)) for n in range(TRIES - 1)), wait_fixed(5)) + wait_random(0, 1)
"""Plan: five tries, 1 s · 2ⁿ, at most 30 s, jittered; from then on every 5 s, as nobody waits for it."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The two queues of the mail, as they are declared."""

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
                    "x-max-length": MOST_MESSAGES,
                },
            ),
            RabbitQueue(
                FAILED_QUEUE,
                queue_type=QueueType.QUORUM,
                robust=False,
                routing_key=MAIL_FAILED,
                arguments={
                    "x-overflow": "reject-publish",
                    "x-max-length": MOST_MESSAGES,
                    "x-delivery-limit": DEAD_DELIVERY_LIMIT,
                },
            ),
        )

    @property
    def bindings(self) -> Sequence[tuple[RabbitQueue, RabbitExchange]]:
        return ((self.mail, MAIL_EXCHANGE), (self.failed, DEAD_EXCHANGE))


class OtherQueue(Exception):
    """A queue or exchange exists with other properties than ours; the message says how to migrate."""


REFUSALS: Final = (ProbableAuthenticationError, InvalidFrameError, ChannelAccessRefused)
"""What is raised where RabbitMQ refuses us: over the password, over a virtual host that is not there or not for us (it
closes where it should open, which the library takes for a wrong frame), and over a right that is missing."""

REFUSAL_HINT: Final = (
    "correct user, password or virtual host in REGISTRAR_BROKER_URL, or that user's rights in RabbitMQ"
)
"""What to do about them."""


class Unroutable(Unavailable):
    """No queue takes the message: exchange, binding or queue is missing. It is declared again with the connection."""


# --- One connection -------------------------------------------------------------------------------

Handle = Callable[[RabbitMessage], Coroutine[Any, Any, None]]
"""Sees a message through, acknowledgement included. Must not raise."""


class Consumer:
    """Takes messages from one of the queues, over all connections of a `Broker`; can be paused.

    Attributes:
        stopping: set once no more messages will be taken: who only waits with one in hand should let go of it.
    """

    def __init__(self, queue: str, handle: Handle, *, prefetch: int) -> None:
        """
        Args:
            prefetch: messages in hand at most; each has a task of its own.
        """
        self.queue = queue
        self.stopping = asyncio.Event()
        self._handle = handle
        self._prefetch = prefetch
        self._subscriber: Any = None
        self._paused = False
        self._finishing = False
        self._turn = asyncio.Lock()
        self._in_hand: set[asyncio.Task[Any]] = set()

    def attach(self, broker: RabbitBroker) -> None:
        """Consume on this connection once it is started."""
        self._finishing = False
        self.stopping.clear()
        self._subscriber = broker.subscriber(
            # Not the queue as it was declared: FastStream would remember that, with the channel it was declared on, and
            # consume there, without a prefetch.
            RabbitQueue(self.queue, declare=False, robust=False),
            channel=Channel(prefetch_count=self._prefetch),
            ack_policy=AckPolicy.MANUAL,
            decoder=_as_it_is,
            no_reply=True,
        )
        self._subscriber(self._take)

    @property
    def is_paused(self) -> bool:
        return self._paused

    async def pause(self) -> None:
        """Take no more messages; those in hand stay in hand."""
        self._paused = True
        await self._settle()

    async def resume(self) -> None:
        self._paused = False
        await self._settle()

    async def begun(self, lost: Callable[[], None]) -> None:
        """The connection consumes now, unless we are paused.

        Args:
            lost: told when the broker takes the queue or the channel from us, while others may still have theirs.
        """
        channel = self._subscriber._queue_obj.channel
        channel.close_callbacks.add(lambda *_: lost())
        (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(lambda _: lost())
        await self._settle()

    async def finish(self, within: timedelta) -> None:
        """Take no more messages from this connection and let those in hand be seen through. FastStream's own `stop`
        waits first and cancels then, so that each message that comes meanwhile costs a delivery (docs/library-notes.md)."""
        self._finishing = True  # no pause: whoever pauses and resumes meanwhile means the next connection, too
        await self._settle()
        self.stopping.set()
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=within.total_seconds())

    async def end(self, within: timedelta) -> None:
        """`finish` for good, also what is in hand from connections that were lost, and give up what is not finished."""
        if not self._finishing:
            await self.finish(within)
        rest = list(self._in_hand)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def detach(self) -> None:
        """The connection is gone. What is in hand is seen through all the same; its messages come again."""
        self._subscriber = None
        self.stopping.set()

    async def _settle(self) -> None:
        """Make consuming or not what it is to be. The connection may go at any moment; the next one begins anew."""
        async with self._turn:
            subscriber = self._subscriber
            if subscriber is None or not subscriber.running:
                return
            with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
                async with asyncio.timeout(ANSWER_WITHIN.total_seconds()):
                    consuming = subscriber._consumer_tag is not None
                    wanted = not self._paused and not self._finishing
                    if consuming and not wanted:
                        tag, subscriber._consumer_tag = subscriber._consumer_tag, None
                        await subscriber._queue_obj.cancel(tag)
                    elif wanted and not consuming:
                        await subscriber.start()

    async def _take(self, message: RabbitMessage) -> None:
        # In a task of its own: the library cancels the one we are in when the channel goes, and a mail that is cut off
        # after its content has to go out again.
        task = asyncio.create_task(self._handle(message))
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)


async def _as_it_is(message: RabbitMessage) -> RabbitMessage:
    """Hands the whole message to the handler instead of its decoded body, which is not trusted yet."""
    return message


class _Session:
    """One connection, from its making to its loss.

    Attributes:
        is_complete: no queue was missing at the latest look at them.
    """

    def __init__(self, url: str, *, name: str, topology: Topology | None, consumers: Sequence[Consumer]) -> None:
        self.lost = asyncio.Event()
        self.is_complete = True
        self._topology = topology
        self._consumers = consumers
        self._loops: dict[str, asyncio.Future[None]] = {}
        address = URL(url)
        self.broker = RabbitBroker(
            str(address.update_query(heartbeat=str(HEARTBEAT), name=f"registrar {name}")),
            reconnect_interval=3600,  # we begin anew ourselves, with everything
            timeout=CONNECT_WITHIN.total_seconds(),
            default_channel=Channel(on_return_raises=True),
            on_close=[lambda *_: self.lost.set()],
            graceful_timeout=None,
            app_id=APP_ID,
            apply_types=False,
            logger=None,
        )
        self._connection: RobustConnection | None = None
        self._loop_queue = ""

    async def begin(self, *, delete: Sequence[str] = ()) -> None:
        """Connect, declare, prove that messages get through, consume; without a topology, connect and look.

        Args:
            delete: queues to delete before they are declared.

        Raises:
            OtherQueue: see there.
            AMQPError, OSError, TimeoutError: the broker is away, or refuses us (`REFUSALS`).
        """
        self._connection = await self._connect()
        async with asyncio.timeout(CONNECT_WITHIN.total_seconds()):
            channel = await self._connection.channel(on_return_raises=True)
            channel.close_callbacks.add(lambda *_: self.lost.set())
            own = await channel.declare_queue(
                f"{LOOP_QUEUES}{uuid4().hex}", exclusive=True, auto_delete=True, robust=False
            )
            await own.consume(self._looped, no_ack=True, robust=False)
        self._loop_channel, self._loop_queue = channel, own.name
        await self.loop()
        if self._topology is None:
            with suppress(ChannelNotFoundEntity):  # whoever declares it makes it
                await self.counts()
            return
        async with asyncio.timeout(2 * CONNECT_WITHIN.total_seconds()):
            await _declare_exchanges(self.broker)  # before anything is deleted that would not come back
        for name in delete:
            await self._delete(name)
        async with asyncio.timeout(2 * CONNECT_WITHIN.total_seconds()):
            await declare(self.broker, self._topology)
        for declared, exchange in self._topology.bindings:
            await self._prove(self._topology, exchange, declared)
        for consumer in self._consumers:
            consumer.attach(self.broker)
        async with asyncio.timeout(2 * CONNECT_WITHIN.total_seconds()):
            await self.broker.start()
            for consumer in self._consumers:
                await consumer.begun(self.lost.set)

    async def _connect(self) -> RobustConnection:
        """Connect within the library's deadline. To cut it off before would leave it at that in the background, where it
        does not let itself be cancelled: the process could not end."""
        connecting = asyncio.create_task(self.broker.connect())
        patience = 2 * CONNECT_WITHIN.total_seconds()
        try:
            async with asyncio.timeout(patience):
                return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            await asyncio.wait({asyncio.gather(connecting, return_exceptions=True)}, timeout=patience)
            raise
        finally:
            connecting.cancel()

    async def loop(self) -> timedelta:
        """Send a message to ourselves; answers how long it took.

        Raises:
            AMQPError, OSError, TimeoutError: it did not come.
        """
        name = uuid4().hex
        came = self._loops[name] = asyncio.get_running_loop().create_future()
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(ANSWER_WITHIN.total_seconds()):
                await self._loop_channel.default_exchange.publish(
                    Message(b"", message_id=name), routing_key=self._loop_queue
                )
                await came
        finally:
            self._loops.pop(name, None)
        return timedelta(seconds=asyncio.get_running_loop().time() - begun)

    async def _looped(self, message: AbstractIncomingMessage) -> None:
        came = self._loops.get(message.message_id or "")
        if came is not None and not came.done():
            came.set_result(None)

    async def _prove(self, topology: Topology, exchange: RabbitExchange, queue: RabbitQueue) -> None:
        """A quorum queue whose broker died within a second of its declaration is dead for ever: it confirms nothing, or
        refuses everything though it is empty. While others do get through, that is what it is: then it is made anew;
        what it held is asked for again."""
        try:
            await self._canary(exchange, queue)
            return
        except PublishError:
            raise
        except DeliveryError:
            if (await self.counts())[queue.name]["messages"]:
                # It lives, and is full; only those who consume from it can change that.
                log.warning("broker.queue_is_full", queue=queue.name, hint="mails wait in the log until it has room")
                return
        except TimeoutError:
            await self.loop()  # else the broker is slow or blocked, and the queue may be well
        log.warning("broker.queue_is_dead", queue=queue.name, hint="it is deleted and declared anew")
        await self._delete(queue.name)
        async with asyncio.timeout(CONNECT_WITHIN.total_seconds()):
            await declare(self.broker, topology)
        await self._canary(exchange, queue)

    async def _canary(self, exchange: RabbitExchange, queue: RabbitQueue) -> None:
        async with asyncio.timeout(ANSWER_WITHIN.total_seconds()):
            await self.broker.publish(
                b"",
                exchange=exchange,
                routing_key=queue.routing(),
                message_type=CANARY,
                expiration=ANSWER_WITHIN,
            )

    async def _delete(self, queue: str) -> None:
        assert self._connection is not None  # noqa: S101 - connected
        channel = await self._connection.channel()
        with suppress(AMQPError, TimeoutError):  # INTERNAL_ERROR where it has no leader: it is gone all the same
            await channel.queue_delete(queue, timeout=CONNECT_WITHIN.total_seconds())
        with suppress(AMQPError, OSError):
            await channel.close()

    async def counts(self) -> dict[str, dict[str, int]]:
        """See `_counts`."""
        assert self._connection is not None  # noqa: S101 - connected
        try:
            counts = await _counts(self._connection)
        except ChannelNotFoundEntity:
            self.is_complete = False
            raise
        self.is_complete = True
        return counts

    async def watch(self) -> None:
        """Return when the connection is lost, or a queue of our own making is gone, or has lost our consumer."""
        while not self.lost.is_set():
            _be_cancelled()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY.total_seconds()):
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
        """Close in good order as far as the broker answers."""
        if not self.lost.is_set():
            await asyncio.gather(*(consumer.finish(finish_within) for consumer in self._consumers))
        for consumer in self._consumers:
            consumer.detach()
        with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(ANSWER_WITHIN.total_seconds()):
                await self.broker.stop()


def _be_cancelled() -> None:
    """Raise the cancellation that was asked of us, should the library have swallowed it: the process could not end."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _counts(connection: AbstractConnection) -> dict[str, dict[str, int]]:
    """Messages that wait in each of our queues, and consumers that it has.

    Raises:
        ChannelNotFoundEntity: a queue is missing.
        AMQPError, OSError, TimeoutError: the broker is away.
    """
    found = {}
    async with asyncio.timeout(ANSWER_WITHIN.total_seconds()):
        channel = await connection.channel(publisher_confirms=False)
        try:
            for name in (MAIL_QUEUE, FAILED_QUEUE):
                result = (await channel.declare_queue(name, passive=True)).declaration_result
                found[name] = {"messages": result.message_count or 0, "consumers": result.consumer_count or 0}
        finally:
            with suppress(AMQPError, OSError, RuntimeError):
                await channel.close()
    return found


async def declare(broker: RabbitBroker, topology: Topology) -> None:
    """Declare exchanges, queues and bindings; repeatable.

    Raises:
        OtherQueue: something exists with other properties.
    """
    await _declare_exchanges(broker)
    try:
        for queue, exchange in topology.bindings:
            declared = await broker.declare_queue(queue)
            await declared.bind(await broker.declare_exchange(exchange), routing_key=queue.routing(), robust=False)
    except ChannelPreconditionFailed:
        raise _other_queue() from None


async def _declare_exchanges(broker: RabbitBroker) -> None:
    """
    Raises:
        OtherQueue: one exists with other properties.
    """
    for exchange in EXCHANGES:
        try:
            await broker.declare_exchange(exchange)
        except ChannelPreconditionFailed:
            raise _other_exchange(exchange) from None


def _other_queue() -> OtherQueue:
    return OtherQueue(
        f"{MAIL_QUEUE} or {FAILED_QUEUE} exists with other properties than it is to have "
        "(REGISTRAR_QUEUE_TTL is one of them); `registrar broker declare --anew` deletes the queues and declares "
        "them: what they held is asked for again within minutes."
    )


def _other_exchange(exchange: RabbitExchange) -> OtherQueue:
    return OtherQueue(
        f"The exchange {exchange.name} exists with other properties than it is to have (topic, durable); "
        "find out who uses it, delete it, and `registrar broker declare` makes it."
    )


# --- For ever -------------------------------------------------------------------------------------


class Broker:
    """RabbitMQ, as the parts of a process see it: there or not.

    Args:
        url: `amqp://` or `amqps://`, with its credentials.
        name: shown in the broker's lists.
        topology: declared and proved with each connection. None: nothing is declared but the own queue of the message
            to ourselves, and the others are looked at: no right to them is needed.
        finish_within: how long a stop waits for messages in hand.
        pauses: waits between tries, in tenacity's terms.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        topology: Topology | None,
        consumers: Sequence[Consumer] = (),
        finish_within: timedelta = timedelta(seconds=15),
        pauses: Any = PAUSES,
    ) -> None:
        self._url = url
        self._name = name
        self._topology = topology
        self._consumers = consumers
        self._finish_within = finish_within
        self._pauses = pauses
        self._session: _Session | None = None
        self._up = asyncio.Event()
        self._trouble = "connecting"

    @property
    def is_up(self) -> bool:
        """Connected, declared, proved by a message through the loop."""
        return self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why it is not up, in a word; None while it is.

        "connecting" for the first time, "away", "unauthorized" (user, password, virtual host or rights), or "topology":
        something exists with other properties, or, where we only look, a queue is missing.
        """
        if self._session is None:
            return self._trouble
        return None if self._session.is_complete else "topology"

    async def until_up(self) -> None:
        """Return when it is connected, and what is ours to declare is declared."""
        await self._up.wait()

    async def run(self) -> None:
        """Be connected until cancelled: a loss is followed by the next try, for ever."""
        retrying = AsyncRetrying(wait=self._pauses, before_sleep=self._note_failure)
        try:
            while True:
                await retrying(self._be_connected)
        finally:
            await asyncio.gather(*(consumer.end(self._finish_within) for consumer in self._consumers))

    async def publish(
        self,
        body: bytes,
        *,
        exchange: RabbitExchange,
        routing_key: str,
        message_id: str,
        correlation_id: str,
        message_type: str,
        timestamp: datetime,
        headers: Mapping[str, Any],
        expiration: timedelta | None = None,
        content_type: str = "application/json",
    ) -> None:
        """Publish, persistent and mandatory, and return when the broker has confirmed that it has it.

        Raises:
            BrokerAway: no confirm came; it may arrive all the same.
            Unroutable, Unavailable: no queue takes it, or a full one refuses it.
        """
        session = self._session
        if session is None:
            raise BrokerAway("RabbitMQ is away")
        publishing = partial(
            session.broker.publish,
            body,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=exchange is not EVENTS_EXCHANGE,  # an event that nobody subscribes to is no loss
            persist=True,
            message_id=message_id,
            correlation_id=correlation_id,
            message_type=message_type,
            timestamp=timestamp,
            headers=dict(headers),
            expiration=expiration,
            content_type=content_type,
        )
        try:
            async with asyncio.timeout(PUBLISH_WITHIN.total_seconds()):
                await publishing()
        except PublishError:
            self._lose(session)
            raise Unroutable("no queue takes the message; the topology is declared anew") from None
        except DeliveryError:
            raise Unavailable("the queue is full", retry_after=1.0) from None
        except (AMQPError, OSError, RuntimeError, TimeoutError):
            self._lose(session)
            raise BrokerAway("RabbitMQ does not confirm") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._lose(session)  # raised by the library, about its connection (docs/library-notes.md)
            raise BrokerAway("RabbitMQ is away") from None

    async def look(self) -> dict[str, Any]:
        """What `/health/rabbitmq` tells: the queues, and how long a message through the loop took.

        Raises:
            BrokerAway: there is no answer in time.
        """
        session = self._session
        if session is None:
            raise BrokerAway("RabbitMQ is away")
        try:
            async with asyncio.timeout(LOOK_WITHIN.total_seconds()):
                took = await session.loop()
                return {"queues": await session.counts(), "loop_seconds": took.total_seconds()}
        except (AMQPError, OSError, RuntimeError, TimeoutError) as error:
            if self._topology is not None or not isinstance(error, ChannelNotFoundEntity):
                self._lose(session)
            raise BrokerAway("RabbitMQ does not answer, or a queue is missing") from None

    async def _be_connected(self) -> None:
        """Make a connection and keep it until it is lost.

        Raises:
            Exception: no connection could be made, or it was lost at once.
        """
        _be_cancelled()
        session = _Session(self._url, name=self._name, topology=self._topology, consumers=self._consumers)
        try:
            await session.begin()
            self._session = session
            self._up.set()
            log.info("broker.connected")
            begun, error = asyncio.get_running_loop().time(), None
            try:
                await session.watch()
            except (AMQPError, OSError, RuntimeError, TimeoutError) as found:
                error = type(found).__name__
            log.warning("broker.lost", error=error, hint="reconnecting; mails wait in the log meanwhile")
            if asyncio.get_running_loop().time() < begun + STABLE_AFTER.total_seconds():
                raise BrokerAway("the connection was lost at once")
        finally:
            self._forget(session)
            await session.end(self._finish_within)

    def _lose(self, session: _Session) -> None:
        """Begin anew. Not up from here on: the library refuses at once over a lost connection, so who waits for `until_up`
        in a loop would come round without letting anything else run."""
        session.lost.set()
        self._forget(session)

    def _forget(self, session: _Session) -> None:
        if self._session is session:
            self._session, self._trouble = None, "away"
            self._up.clear()

    def _note_failure(self, state: RetryCallState) -> None:
        _be_cancelled()  # swallowed by a try that failed then: the next one would begin, and so on
        error = state.outcome.exception() if state.outcome is not None else None
        if error is not None:
            # The frames hold what could not connect, which the library closes when nobody holds it any more: not to be
            # left to the garbage collector, which may come when there is no loop to do it in.
            traceback.clear_frames(error.__traceback__)
        before, self._trouble = self._trouble, "away"
        if isinstance(error, OtherQueue):
            self._trouble = "topology"
            if before != self._trouble:  # not at each of the tries that go on until somebody has mended it
                log.error("broker.other_topology", hint=str(error))
        elif isinstance(error, REFUSALS):
            self._trouble = "unauthorized"
            if before != self._trouble:
                log.error("broker.unauthorized", hint=REFUSAL_HINT)
        elif state.attempt_number == TRIES:
            log.error(
                "broker.away",
                error=type(error).__name__,
                hint="mails wait in the log until it is back; look at RabbitMQ and at REGISTRAR_BROKER_URL",
            )


@asynccontextmanager
async def connected(url: str, topology: Topology, *, delete: Sequence[str] = ()) -> AsyncIterator[_Session]:
    """One connection for a command, without a second try.

    Args:
        delete: see `_Session.begin`.

    Raises:
        OtherQueue, AMQPError, OSError, TimeoutError: see `_Session.begin`.
    """
    session = _Session(url, name="command", topology=topology, consumers=())
    try:
        await session.begin(delete=delete)
        yield session
    finally:
        await session.end(timedelta(0))


async def counts_of(url: str) -> dict[str, dict[str, int]]:
    """A look at the queues on a connection of its own, which changes nothing; see `_counts`."""
    async with asyncio.timeout(CONNECT_WITHIN.total_seconds()):
        connection = await connect(url)
    async with connection:
        return await _counts(connection)


async def compare(url: str, topology: Topology) -> bool:
    """Is what exists what we would declare? On a connection of its own, which changes nothing: what is missing stays so.

    Answers whether we may declare what is there. Where we may not, its properties are not told to us.

    Raises:
        OtherQueue: something exists with other properties.
        AMQPError, OSError, TimeoutError: the broker is away, or refuses us (`REFUSALS`).
    """
    async with asyncio.timeout(CONNECT_WITHIN.total_seconds()):
        connection = await connect(url)
    refused: list[str] = []
    async with connection, asyncio.timeout(2 * CONNECT_WITHIN.total_seconds()):
        for exchange in EXCHANGES:
            async with _comparing(connection, exchange.name, _other_exchange(exchange), refused) as channel:
                for passive in (True, False):  # looked for first: what is missing must not be made
                    await channel.declare_exchange(
                        exchange.name, exchange.type.value, durable=exchange.durable, passive=passive
                    )
        for queue, _ in topology.bindings:
            async with _comparing(connection, queue.name, _other_queue(), refused) as channel:
                for passive in (True, False):
                    await channel.declare_queue(
                        queue.name, durable=queue.durable, arguments=queue.arguments, passive=passive
                    )
    return not refused


@asynccontextmanager
async def _comparing(
    connection: AbstractConnection, name: str, other: OtherQueue, refused: list[str]
) -> AsyncIterator[AbstractChannel]:
    """A channel to ask about one thing, as a no closes it.

    Args:
        other: raised if its properties are not those asked for.
        refused: gets its name if it is not ours to declare.
    """
    channel = await connection.channel(publisher_confirms=False)
    try:
        yield channel
    except ChannelNotFoundEntity:
        pass
    except ChannelAccessRefused:
        refused.append(name)
    except ChannelPreconditionFailed:
        raise other from None
