"""A request's body, read before the application is called: how large it may be, and of which kind."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import Receive

from entrypoints.api.problems import HttpProblem

BODY_LIMIT: Final = 16 * 1024
"""Bytes of a body (contract: 16 KiB)."""

REPORTS: Final = "/v1/bounces/"
"""Where providers report in batches, one of them (SNS) as text: no registrant's route."""

REPORTS_LIMIT: Final = 512 * 1024
"""Bytes of such a body."""

DRAIN_LIMIT: Final = 1024 * 1024
"""Bytes that are read of a body that is too large: many clients read no response before they have sent it all."""

FORMS: Final = "/sign-up"
"""Begins the paths to which browsers send forms, and nothing else; everywhere else a body is JSON. So no page of a
stranger can send us JSON that it calls a form."""

# A parameter may be left out after its ";" (RFC 9110, 5.6.6), and the encoding's other name is understood everywhere.
_JSON = re.compile(rb"application/json[ \t]*(;[ \t]*(charset[ \t]*=[ \t]*(utf-?8|\"utf-?8\")[ \t]*)?)*", re.IGNORECASE)
_FORM_TYPE = "application/x-www-form-urlencoded"
_FORM = re.compile(
    rb"application/x-www-form-urlencoded[ \t]*(;[ \t]*(charset[ \t]*=[ \t]*utf-?8[ \t]*)?)*", re.IGNORECASE
)


class Gone(Exception):
    """The client has left: nobody is there to respond to."""


async def read_body(receive: Receive, headers: dict[bytes, bytes], path: str, *, takes_reports: bool) -> bytes:
    """
    Args:
        takes_reports: whether there is anybody at `REPORTS`. If not, a report is refused as soon as it is seen to be
            larger than any other body; a smaller one is read, so that whoever has set up its sender gets the refusal.

    Raises:
        HttpProblem: it is too large, not JSON (a form, where these are taken), or for nobody.
        Gone: the client left before its end.
    """
    reports = path.startswith(REPORTS)
    refusal = _refusal(headers, path, takes_reports=takes_reports)
    limit = REPORTS_LIMIT if reports else BODY_LIMIT
    drained = DRAIN_LIMIT if takes_reports or not reports else BODY_LIMIT
    body, size = bytearray(), 0
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:12]) > drained:
        raise _and_close(refusal or HttpProblem("payload-too-large"))
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > drained:
            raise _and_close(refusal or HttpProblem("payload-too-large"))
        if size <= limit:
            body += chunk
    if size > limit:
        refusal = _and_close(refusal or HttpProblem("payload-too-large"))
    if refusal is not None and size:  # of no body it does not matter what it is called
        raise refusal
    return bytes(body)


def _refusal(headers: dict[bytes, bytes], path: str, *, takes_reports: bool) -> HttpProblem | None:
    """Why a body is refused whatever is in it."""
    reports, forms = path.startswith(REPORTS), path.startswith(FORMS)
    if reports and not takes_reports:
        return HttpProblem("not-found")
    if (
        (not reports and not (_FORM if forms else _JSON).fullmatch(headers.get(b"content-type", b"")))
        or b"content-encoding" in headers
        or headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked"  # what else there is was not undone
    ):
        return HttpProblem(
            "unsupported-media-type", headers={"Accept-Post": _FORM_TYPE if forms else "application/json"}
        )
    return None


def _and_close(refusal: HttpProblem) -> HttpProblem:
    """The rest of the body may still be on its way: it is not read, so nothing can follow it."""
    refusal.headers["Connection"] = "close"
    return refusal
