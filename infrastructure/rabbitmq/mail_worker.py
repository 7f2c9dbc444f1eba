"""Mail over RabbitMQ: the relay's publisher, the worker, and the consumer of what died on the way.

A message says which mail is wanted, and nothing about whom it is for. It is a wake-up: what the database says counts.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

import structlog
from aio_pika.exceptions import AMQPError
from faststream.rabbit import RabbitMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from application.commands import Command, KeepStrayMessage, RecordEmailDispatchFailed
from application.crash_points import crash_point
from application.mail_delivery import Claimed
from application.ports import Conflict, Context, ForeignRequest, MailFailure, MailRequest, MailServersAway, Unavailable
from domain.errors import UnknownRegistration
from infrastructure.mail.shared_circuits import SharedCircuits
from infrastructure.rabbitmq.connection import (
    CANARY,
    FAILED_QUEUE,
    MAIL_EXCHANGE,
    MAIL_QUEUE,
    MAIL_REQUESTED,
    Broker,
    Consumer,
)
from infrastructure.telemetry.metrics import parse_traceparent

log = structlog.get_logger(__name__)

MESSAGE_TYPE: Final = "registrar.mail.requested"

LONGEST: Final = 4096
"""Bytes; ours have about 170."""

PREFETCH: Final = 64
"""Mails in hand of a worker: twice as many as it has connections to a mail server (`infrastructure.mail.smtp.pool.CONNECTIONS`),
so that some are claimed and recorded while others are on the wire. 32: 640 mails a second, 64: 900, 128: 930 (2 cores,
2026-11-25)."""

DEAD_PREFETCH: Final = 16

HANDLER_TIMEOUT: Final = timedelta(seconds=60)
"""How long a message is held for a mail that cannot be tried now, far below the 30 minutes after which RabbitMQ takes
it for lost (docs/reliability.md, C16). Then it is acknowledged: nothing was tried, and the saga asks again."""

BUG_PAUSE: Final = timedelta(seconds=1)
"""Before a message that brought a handler down is given back: it must not become a hot loop."""

CONFLICT_PAUSE: Final = timedelta(milliseconds=100)

ACTOR: Final = "dead-letter-consumer"


# --- The message ----------------------------------------------------------------------------------


class Malformed(Exception):
    """Not a message of ours. `reason` is a word of ours: nothing of the message is in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    registration_id: UUID
    serial: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
    kind: Annotated[str, Field(pattern="^(code|notice)$")]
    requested_at: datetime


def encode(request: MailRequest) -> bytes:
    """The body of a request's message (docs/contract.md)."""
    return (
        f'{{"registration_id":"{request.registration_id}","serial":{request.serial},'
        f'"kind":"{request.kind}","requested_at":"{request.requested_at.isoformat()}"}}'
    ).encode()


def headers_of(request: MailRequest) -> dict[str, str | int]:
    headers: dict[str, str | int] = {}
    if request.position is not None:
        headers["registrar-position"] = request.position
    if request.trace is not None:
        headers["traceparent"] = request.trace
    return headers


def message_id_of(request: MailRequest) -> str:
    """The same for every copy of one request."""
    return f"{request.registration_id}.{request.serial}.{request.position or 0}"


def decode(body: bytes, *, headers: Mapping[str, Any], correlation_id: str | None) -> MailRequest:
    """The request that a message stands for. Headers that are missing or wrong cost the trace, not the mail.

    Raises:
        Malformed: it is none of ours.
    """
    if len(body) > LONGEST:
        raise Malformed("too-long")
    try:
        wanted = _Body.model_validate_json(body)
    except (ValidationError, RecursionError):
        raise Malformed("not-a-mail-request") from None
    position = headers.get("registrar-position")
    try:
        correlation = UUID(correlation_id or "")
    except ValueError:
        correlation = uuid4()
    trace = headers.get("traceparent")
    at = wanted.requested_at
    return MailRequest(
        registration_id=wanted.registration_id,
        serial=wanted.serial,
        kind=wanted.kind,
        requested_at=at if at.tzinfo is not None else at.replace(tzinfo=UTC),
        position=position if type(position) is int and 0 < position < 2**63 else None,  # True is an int, too
        correlation_id=correlation,
        trace=parse_traceparent(trace.encode()) if isinstance(trace, str) and trace.isascii() else None,
    )


# --- Publishing -----------------------------------------------------------------------------------


