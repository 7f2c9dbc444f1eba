"""RabbitMQ as the parts of a process see it: a connection that is re-established for ever.

The broker only wakes workers: whatever it loses, the saga requests again. So nothing here waits for it for ever, and
the outcome of everything that was not confirmed counts as unknown.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, DeliveryError, PublishError
from faststream.rabbit import RabbitExchange
from tenacity import AsyncRetrying, RetryCallState, wait_chain, wait_fixed, wait_random

from application.ports import BrokerAway, Unavailable
from infrastructure.rabbitmq.consumer import Consumer
from infrastructure.rabbitmq.session import CHECK_INTERVAL, REFUSAL_HINT, REFUSALS, Session, reraise_cancellation
from infrastructure.rabbitmq.topology import EVENTS_EXCHANGE, Topology, TopologyMismatch

log = structlog.get_logger(__name__)

HEALTH_TIMEOUT: Final = timedelta(seconds=2)
"""For a health check, round trip and counts together."""

PUBLISH_TIMEOUT: Final = timedelta(seconds=5)
"""A confirm takes milliseconds; without one in time the outcome is unknown, and the same id is published again."""

STABLE_AFTER: Final = timedelta(seconds=10)
"""A connection that is lost sooner does not count as a success: the next attempt waits as after a failed one."""

ATTEMPTS_BEFORE_ALARM: Final = 5
RECONNECT_WAIT: Final = wait_chain(
    *(wait_fixed(min(30, 2**n)) for n in range(ATTEMPTS_BEFORE_ALARM - 1)), wait_fixed(5)
) + wait_random(0, 1)
"""Five attempts, 1 s · 2ⁿ apart, at most 30 s, with jitter; from then on every 5 s, as nothing waits for it."""


class Unroutable(Unavailable):
    """No queue takes the message: exchange, binding or queue is missing. It is declared again on reconnecting."""


class Broker:
    """RabbitMQ, as the parts of a process see it: there or not.

    Args:
        url: `amqp://` or `amqps://`, with its credentials.
        name: shown in the broker's lists.
        topology: declared and tested on each connection. None: only our own queue, for messages to ourselves, is
            declared, and the others are only inspected, which takes no permissions on them.
        finish_within: how long a stop waits for messages in hand.
        pauses: waits between attempts, in tenacity's terms.
        check_interval: between two checks of the queues.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        topology: Topology | None,
        consumers: Sequence[Consumer] = (),
        finish_within: timedelta = timedelta(seconds=15),
        pauses: Any = RECONNECT_WAIT,
        check_interval: timedelta = CHECK_INTERVAL,
    ) -> None:
        self._url = url
        self._name = name
        self._topology = topology
        self._consumers = consumers
        self._finish_within = finish_within
        self._pauses = pauses
        self._check_interval = check_interval
        self._session: Session | None = None
        self._up = asyncio.Event()
        self._trouble = "connecting"

    @property
    def is_up(self) -> bool:
        """Connected, declared, and tested by a message to ourselves."""
        return self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why it is not up, in a word; None while it is.

        "connecting" for the first time, "away", "unauthorized" (user, password, virtual host or rights), or "topology":
        something exists with other properties, or, where we only inspect, a queue is missing.
        """
        if self._session is None:
            return self._trouble
        return None if self._session.is_complete else "topology"

    @property
    def queues(self) -> dict[str, dict[str, int]]:
        """See `queue_counts`, as of the latest check, some seconds ago; nothing while it is away."""
        return {} if self._session is None else self._session.queues

    async def until_up(self) -> None:
        """Return when it is connected, and the topology (if we declare it) is declared."""
        await self._up.wait()

    async def run(self) -> None:
        """Stay connected until cancelled; reconnects for ever."""
        retrying = AsyncRetrying(wait=self._pauses, before_sleep=self._note_failure)
        try:
            while True:
                await retrying(self._connect_once)
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
        """Publish, persistent and mandatory, and return when the broker has confirmed the message.

        Raises:
            BrokerAway: it was not confirmed; it may arrive all the same.
            Unroutable, Unavailable: no queue is bound for it, or a full one refuses it.
        """
        session = self._session
        if session is None:
            raise BrokerAway("RabbitMQ is away")
        publishing = session.broker.publish(
            body,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=exchange is not EVENTS_EXCHANGE,  # an event without subscribers is no loss
            persist=True,
            message_id=message_id,
            correlation_id=correlation_id,
            message_type=message_type,
            timestamp=timestamp,
            headers=dict(headers),
            expiration=expiration,
            content_type=content_type,
        )
        await self._confirmed(publishing, session)

    async def _confirmed(self, publishing: Awaitable[object], session: Session) -> None:
        """Wait for the confirm; translates its absence into the port's errors, see `publish`."""
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT.total_seconds()):
                await publishing
        except PublishError:
            self._lose(session)
            raise Unroutable("no queue takes the message; the topology is declared again") from None
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
        """What `/health/rabbitmq` shows: the queues, and how long a message to ourselves took.

        Raises:
            BrokerAway: it does not respond in time.
        """
        session = self._session
        if session is None:
            raise BrokerAway("RabbitMQ is away")
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT.total_seconds()):
                took = await session.round_trip()
                return {"queues": await session.counts(), "loop_seconds": took.total_seconds()}
        except (AMQPError, OSError, RuntimeError, TimeoutError) as error:
            if self._topology is not None or not isinstance(error, ChannelNotFoundEntity):
                self._lose(session)
            raise BrokerAway("RabbitMQ does not answer, or a queue is missing") from None

    async def _connect_once(self) -> None:
        """Open a connection and keep it until it is lost.

        Raises:
            Exception: no connection could be made, or it was lost at once.
        """
        reraise_cancellation()
        session = Session(
            self._url,
            name=self._name,
            topology=self._topology,
            consumers=self._consumers,
            check_interval=self._check_interval,
        )
        try:
            await session.begin()
            self._session = session
            self._up.set()
            log.info("broker.connected")
            started, error = asyncio.get_running_loop().time(), None
            try:
                await session.watch()
            except (AMQPError, OSError, RuntimeError, TimeoutError) as found:
                error = type(found).__name__
            log.warning("broker.lost", error=error, hint="reconnecting; mails wait in the log meanwhile")
            if asyncio.get_running_loop().time() < started + STABLE_AFTER.total_seconds():
                raise BrokerAway("the connection was lost at once")
        finally:
            self._forget(session)
            await session.end(self._finish_within)

    def _lose(self, session: Session) -> None:
        """Reconnect. It is not up from here on: the library fails at once on a lost connection, so a caller that loops
        over `until_up` would spin and block the event loop."""
        session.lost.set()
        self._forget(session)

    def _forget(self, session: Session) -> None:
        if self._session is session:
            self._session, self._trouble = None, "away"
            self._up.clear()

    def _note_failure(self, state: RetryCallState) -> None:
        reraise_cancellation()  # if a failed attempt has swallowed it, the next one would start, and so on
        error = state.outcome.exception() if state.outcome is not None else None
        if error is not None:
            # The frames hold the failed connection, which the library closes when nothing refers to it any more. That
            # is not left to the garbage collector, which may run when there is no event loop to do it in.
            traceback.clear_frames(error.__traceback__)
        before, self._trouble = self._trouble, "away"
        if isinstance(error, TopologyMismatch):
            self._trouble = "topology"
            if before != self._trouble:  # not at every attempt until somebody has fixed it
                log.error("broker.other_topology", hint=str(error))
        elif isinstance(error, REFUSALS):
            self._trouble = "unauthorized"
            if before != self._trouble:
                log.error("broker.unauthorized", hint=REFUSAL_HINT)
        elif state.attempt_number == ATTEMPTS_BEFORE_ALARM:
            log.error(
                "broker.away",
                error=type(error).__name__,
                hint="mails wait in the log until it is back; look at RabbitMQ and at REGISTRAR_BROKER_URL",
            )
