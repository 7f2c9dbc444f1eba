"""Spans of what is published and consumed, by OpenTelemetry's conventions for RabbitMQ (1.44).

A message carries the context of the span that published it; who consumes it continues that span, and is linked to it.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Literal

from application.ports import MailRequest
from infrastructure.rabbitmq.mail_message import message_id_of
from infrastructure.rabbitmq.topology import (
    DEAD_EXCHANGE,
    FAILED_QUEUE,
    MAIL_EXCHANGE,
    MAIL_FAILED,
    MAIL_QUEUE,
    MAIL_REQUESTED,
)
from infrastructure.telemetry.tracing import Deliver, Kind, Tracing, Value, mail_attributes, traced

Operation = Literal["publish", "consume"]

_TYPES: Final[dict[Operation, str]] = {"publish": "send", "consume": "process"}

_MAILS: Final = f"{MAIL_EXCHANGE.name}:{MAIL_REQUESTED}"
_DEAD: Final = f"{DEAD_EXCHANGE.name}:{MAIL_FAILED}:{FAILED_QUEUE}"


def attributes_of(operation: Operation, destination: str, routing_key: str) -> dict[str, Value]:
    """What every span of a message has."""
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": operation,
        "messaging.operation.type": _TYPES[operation],
        "messaging.destination.name": destination,
        "messaging.rabbitmq.destination.routing_key": routing_key,
    }


def publishing(tracing: Tracing | None, publish: Deliver) -> Deliver:
    """Wrap the publishing of a mail's request in a span."""
    of = partial(_of_mail, "publish", _MAILS, MAIL_REQUESTED)
    return traced(tracing, publish, f"publish {_MAILS}", kind=Kind.PRODUCER, attributes=of)


def consuming(tracing: Tracing | None, deliver: Deliver) -> Deliver:
    """Wrap what a worker does with a mail's message in a span."""
    destination = f"{_MAILS}:{MAIL_QUEUE}"
    of = partial(_of_mail, "consume", destination, MAIL_REQUESTED)
    return traced(tracing, deliver, f"consume {destination}", kind=Kind.CONSUMER, attributes=of, is_linked=True)


def burying(tracing: Tracing | None, record: Deliver) -> Deliver:
    """Wrap what is done with a dead letter in a span."""
    of = partial(_of_mail, "consume", _DEAD, MAIL_FAILED)
    return traced(tracing, record, f"consume {_DEAD}", kind=Kind.CONSUMER, attributes=of, is_linked=True)


def _of_mail(operation: Operation, destination: str, routing_key: str, request: MailRequest) -> dict[str, Value]:
    attributes = mail_attributes(request) | attributes_of(operation, destination, routing_key)
    attributes["messaging.message.id"] = message_id_of(request)
    attributes["messaging.message.conversation_id"] = str(request.correlation_id)
    return attributes
