"""The consumer of dead letters: messages that died on their way to a worker."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

import structlog

from application.commands import Command, KeepStrayMessage, RecordEmailDispatchFailed
from application.crash_points import crash_point
from application.ports import Context, ForeignRequest, MailRequest, Unavailable, WantedMail
from domain.errors import UnknownRegistration
from domain.mail_outcome import DispatchFailure, MailFailure
from domain.recorded import Actor
from infrastructure.rabbitmq.consumer import BUG_PAUSE, Consumer
from infrastructure.rabbitmq.mail_message import MAX_BODY_BYTES, Malformed, decode
from infrastructure.rabbitmq.subscription import Message
from infrastructure.rabbitmq.topology import CANARY, FAILED_QUEUE
from infrastructure.telemetry.trace_context import DOING
from infrastructure.telemetry.tracing import Deliver

log = structlog.get_logger(__name__)

PREFETCH: Final = 16

FAILURES: Final[Mapping[str, MailFailure]] = {
    "expired": "expired",
    "delivery_limit": "crashed",
    "rejected": "rejected",
    "maxlen": "overflow",
}
"""A mail's failure, by RabbitMQ's reason for dead-lettering its message."""

_CONTENT_TYPE: Final = re.compile(r"[a-z]{1,20}/[a-z0-9.+-]{1,40}")
_OUR_FIELDS: Final = frozenset(field.name for field in fields(WantedMail))


class DeadLetterConsumer:
    """Records what died on its way to a worker, for the saga to take over; keeps foreign messages for inspection.

    Args:
        do: runs a command (`application.handlers.Handlers.handle`).
        until_database_ready: returns when the database is available again.
        traced: wraps what is done with a mail's dead letter.
    """

    def __init__(
        self,
        *,
        do: Callable[[Command, Context], Awaitable[object]],
        until_database_ready: Callable[[], Awaitable[None]],
        traced: Callable[[Deliver], Deliver] = lambda record: record,
        bug_pause: timedelta = BUG_PAUSE,
    ) -> None:
        self.consumer = Consumer(FAILED_QUEUE, self._handle, prefetch=PREFETCH)
        self._do = do
        self._until_database_ready = until_database_ready
        self._traced = traced
        self._bug_pause = bug_pause

    async def _handle(self, message: Message) -> None:
        if message.type == CANARY:
            message.acknowledge()
            return
        try:
            properties = message.properties
            await self._record(message.body, message.headers, properties.correlation_id, properties.content_type)
        except Exception as error:
            log.exception(
                "dead_letter.not_recorded",
                error=type(error).__name__,
                hint="this is a bug; report it. After twenty deliveries RabbitMQ drops the message",
            )
            await asyncio.sleep(self._bug_pause.total_seconds())
            message.reject(requeue=True)
            return
        crash_point("dead_letters.before_ack")
        message.acknowledge()

    async def _record(
        self, body: bytes, headers: Mapping[str, Any], correlation_id: str | None, content_type: str | None
    ) -> None:
        died_of = _cause_of_death(headers)
        try:
            request = decode(body, headers=headers, correlation_id=correlation_id)
        except Malformed as malformed:
            await self._do_when_available(
                stray(body, malformed.reason, died_of, content_type), Context(Actor.DEAD_LETTER_CONSUMER, uuid4())
            )
            return
        DOING.set(request)
        await self._traced(partial(self._record_failure, body, died_of, content_type))(request)

    async def _record_failure(self, body: bytes, died_of: str, content_type: str | None, request: MailRequest) -> None:
        context = Context(Actor.DEAD_LETTER_CONSUMER, request.correlation_id, request.position, request.trace)
        try:
            await self._do_when_available(
                RecordEmailDispatchFailed(
                    registration_id=request.registration_id,
                    serial=request.serial,
                    kind=request.kind,
                    failure=DispatchFailure(
                        FAILURES.get(died_of, "rejected"), permanent=False, provider="broker", attempts=0
                    ),
                    request_position=request.position,
                ),
                context,
            )
        except (UnknownRegistration, ForeignRequest) as error:
            # From another installation, for a database since restored from a backup, or by a user who may publish here.
            await self._do_when_available(stray(body, error.code, died_of, content_type), context)

    async def _do_when_available(self, command: Command, context: Context) -> None:
        """Run a command, however long the database is away: meanwhile the message is not acknowledged, and so safe."""
        while True:
            try:
                await self._do(command, context)
                return
            except Unavailable:
                await self._until_database_ready()


def _cause_of_death(headers: Mapping[str, Any]) -> str:
    """RabbitMQ's reason; "unknown" for a message that was published to this queue directly."""
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    reason = latest.get("reason") if isinstance(latest, Mapping) else None
    return reason if isinstance(reason, str) and reason in FAILURES else "unknown"


def stray(body: bytes, reason: str, died_of: str, content_type: str | None) -> KeepStrayMessage:
    """Describe a message without repeating anything that its author wrote."""
    known: list[str] = []
    others = 0
    with suppress(ValueError, RecursionError):
        if len(body) <= MAX_BODY_BYTES and isinstance(found := json.loads(body), dict):
            known = sorted(found.keys() & _OUR_FIELDS)
            others = len(found) - len(known)
    return KeepStrayMessage(
        digest=sha256(body).hexdigest(),
        reason=reason,
        died_of=died_of,
        size=len(body),
        content_type=content_type if content_type and _CONTENT_TYPE.fullmatch(content_type) else None,
        fields=tuple(known),
        other_fields=others,
    )
