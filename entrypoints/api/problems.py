"""Problems: what goes wrong, as a client reads it (RFC 9457), and the one table from error code to HTTP status.

A problem never says more than its code, which fields it is about, and what to do; never a value, never a traceback.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
from fastapi.exceptions import RequestValidationError
from psycopg_pool import TooManyRequests as PoolOverloaded
from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from application.ports import Conflict, Overloaded, Unavailable
from application.unfit import fault
from domain.errors import Refused, TooManyRequests, WrongCode
from entrypoints.api.limits import OverLimit
from infrastructure.postgres.circumstances import REFUSALS
from infrastructure.postgres.connection import AWAY

PREFIX: Final = "urn:registrar:problem:"
"""What stands before the code in a problem's `type`."""

REPLAYED: Final[Mapping[str, str]] = {"Idempotent-Replayed": "true"}
"""Says that an answer is that to an earlier request with the same Idempotency-Key."""

MEDIA_TYPE: Final = "application/problem+json"

STATUS_OF: Final[Mapping[str, int]] = {
    "invalid-request": 422,
    "unknown-registration": 404,
    "wrong-code": 422,
    "code-expired": 410,
    "code-locked": 423,
    "not-pending": 409,
    "not-an-account": 409,
    "replay-under-way": 409,
    "too-many-requests": 429,
    "idempotency-key-reused": 422,
    "idempotency-key-in-use": 409,
    "address-taken": 409,
    "bad-request": 400,
    "misdirected-request": 421,
    "unauthorized": 401,
    "not-found": 404,
    "method-not-allowed": 405,
    "request-timeout": 408,
    "payload-too-large": 413,
    "unsupported-media-type": 415,
    "headers-too-large": 431,
    "internal-error": 500,
    "unavailable": 503,
    "overloaded": 503,
    "timeout": 504,
}
"""Every error code and its HTTP status."""

TITLES: Final[Mapping[str, str]] = {
    "invalid-request": "The request is malformed.",
    "unknown-registration": "There is no registration with this id.",
    "wrong-code": "This is not the code of the latest mail.",
    "code-expired": "This code's time is over; ask for a new one.",
    "code-locked": "Too many wrong codes; ask for a new one.",
    "replay-under-way": "Another rebuild, verification or the like is under way; wait for its end, or abort it.",
    "not-pending": "This registration does not wait for a code, or not any more.",
    "not-an-account": "This registration is not an account: its address is not verified, or it has ended.",
    "too-many-requests": "Too much was asked for; wait as long as Retry-After says.",
    "idempotency-key-reused": "This Idempotency-Key came before with another payload.",
    "idempotency-key-in-use": "A request with this Idempotency-Key is under way.",
    "address-taken": "An account with this address exists.",
    "bad-request": "This is not HTTP as RFC 9112 has it, or does not say for which host it is.",
    "misdirected-request": "This service is not called by that name (ALLOWED_HOSTS).",
    "unauthorized": "This needs the operator's bearer token.",
    "not-found": "There is nothing here.",
    "method-not-allowed": "This method is not for this resource.",
    "request-timeout": "The request's body did not arrive in time.",
    "payload-too-large": "The request's body is too large: 16 KiB at most, 512 KiB of a mail provider's report.",
    "unsupported-media-type": "The request's body must be application/json in UTF-8, or a form where a page "
    "sends one, without a Content-Encoding.",
    "headers-too-large": "The request's headers are larger than 8 KiB.",
    "internal-error": "Something went wrong on our side.",
    "unavailable": "The service cannot do this now; try again.",
    "overloaded": "Too much is under way; try again.",
    "timeout": "This took too long; whether it was done is unknown, and a repeat is safe.",
}

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")
_PLACES = frozenset({"body", "path", "query", "header"})


