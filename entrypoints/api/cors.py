"""Which pages of other origins may call the registrants' routes from a browser, by an allow-list (Fetch, "CORS").

What operators and the mailbox have is for no other origin, and nothing is ever sent with a browser's credentials: there
are none that would mean anything here. What is refused at the door for overload has no such fields, as it is not looked
at (`entrypoints.api.refusals`): a page sees a request that failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from starlette.types import Scope, Send

from entrypoints.api.admission import ROUTE

_METHODS: Final = b"GET, POST"
_ASKED: Final = b"Content-Type, Idempotency-Key, X-Request-Id, traceparent, tracestate"
_SHOWN: Final = (
    b"Location, Registrar-Position, Registrar-Request-Id, Retry-After, RateLimit, RateLimit-Policy, Idempotent-Replayed"
)
_REMEMBERED: Final = b"7200"
"""Seconds for which a browser need not ask again; Chromium keeps it no longer."""

MOST_TOLD: Final = 16
"""Origins in `TOLD_FOR` of which the log says that they are refused: anybody can make one up."""

TOLD_FOR: Final = 3600.0
"""Seconds after which each origin is told again: who made up the first ones must not hide for good that somebody's own
page is refused."""

log = structlog.get_logger(__name__)

Headers = list[tuple[bytes, bytes]]

VARY: Final = (b"vary", b"Origin")


class RefusedOrigins:
    """Says of each origin, and of a bounded number, once an hour that its pages may not call us.

    Without its name, which may be a person's, and which the browser's console has.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: in seconds.
        """
        self._clock = clock
        self._told: set[bytes] = set()
        self._since = clock()

    def note(self, scope: Scope, origin: bytes | None) -> None:
        """A request that asks what an origin may do, and is not allowed anything."""
        if origin is None or not _asks(scope):
            return
        now = self._clock()
        if now >= self._since + TOLD_FOR:
            self._told.clear()
            self._since = now
        if origin in self._told or len(self._told) >= MOST_TOLD:
            return
        self._told.add(origin)
        log.warning(
            "cors.origin_refused",
            hint="a page of another origin may not register people; if it is yours, add its origin to"
            " REGISTRAR_CORS_ORIGINS as the browser has it: http://localhost:3000 and http://127.0.0.1:3000 are two",
        )


def _asks(scope: Scope) -> bool:
    """Is it a browser that asks beforehand, about the registrants' routes?"""
    if scope["method"] != "OPTIONS" or not scope["path"].startswith(ROUTE):
        return False
    return any(name == b"access-control-request-method" for name, _ in scope["headers"])


class Cors:
    """The answers to a listener's requests of other origins."""

    def __init__(self, origins: Sequence[str]) -> None:
        """
        Args:
            origins: as browsers send them.
        """
        self._origins = frozenset(origin.encode() for origin in origins)

    def fields(self, scope: Scope, origin: bytes | None) -> Headers:
        """What every response to this request has: that it depends on the origin, and whether that one may read it."""
        if not scope["path"].startswith(ROUTE):
            return []
        if origin not in self._origins:
            return [VARY]
        assert origin is not None  # noqa: S101 - it is in the set
        return [VARY, (b"access-control-allow-origin", origin), (b"access-control-expose-headers", _SHOWN)]

    async def answer(self, scope: Scope, origin: bytes | None, send: Send) -> bool:
        """Answer a browser that asks beforehand; False: it does not, or may not."""
        fields = self._preflight(scope, origin)
        if fields is None:
            return False
        await send({"type": "http.response.start", "status": 204, "headers": fields})
        await send({"type": "http.response.body", "body": b""})
        return True

    def _preflight(self, scope: Scope, origin: bytes | None) -> Headers | None:
        if origin not in self._origins or not _asks(scope):
            return None
        return [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _ASKED),
            (b"access-control-max-age", _REMEMBERED),
        ]