class MailPublisher:
    """The relay's hand-over: returns once the broker has confirmed that it has the request.

    Args:
        message_ttl: how long a request may wait there (`MESSAGE_TTL`).
        circuits: say when no mail server can be called; then mails wait in the log, where they neither expire nor become
            dead letters.
    """

    def __init__(self, broker: Broker, *, message_ttl: timedelta, circuits: SharedCircuits) -> None:
        self._broker = broker
        self._message_ttl = message_ttl
        self._circuits = circuits

    async def until_ready(self) -> None:
        """Return when it makes sense to try again."""
        await self._broker.until_up()
        if self._circuits.all_open:
            await self._circuits.looked()

    async def hand_over(self, request: MailRequest) -> None:
        """
        Raises:
            MailServersAway: the mail servers are away.
            Unavailable: the broker is away, or refuses it; whether it arrives may be unknown.
        """
        if not self._circuits.take_probe_permit():
            raise MailServersAway("no mail server may be called now")
        crash_point("relay.before_publish")
        await self._broker.publish(
            encode(request),
            exchange=MAIL_EXCHANGE,
            routing_key=MAIL_REQUESTED,
            message_id=message_id_of(request),
            correlation_id=str(request.correlation_id),
            message_type=MESSAGE_TYPE,
            timestamp=request.requested_at,
            headers=headers_of(request),
            expiration=self._message_ttl,
        )
        crash_point("relay.before_confirm")


# --- The worker -----------------------------------------------------------------------------------


