"""The worker behind the mail queue. A message only wakes it: the database decides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import structlog

from application.mail_delivery import SendInProgress
from application.ports import ForeignRequest, MailRequest, MailServersAway, Unavailable
from domain.errors import UnknownRegistration
from infrastructure.rabbitmq.consumer import BUG_PAUSE, Consumer
from infrastructure.rabbitmq.mail_message import Malformed, decode
from infrastructure.rabbitmq.subscription import Message
from infrastructure.rabbitmq.topology import CANARY, MAIL_QUEUE
from infrastructure.telemetry.trace_context import DOING

log = structlog.get_logger(__name__)

PREFETCH: Final = 128
"""Mails that a worker holds: four times as many as it has connections to a mail server (`mail.smtp.pool.CONNECTIONS`),
so that batches are claimed and recorded while others are on the wire. 64: 1,370 mails a second, and the worker rests a
quarter of the time; 96: 1,750; 128: 2,050; 192: 1,920 (medians of three, 2 cores, 2026-11-29)."""

HANDLER_TIMEOUT: Final = timedelta(seconds=60)
"""How long a message is held for a mail that cannot be tried now, far below the 30 minutes after which RabbitMQ takes
it for lost (docs/reliability.md, C16). Then it is acknowledged: nothing was tried, and the saga requests it again."""


class MailWorker:
    """Handles the messages of the mail queue: `deliver`, then acknowledge.

    While no mail can be sent, or the database is away, it takes no more messages and holds those in hand: no mail uses
    up a try, and no message a delivery.

    Args:
        deliver: returns when the outcome of the mail is recorded.
        until_mail_ready: returns when a mail server may be called again.
        until_database_ready: returns when the database is available again.
    """

    def __init__(
        self,
        *,
        deliver: Callable[[MailRequest], Awaitable[None]],
        until_mail_ready: Callable[[], Awaitable[None]],
        until_database_ready: Callable[[], Awaitable[None]],
        prefetch: int = PREFETCH,
        hold: timedelta = HANDLER_TIMEOUT,
        bug_pause: timedelta = BUG_PAUSE,
    ) -> None:
        self.consumer = Consumer(MAIL_QUEUE, self._handle, prefetch=prefetch)
        self._deliver = deliver
        self._until_mail_ready = until_mail_ready
        self._until_database_ready = until_database_ready
        self._hold = hold
        self._bug_pause = bug_pause
        self._pauses: dict[Callable[[], Awaitable[None]], asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Give up waiting for anything."""
        for task in self._pauses.values():
            task.cancel()
        await asyncio.gather(*self._pauses.values(), return_exceptions=True)

    async def _handle(self, message: Message) -> None:
        if message.type == CANARY:
            message.acknowledge()
            return
        try:
            request = decode(message.body, headers=message.headers, correlation_id=message.properties.correlation_id)
        except Malformed as malformed:
            log.warning("mail_message.rejected", reason=malformed.reason, bytes=len(message.body))
            message.reject()
            return
        DOING.set(request)
        try:
            is_done = await self._deliver_or_hold(request)
        except (UnknownRegistration, ForeignRequest) as error:
            log.warning("mail_message.rejected", reason=error.code, bytes=len(message.body))
            message.reject()
            return
        except Exception as error:
            log.exception(
                "mail_message.failed",
                registration_id=str(request.registration_id),
                error=type(error).__name__,
                hint="this is a bug; report it. After three deliveries it is a dead letter",
            )
            await asyncio.sleep(self._bug_pause.total_seconds())
            message.reject(requeue=True)
            return
        if is_done:
            message.acknowledge()

    async def _deliver_or_hold(self, request: MailRequest) -> bool:
        """Deliver, however often something is away, for as long as a message may be held.

        Returns False if the message is to go back into the queue because we are stopping or the connection is lost; the
        end of the connection does that.
        """
        until = asyncio.get_running_loop().time() + self._hold.total_seconds()
        while True:
            try:
                await self._deliver(request)
                return True
            except MailServersAway:
                wait = self._pause_until(self._until_mail_ready)
            except SendInProgress as busy:
                wait = asyncio.sleep(busy.retry_after)
            except Unavailable:
                wait = self._pause_until(self._until_database_ready)
            stopped = asyncio.ensure_future(self.consumer.stopping.wait())
            waits = [asyncio.ensure_future(wait), stopped]
            try:
                async with asyncio.timeout_at(until):
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            except TimeoutError:
                log.info("mail_message.put_off", registration_id=str(request.registration_id), serial=request.serial)
                return True
            finally:
                for one in waits:
                    one.cancel()
            if stopped.done():
                return False

    async def _pause_until(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Take no messages until `ready` returns; messages in hand that wait for the same thing share one wait."""
        task = self._pauses.get(ready)
        if task is None:
            task = self._pauses[ready] = asyncio.create_task(self._pause(ready))
        await asyncio.shield(task)

    async def _pause(self, ready: Callable[[], Awaitable[None]]) -> None:
        try:
            await self.consumer.pause()
            await ready()
        finally:
            del self._pauses[ready]
            if not self._pauses:
                await self.consumer.resume()
