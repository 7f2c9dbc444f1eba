"""The guard around the application: limits, deadlines, ids and headers of every HTTP state, and its errors.

Plain ASGI: what it does is done once for each state, and costs microseconds.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from application.ports import Context, Overloaded
from domain.recorded import Actor
from domain.uuids import uuid_of_int
from entrypoints.api.admission import PLACE, AdmissionSlot
from entrypoints.api.body_reading import Gone, read_body
from entrypoints.api.cors import Cors
from entrypoints.api.deadline import Deadline
from entrypoints.api.hosts import Hosts
from entrypoints.api.problems import HttpProblem, ProblemResponse, Shown, as_problem, to_problem
from infrastructure.postgres.circumstances import why_unusable
from infrastructure.postgres.patience import limited
from infrastructure.telemetry.metrics import Metrics
from infrastructure.telemetry.trace_context import DOING, parse_traceparent, trace_id_of
from infrastructure.telemetry.tracing import Kind

if TYPE_CHECKING:
    from infrastructure.telemetry.tracing import Span, Tracing

log = structlog.get_logger(__name__)

HEADERS_LIMIT: Final = 8 * 1024
"""Bytes of all headers (docs/security.md, S23)."""

BODY_DEADLINE: Final = timedelta(seconds=5)
"""For the whole body, so that nobody holds a connection by sending a byte now and then."""

UNMATCHED: Final = "unmatched"
"""The route in metrics of an unknown path."""

UNTRACED: Final = ("/health", "/metrics")
"""Routes that are asked every few seconds, and lead to nothing."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})
_WANTED = frozenset(
    {
        b"host",
        b"origin",
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"transfer-encoding",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
        b"idempotency-key",
    }
)
_UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
SECURITY_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_KEY = "registrar.state"
_DEADLINE = "registrar.deadline"

Endpoint = Callable[[Request], Awaitable[Response]]

DIRECTLY: Final = "registrar.endpoint"
"""Under this name the ASGI scope holds the endpoint of a request for which the application's own way is too long."""


@dataclass(slots=True)
class RequestState:
    """What is known of a request beside what it asks.

    Attributes:
        correlation_id: the client's own if it sent a UUID as `X-Request-Id`.
        idempotency_key: as it was sent, None if it was not; empty also if there are several.
        trace: context of our span, or the client's where tracing is off; see `infrastructure.telemetry.trace_context`.
        body: the whole of it, at most `BODY_LIMIT` bytes.
        status: of the response, 0 until it has started.
    """

    correlation_id: UUID
    trace: str | None
    idempotency_key: bytes | None = None
    body: bytes = b""
    status: int = 0


def body_of(request: Request) -> bytes:
    """The request's body. It is read before the application is called: `Request.body` would wait for ever."""
    state: RequestState = request.scope[_KEY]
    return state.body


def sent_key_of(request: Request) -> bytes | None:
    """The request's `Idempotency-Key`, see `RequestState`."""
    state: RequestState = request.scope[_KEY]
    return state.idempotency_key


def with_body(request: Request, body: bytes) -> Request:
    """The same request with another body."""
    state: RequestState = request.scope[_KEY]
    state.body = body
    return request


def context_of(request: Request, actor: Actor) -> Context:
    """The metadata of the events that this request leads to."""
    state: RequestState = request.scope[_KEY]
    return Context(actor, state.correlation_id, None, state.trace)


def extend_deadline(request: Request, by: timedelta) -> None:
    """Let a response that goes on, piece by piece, have so much time from now on."""
    deadline: Deadline = request.scope[_DEADLINE]
    deadline.move(asyncio.get_running_loop().time() + by.total_seconds())


def explain(error: Exception, scope: Scope, metrics: Metrics) -> ProblemResponse:
    """What the client is shown of an error; what it says of us is counted, and logged where somebody has to act.

    Whoever turns an error into a response calls this, once.
    """
    explained = to_problem(error)
    if explained.code == "overloaded":
        metrics.shed("queue-full")
    circumstance = why_unusable(error)
    if explained.code == "internal-error" or circumstance is not None:
        state: RequestState = scope[_KEY]
        log.error(
            "request.failed",
            route=getattr(scope.get("route"), "path", UNMATCHED),
            correlation_id=str(state.correlation_id),
            error=type(error).__name__,
            exc_info=error,
            hint=circumstance or "this is a bug; report it",
        )
    return explained


