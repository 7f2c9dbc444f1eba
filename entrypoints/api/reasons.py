"""Why an operator does something: the header `X-Reason`, and the metadata of what the request leads to."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Final
from urllib.parse import unquote

from fastapi import Header
from starlette.requests import Request

from application.ports import Context, Once
from application.reasons import LONGEST_REASON, parse_reason
from domain.recorded import Actor
from entrypoints.api.guard import body_of, context_of
from entrypoints.api.idempotency import idempotency_key_of
from entrypoints.api.request_body import malformed

REASON: Final = "X-Reason"


async def read_reason(
    request: Request,
    x_reason: Annotated[
        str | None,
        Header(
            alias=REASON,
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
    if len(request.headers.getlist(REASON)) > 1 or not given.isascii():
        raise malformed(REASON, "not one reason, percent-encoded UTF-8 where it is not ASCII")
    try:
        request.state.reason = parse_reason(unquote(given, errors="strict"))
    except UnicodeDecodeError:
        raise malformed(REASON, "not percent-encoded UTF-8") from None
    except ValueError as error:
        raise malformed(REASON, str(error)) from None


def operator_of(request: Request) -> Context:
    """The metadata of the events that this request of an operator leads to, and its Idempotency-Key.

    Raises:
        HttpProblem: the key is none.
    """
    key = idempotency_key_of(request) if request.method == "POST" else None
    once = None if key is None else Once(key, _asked(request))
    return replace(context_of(request, Actor.OPERATOR), reason=request.state.reason, once=once)


def _asked(request: Request) -> str:
    """What a request asks, however its body is written."""
    body = body_of(request).decode("utf-8", "backslashreplace")
    with suppress(ValueError, RecursionError):  # what is no JSON is refused, or not looked at
        body = json.dumps(json.loads(body), sort_keys=True)
    return "\n".join((request.scope["path"], request.url.query, body))


def reason_argument(request: Request) -> str | None:
    """The reason as an argument of a command: one word, which no text can turn into another option."""
    reason = operator_of(request).reason
    return None if reason is None else f"--reason={reason}"
