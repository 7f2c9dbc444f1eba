"""Refusals at the door: responses written without the application, and the requests that get them without a parser.

In a flood these are most of what a process does. Of the 9.7 µs of CPU that one took, the kernel took 5 to 6, and so it
does for a server that does nothing but write these bytes (7.3 µs in all; `bench/refusing.py`): all that can be saved is
what happens between the two calls.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from itertools import cycle
from typing import Final

from application.ports import Overloaded
from entrypoints.api.admission import ROUTE
from entrypoints.api.guard import POLICY, SECURITY_HEADERS
from entrypoints.api.problems import HttpProblem, to_problem

RETRY_AFTER: Final = (1, 2, 3)
"""Seconds that those who are refused are told to wait, in turn: or all would be back at the same moment."""

LONGEST_HEAD: Final = 2048
"""Bytes of a head that is recognised without a parser; a browser's behind a proxy has some 800."""

Headers = Sequence[tuple[bytes, bytes]]


class Refusal:
    """A response that differs from one time to the next only in what the server adds (the date)."""

    def __init__(self, *errors: Exception) -> None:
        """
        Args:
            errors: that it tells, in turn.
        """
        self._responses = [_head_and_body(error) for error in errors]
        self._added: Headers | None = None
        self._kept = self._closing = cycle([b""])

    def response(self, added: Headers, *, keep: bool) -> bytes:
        """
        Args:
            added: the server's own headers; as long as it is the same list, they are written once.
            keep: may the connection be used again?
        """
        if added is not self._added:
            lines = b"".join(b"%b: %b\r\n" % header for header in added)
            self._kept = cycle([b"%b%b\r\n%b" % (head, lines, body) for head, body in self._responses])
            self._closing = cycle(
                [b"%b%bconnection: close\r\n\r\n%b" % (head, lines, body) for head, body in self._responses]
            )
            self._added = added
        return next(self._kept if keep else self._closing)


def _head_and_body(error: Exception) -> tuple[bytes, bytes]:
    """As the application and `Guard` would make them but for the request's id."""
    response = to_problem(error).response()
    line = f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}\r\n".encode()
    headers = [*response.raw_headers, *SECURITY_HEADERS, POLICY]
    return line + b"".join(b"%b: %b\r\n" % header for header in headers), bytes(response.body)


OVERLOADED: Final = Refusal(*(Overloaded("too much is under way", retry_after=seconds) for seconds in RETRY_AFTER))
NOT_HTTP: Final = Refusal(HttpProblem("bad-request"))

_PLAIN_HEAD: Final = re.compile(rb"POST %b HTTP/1\.1\r\n(?:[A-Za-z0-9-]+:[ -~]*\r\n)+" % re.escape(ROUTE.encode()))
_LENGTH: Final = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)
_PLAIN_LENGTH: Final = re.compile(rb" *[0-9]{1,9} *")  # what is longer is the parser's to read
_PARTICULAR: Final = re.compile(
    rb"\r\n(?:transfer-encoding|expect|upgrade|connection(?!: *keep-alive\r\n))", re.IGNORECASE
)


def is_a_registration(data: bytes) -> bool:
    """Is this exactly one whole request to register, with nothing about it that a parser would have to see?"""
    end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD)
    return end > 0 and len(data) == end + 4 + _length_of_body(data[: end + 2])


@lru_cache(maxsize=256)
def _length_of_body(head: bytes) -> int:
    """Bytes that follow a plain head, -1 if it is none. A client's heads are all alike, but for their lengths."""
    if not _PLAIN_HEAD.fullmatch(head) or _PARTICULAR.search(head):
        return -1
    lengths = _LENGTH.findall(head)
    return int(lengths[0]) if len(lengths) == 1 and _PLAIN_LENGTH.fullmatch(lengths[0]) else -1
