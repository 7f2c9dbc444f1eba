"""Why an operator does something: the header `X-Reason`, and the metadata of what the request leads to."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final
from urllib.parse import unquote

from fastapi import Header
from starlette.requests import Request

from application.ports import Context
from application.reasons import LONGEST_REASON, parse_reason
from domain.recorded import Actor
from entrypoints.api.guard import context_of
from entrypoints.api.request_body import malformed

_HEADER: Final = "X-Reason"


async def read_reason(
    request: Request,
    x_reason: Annotated[
        str | None,
        Header(
            alias=_HEADER,
            description=f"Why: at most {LONGEST_REASON} characters, percent-encoded UTF-8 where they are not ASCII. It"
            " stays in the audit log for ever, so nothing personal belongs in it.",
            examples=["ticket 4711"],
        ),
    ] = None,
) -> None:
    """For every route of operators: `operator_of` then has the reason.

    Raises:
        HttpProblem: it is no reason, or there are two.
    """
    given = x_reason or ""
    if len(request.headers.getlist(_HEADER)) > 1 or not given.isascii():
        raise malformed(_HEADER, "not one reason, percent-encoded UTF-8 where it is not ASCII")
    try:
        request.state.reason = parse_reason(unquote(given, errors="strict"))
    except UnicodeDecodeError:
        raise malformed(_HEADER, "not percent-encoded UTF-8") from None
    except ValueError as error:
        raise malformed(_HEADER, str(error)) from None


def operator_of(request: Request) -> Context:
    """The metadata of the events that this request of an operator leads to."""
    return replace(context_of(request, Actor.OPERATOR), reason=request.state.reason)


def reason_argument(request: Request) -> str | None:
    """The reason as an argument of a command: one word, which no text can turn into another option."""
    reason = operator_of(request).reason
    return None if reason is None else f"--reason={reason}"