class Guard:
    """ASGI middleware; see the module's docstring."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        request_timeout: timedelta,
        hosts: Hosts | None = None,
        body_deadline: timedelta | None = None,
        tracing: Tracing | None = None,
        access_log: bool = False,
        cors: Cors | None = None,
        takes_reports: bool = False,
        shown: Shown = as_problem,
    ) -> None:
        """
        Args:
            request_timeout: after which the response is 504, whatever the application is doing.
            hosts: whom requests may be for; None: whomever.
            body_deadline: None means `BODY_DEADLINE`.
            tracing: None means that it is off.
            access_log: whether each request gets a line in the log.
            cors: which other origins may read the responses; None: none may.
            takes_reports: whether mail providers may report here; see `entrypoints.api.body_reading`.
            shown: what an error's response is.
        """
        self._app = app
        self._metrics = metrics
        self._request_timeout = request_timeout.total_seconds()
        self._hosts = hosts or Hosts()
        self._body_deadline = (body_deadline or BODY_DEADLINE).total_seconds()
        self._tracing = tracing
        self._access_log = access_log
        self._cors = cors
        self._takes_reports = takes_reports
        self._shown = shown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers, size = _read_headers(scope)
        state = scope[_KEY] = RequestState(
            _correlation_id(headers.get(b"x-request-id")),
            parse_traceparent(headers.get(b"traceparent"), headers.get(b"tracestate")),
            headers.get(b"idempotency-key"),
        )
        span = self._begin_span(scope, state) if self._tracing is not None else None
        before = DOING.set(state)
        shared = self._cors.fields(scope, headers.get(b"origin")) if self._cors is not None else []

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                state.status = message["status"]
                message["headers"] = _guarded([*message["headers"], *shared], state)
            await send(message)

        try:
            await self._answer(scope, receive, send_guarded, state, headers, size)
        finally:
            DOING.reset(before)
            place: AdmissionSlot | None = scope.get(PLACE)
            if place is not None:
                place.leave()
            route = getattr(scope.get("route"), "path", UNMATCHED)
            took = time.perf_counter() - started
            self._metrics.request(route, state.status or 499, took)
            if self._access_log:
                _log_access(scope["method"], route, state, took)
            if span is not None:
                _end_span(span, route, state)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        state: RequestState,
        headers: dict[bytes, bytes],
        size: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        until = now + self._request_timeout
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        reading = has_body and self._body_deadline < self._request_timeout
        deadline = scope[_DEADLINE] = Deadline(loop, now + self._body_deadline if reading else until)
        try:
            with deadline:
                _check_size(size)
                self._hosts.check(headers.get(b"host"), scope)
                if self._cors is not None and await self._cors.answer(scope, headers.get(b"origin"), send):
                    return
                if has_body:
                    state.body = await read_body(receive, headers, scope["path"], takes_reports=self._takes_reports)
                _check_place(scope.get(PLACE))
                if reading:
                    reading = False
                    deadline.move(until)
                endpoint: Endpoint | None = scope.get(DIRECTLY)
                with limited():
                    app = self._app if endpoint is None else await endpoint(Request(scope, receive))
                    await app(scope, receive, send)
        except Gone:
            return
        except Exception as error:  # noqa: BLE001 - the edge: every error becomes a response, a bug is logged
            if isinstance(error, TimeoutError) and deadline.expired:
                error = (
                    HttpProblem("request-timeout", headers={"Connection": "close"})
                    if reading
                    else HttpProblem("timeout", headers={"Retry-After": "1"})
                )
            explained = explain(error, scope, self._metrics)
            if not state.status:  # once a response has started, all that is left is to break it off
                await self._shown(scope, explained)(scope, receive, send)

    # --- Tracing ------------------------------------------------------------------------------

    def _begin_span(self, scope: Scope, state: RequestState) -> Span:
        assert self._tracing is not None  # noqa: S101 - the caller looked
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "registrar.correlation_id": str(state.correlation_id),
        }
        span = self._tracing.span(method, parent=state.trace, kind=Kind.SERVER, attributes=attributes)
        state.trace = span.trace
        return span


def _check_size(of_headers: int) -> None:
    if of_headers > HEADERS_LIMIT:
        raise HttpProblem("headers-too-large", headers={"Connection": "close"})


def _check_place(place: AdmissionSlot | None) -> None:
    if place is not None and place.denied:
        raise Overloaded("too much is under way")


def _log_access(method: str, route: str, state: RequestState, seconds: float) -> None:
    """What was asked and answered, and nothing of who asked: neither an address nor a path with an id, nor a header."""
    log.info(
        "request",
        method=method if method in _METHODS else "other",
        route=route,
        status=state.status or 499,
        seconds=round(seconds, 6),
        correlation_id=str(state.correlation_id),
        trace_id=None if state.trace is None else trace_id_of(state.trace),
    )


def _end_span(span: Span, route: str, state: RequestState) -> None:
    if route.startswith(UNTRACED):
        return
    if route != UNMATCHED:
        span.name = f"{span.attributes['http.request.method']} {route}"
        span.attributes["http.route"] = route
    if state.status:  # otherwise the client has left
        span.attributes["http.response.status_code"] = state.status
    if state.status >= 500:
        span.fail(str(state.status))
    span.end()


def _read_headers(scope: Scope) -> tuple[dict[bytes, bytes], int]:
    """The headers that the guard looks at, and the size of all. One that comes twice is as good as malformed."""
    found: dict[bytes, bytes] = {}
    size = 0
    for name, value in scope["headers"]:
        size += len(name) + len(value) + 4
        if name in _WANTED:
            found[name] = b"" if name in found else value
    return found, size


def _correlation_id(header: bytes | None) -> UUID:
    if header is not None and _UUID.fullmatch(header):
        return UUID(header.decode())
    # Not a secret, and drawn for every request: the system's generator would be a call into the kernel.
    return uuid_of_int(_random() & ~(0xF << 76 | 0b11 << 62) | 4 << 76 | 0b10 << 62)


_written = msgspec.json.Encoder().encode
"""A UUID in quotes, in a quarter of the time of `str`."""

_random = partial(random.getrandbits, 128)


def _guarded(headers: list[tuple[bytes, bytes]], state: RequestState) -> list[tuple[bytes, bytes]]:
    guarded = [*headers, *SECURITY_HEADERS, (b"registrar-request-id", _written(state.correlation_id)[1:-1])]
    for name, _ in headers:
        if name == POLICY[0]:
            break
    else:
        guarded.append(POLICY)
    return guarded