class MailWorker:
    """Sees the messages of the mail queue through: `deliver`, then acknowledge.

    While no mail can be sent, or the database is away, it takes no more messages and holds those in hand: no mail loses
    a try, no message a delivery.

    Args:
        deliver: returns when what became of the mail is recorded.
        until_mail_ready: returns when a mail server may be called again.
        until_database_ready: returns when the database answers again.
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

    async def _handle(self, message: RabbitMessage) -> None:
        raw = message.raw_message
        if raw.type == CANARY:
            await _settle(message.ack)
            return
        try:
            request = decode(raw.body, headers=raw.headers, correlation_id=raw.correlation_id)
        except Malformed as malformed:
            log.warning("mail_message.rejected", reason=malformed.reason, bytes=len(raw.body))
            await _settle(message.reject)
            return
        try:
            seen_through = await self._see_through(request)
        except (UnknownRegistration, ForeignRequest) as error:
            log.warning("mail_message.rejected", reason=error.code, bytes=len(raw.body))
            await _settle(message.reject)
            return
        except Exception as error:
            log.exception(
                "mail_message.failed",
                registration_id=str(request.registration_id),
                error=type(error).__name__,
                hint="this is a bug; report it. After three deliveries it is a dead letter",
            )
            await asyncio.sleep(self._bug_pause.total_seconds())
            await _settle(message.reject, requeue=True)  # not `nack`, which RabbitMQ 4 does not count
            return
        if seen_through:
            await _settle(message.ack)

    async def _see_through(self, request: MailRequest) -> bool:
        """Deliver, however often the world is away, as long as a message may be held.

        Answers False if it is to go back into the queue, as we are stopping, or the connection is lost: its end does that.
        """
        until = asyncio.get_running_loop().time() + self._hold.total_seconds()
        while True:
            try:
                await self._deliver(request)
                return True
            except MailServersAway:
                wait = self._pause_until(self._until_mail_ready)
            except Claimed as claimed:
                wait = asyncio.sleep(claimed.retry_after)
            except Unavailable:
                wait = self._pause_until(self._until_database_ready)
            except Conflict:
                wait = asyncio.sleep(CONFLICT_PAUSE.total_seconds())
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
        """Take no messages until it is ready, whoever else waits for it, and wait with the others."""
        task = self._pauses.get(ready)
        if task is None:
            task = self._pauses[ready] = asyncio.create_task(self._hold_back(ready))
        await asyncio.shield(task)

    async def _hold_back(self, ready: Callable[[], Awaitable[None]]) -> None:
        try:
            await self.consumer.pause()
            await ready()
        finally:
            del self._pauses[ready]
            if not self._pauses:
                await self.consumer.resume()


# --- Dead letters ---------------------------------------------------------------------------------

FAILURES: Final[Mapping[str, MailFailure]] = {
    "expired": "expired",
    "delivery_limit": "crashed",
    "rejected": "rejected",
    "maxlen": "overflow",
}
"""What a mail's failure is called, by RabbitMQ's reason."""

_CONTENT_TYPE: Final = re.compile(r"[a-z]{1,20}/[a-z0-9.+-]{1,40}")
_OUR_FIELDS: Final = frozenset(_Body.model_fields)


class DeadLetterConsumer:
    """Records what died on its way to a worker, for the saga to take over; keeps what is none of ours for inspection.

    Args:
        do: runs a command (`application.handlers.Handlers.handle`).
        until_database_ready: returns when the database answers again.
    """

    def __init__(
        self,
        *,
        do: Callable[[Command, Context], Awaitable[object]],
        until_database_ready: Callable[[], Awaitable[None]],
        bug_pause: timedelta = BUG_PAUSE,
    ) -> None:
        self.consumer = Consumer(FAILED_QUEUE, self._handle, prefetch=DEAD_PREFETCH)
        self._do = do
        self._until_database_ready = until_database_ready
        self._bug_pause = bug_pause

    async def _handle(self, message: RabbitMessage) -> None:
        raw = message.raw_message
        if raw.type == CANARY:
            await _settle(message.ack)
            return
        try:
            await self._record(raw.body, raw.headers, raw.correlation_id, raw.content_type)
        except Exception as error:
            log.exception(
                "dead_letter.not_recorded",
                error=type(error).__name__,
                hint="this is a bug; report it. After twenty deliveries RabbitMQ drops the message",
            )
            await asyncio.sleep(self._bug_pause.total_seconds())
            await _settle(message.reject, requeue=True)
            return
        crash_point("dead_letters.before_ack")
        await _settle(message.ack)

    async def _record(
        self, body: bytes, headers: Mapping[str, Any], correlation_id: str | None, content_type: str | None
    ) -> None:
        died_of = _cause_of_death(headers)
        try:
            request = decode(body, headers=headers, correlation_id=correlation_id)
        except Malformed as malformed:
            await self._insist(stray(body, malformed.reason, died_of, content_type), Context(ACTOR, uuid4()))
            return
        context = Context(ACTOR, request.correlation_id, request.position, request.trace)
        try:
            await self._insist(
                RecordEmailDispatchFailed(
                    registration_id=request.registration_id,
                    serial=request.serial,
                    kind=request.kind,
                    permanent=False,
                    failure=FAILURES.get(died_of, "rejected"),
                    provider="broker",
                    attempts=0,
                    reply_code=None,
                    reply_status=None,
                    outcome_unknown=False,
                    request_position=request.position,
                ),
                context,
            )
        except (UnknownRegistration, ForeignRequest) as error:
            # Of another installation, of a database put back from a backup, or made by somebody who may publish.
            await self._insist(stray(body, error.code, died_of, content_type), context)

    async def _insist(self, command: Command, context: Context) -> None:
        """Run a command, however long the database is away: meanwhile the message is in hand, and so safe."""
        while True:
            try:
                await self._do(command, context)
                return
            except Conflict:
                await asyncio.sleep(CONFLICT_PAUSE.total_seconds())
            except Unavailable:
                await self._until_database_ready()


def _cause_of_death(headers: Mapping[str, Any]) -> str:
    """RabbitMQ's word for it; "unknown" for a message that somebody put there."""
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    reason = latest.get("reason") if isinstance(latest, Mapping) else None
    return reason if isinstance(reason, str) and reason in FAILURES else "unknown"


def stray(body: bytes, reason: str, died_of: str, content_type: str | None) -> KeepStrayMessage:
    """What can be told of a message without repeating anything that somebody else wrote."""
    fields: list[str] = []
    others = 0
    with suppress(ValueError, RecursionError):
        if len(body) <= LONGEST and isinstance(found := json.loads(body), dict):
            fields = sorted(found.keys() & _OUR_FIELDS)
            others = len(found) - len(fields)
    return KeepStrayMessage(
        digest=sha256(body).hexdigest(),
        reason=reason,
        died_of=died_of,
        size=len(body),
        content_type=content_type if content_type and _CONTENT_TYPE.fullmatch(content_type) else None,
        fields=tuple(fields),
        other_fields=others,
    )


async def _settle(answer: Callable[..., Awaitable[None]], **options: bool) -> None:
    """Acknowledge or reject. If the connection is gone, the message comes again, and is recognised."""
    with suppress(AMQPError, OSError, RuntimeError):
        await answer(**options)
