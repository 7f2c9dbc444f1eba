"""The message that stands for a requested mail: it says which, and nothing about whom it is for (docs/contract.md)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from application.ports import MailRequest
from infrastructure.telemetry.metrics import parse_traceparent

MESSAGE_TYPE: Final = "registrar.mail.requested"

MAX_BODY_BYTES: Final = 4096
"""Ours have about 170."""


class Malformed(Exception):
    """Not a message of ours. `reason` is one of a fixed set of words: nothing of the message is in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    registration_id: UUID
    serial: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
    kind: Annotated[str, Field(pattern="^(code|notice)$")]
    requested_at: datetime


def encode(request: MailRequest) -> bytes:
    """The body of a request's message."""
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
        Malformed: it is not a message of ours.
    """
    if len(body) > MAX_BODY_BYTES:
        raise Malformed("too-long")
    try:
        wanted = Body.model_validate_json(body)
    except (ValidationError, RecursionError):
        raise Malformed("not-a-mail-request") from None
    position = headers.get("registrar-position")
    try:
        correlation = UUID(correlation_id or "")
    except ValueError:
        correlation = uuid4()
    at = wanted.requested_at
    trace = headers.get("traceparent")
    return MailRequest(
        registration_id=wanted.registration_id,
        serial=wanted.serial,
        kind=wanted.kind,
        requested_at=at if at.tzinfo is not None else at.replace(tzinfo=UTC),
        position=position if type(position) is int and 0 < position < 2**63 else None,  # True is an int, too
        correlation_id=correlation,
        trace=parse_traceparent(trace.encode()) if isinstance(trace, str) and trace.isascii() else None,
    )