class HttpProblem(Exception):
    """The response is a problem that is about HTTP, not about a rule of the domain."""

    def __init__(
        self, code: str, *, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with a field; the value itself is not repeated.

    Attributes:
        code: stays; docs/contract.md has the list, to which more may come.
    """

    field: Annotated[str, Field(examples=["email"])]
    code: Annotated[str, Field(examples=["invalid-address"])]
    message: Annotated[str, Field(examples=["not a valid mail address"])]


@dataclass(frozen=True, slots=True)
class Problem:
    """An error (RFC 9457).

    Attributes:
        type: ends in the error code, after `urn:registrar:problem:`.
        errors: only `invalid-request`: field by field.
        attempts_left: only `wrong-code`: tries that the current code has left.
    """

    type: Annotated[str, Field(examples=[f"{PREFIX}invalid-request"])]
    title: Annotated[str, Field(examples=[TITLES["invalid-request"]])]
    status: Annotated[int, Field(examples=[422])]
    errors: tuple[FieldError, ...] | None = None
    attempts_left: Annotated[int | None, Field(examples=[4])] = None


@dataclass(frozen=True, slots=True)
class ProblemResponse:
    """An error's code, and what else its response contains."""

    code: str
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[FieldError, ...] = ()
    attempts_left: int | None = None

    @property
    def status(self) -> int:
        return STATUS_OF[self.code]

    def response(self) -> Response:
        body: dict[str, Any] = {"type": PREFIX + self.code, "title": TITLES[self.code], "status": self.status}
        if self.errors:
            body["errors"] = self.errors
        if self.attempts_left is not None:
            body["attempts_left"] = self.attempts_left
        return Response(msgspec.json.encode(body), self.status, dict(self.headers), MEDIA_TYPE)


Shown = Callable[[Scope, ProblemResponse], Response]
"""What becomes of a problem: a response for whoever asked."""


def as_problem(_scope: Scope, problem: ProblemResponse) -> Response:
    """To a program: as it is."""
    return problem.response()


def to_problem(error: Exception) -> ProblemResponse:
    """What a client is shown of any exception; `internal-error` where it is nothing that we expect."""
    match error:
        case HttpProblem():
            return ProblemResponse(error.code, error.headers, error.errors)
        case WrongCode():
            headers = REPLAYED if error.replayed else {}
            return ProblemResponse(error.code, headers, attempts_left=error.attempts_left)
        case TooManyRequests():
            return ProblemResponse(error.code, _retry_after(error.retry_after.total_seconds()))
        case OverLimit():
            return ProblemResponse("too-many-requests", error.headers)
        case Refused():
            return ProblemResponse(error.code)
        case ValidationError():
            return ProblemResponse(
                "invalid-request", errors=_fields(error.errors(include_url=False, include_input=False))
            )
        case RequestValidationError():
            return ProblemResponse("invalid-request", errors=_fields(error.errors()))
        case Overloaded():
            return ProblemResponse("overloaded", _retry_after(error.retry_after))
        case PoolOverloaded():
            return ProblemResponse("overloaded", _retry_after(1))
        case Unavailable():
            return ProblemResponse("unavailable", _retry_after(error.retry_after))
        case Conflict():
            return ProblemResponse("unavailable", _retry_after(1))
        case _ if isinstance(error, (*AWAY, *REFUSALS)):
            return ProblemResponse("unavailable", _retry_after(1))
        case HTTPException(status_code=404):
            return ProblemResponse("not-found")
        case HTTPException(status_code=405):
            return ProblemResponse("method-not-allowed")
        case _:
            return ProblemResponse("internal-error")


def _retry_after(seconds: float) -> dict[str, str]:
    """Whole seconds, rounded up: a client that comes back then is not too early."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _fields(errors: Sequence[Any]) -> tuple[FieldError, ...]:
    return tuple(FieldError(_field(error["loc"]), *fault(error)) for error in errors[:20])


def _field(place: Sequence[int | str]) -> str:
    """The field's name; one that a client made up is shown only if it looks like a name."""
    names = [part for part in place if isinstance(part, str)]
    name = names[1] if len(names) > 1 and names[0] in _PLACES else (names or ["(body)"])[0]
    return name if name == "(body)" or _NAME.fullmatch(name) else "(unknown)"
