"""Spans on their way to a collector: nobody ever waits for it, and what it does not take is counted and let go."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Final

import structlog
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as EncodedSpan

from infrastructure.telemetry.encoding import CONVENTIONS, encoded
from infrastructure.telemetry.tracing import Span

log = structlog.get_logger(__name__)

CAPACITY: Final = 8192
"""Spans that wait: some 10 MB, a second of a process that is as busy as it can be."""

BATCH: Final = 512
"""Spans in one call."""

ENCODED_AT_ONCE: Final = 32
"""Spans between two turns of everybody else: a quarter of a millisecond."""

INTERVAL: Final = timedelta(seconds=1)
"""How long a span waits at most for others to go with."""

RETRIED_FOR: Final = timedelta(seconds=30)
"""After that the spans of a call that a collector did not take are let go."""

STOP_WITHIN: Final = timedelta(seconds=1.5)
"""How long a stop waits for a collector."""

Post = Callable[[bytes], Awaitable[bytes]]
"""Sends an `ExportTraceServiceRequest`, returns the response, and raises `NotTaken`."""


class NotTaken(Exception):
    """A collector did not take a call.

    Attributes:
        failure: why, in words that are safe to log.
        may_pass: whether it may take it later.
    """

    def __init__(self, failure: str, *, may_pass: bool) -> None:
        super().__init__(failure)
        self.failure = failure
        self.may_pass = may_pass


class SpanExport:
    """Exports spans, in the event loop that they are made in."""

    def __init__(
        self,
        post: Post,
        *,
        resource: Resource,
        scope: InstrumentationScope,
        on_exported: Callable[[int], None] = lambda _: None,
        on_lost: Callable[[str, int], None] = lambda *_: None,
        interval: timedelta = INTERVAL,
    ) -> None:
        """
        Args:
            on_exported: called with how many spans a collector has taken.
            on_lost: called with why ("overflow", "refused", "away", "stop"), and how many spans nobody will get.
        """
        self._post = post
        self._resource = resource
        self._scope = scope
        self._on_exported = on_exported
        self._on_lost = on_lost
        self._interval = interval.total_seconds()
        self._waiting: deque[Span] = deque()
        self._sending: list[Span] = []
        self._many = asyncio.Event()
        self._fails = False

    def put(self, span: Span) -> None:
        """Take a span that has ended; without a wait, whatever the collector does."""
        if len(self._waiting) >= CAPACITY:
            self._on_lost("overflow", 1)
            return
        self._waiting.append(span)
        if len(self._waiting) == BATCH:
            self._many.set()

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._many.wait()
            self._many.clear()
            while self._waiting:
                try:
                    await self._export_or_let_go()
                except Exception:
                    log.exception("tracing.failed", hint="this is a bug; report it. Only spans are lost")
                    self._lose("refused", len(self._sending))

    async def close(self, within: timedelta = STOP_WITHIN) -> None:
        """Export what is left, as far as the collector takes it in time. Call it when `run` has ended."""
        try:
            async with asyncio.timeout(within.total_seconds()):
                while self._sending or self._waiting:
                    await self._export(self._next())
        except (TimeoutError, NotTaken):
            pass
        except Exception:
            log.exception("tracing.failed", hint="this is a bug; report it. Only spans are lost")
        if left := len(self._sending) + len(self._waiting):
            self._lose("stop", left)
            self._waiting.clear()

    def _next(self) -> list[Span]:
        """The spans of the next call: those of one that was cut off, or new ones."""
        if not self._sending:
            self._sending = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        return self._sending

    async def _export_or_let_go(self) -> None:
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + RETRIED_FOR.total_seconds(), self._interval
        while True:
            try:
                await self._export(self._next())
                return
            except NotTaken as error:
                if not error.may_pass or loop.time() + pause > until:
                    self._lose("away" if error.may_pass else "refused", len(self._sending))
                    return
            await asyncio.sleep(pause)
            pause *= 2

    async def _export(self, spans: list[Span]) -> None:
        """
        Raises:
            NotTaken: the collector did not take them; they are still in `_sending`.
        """
        try:
            rejected = _rejected_of(await self._post(await self._request_for(spans)))
        except NotTaken as error:
            if not self._fails:
                self._fails = True
                log.warning(
                    "tracing.spans_not_taken",
                    failure=error.failure,
                    hint="look at the collector, and at REGISTRAR_OTLP_ENDPOINT, which is its base URL",
                )
            raise
        self._on_exported(len(spans) - rejected)
        self._sending = []
        if rejected:
            self._lose("refused", rejected)
        if self._fails:
            self._fails = False
            log.info("tracing.spans_taken")

    async def _request_for(self, spans: list[Span]) -> bytes:
        messages: list[EncodedSpan] = []
        for start in range(0, len(spans), ENCODED_AT_ONCE):
            messages += encoded(spans[start : start + ENCODED_AT_ONCE])
            await asyncio.sleep(0)
        scope = ScopeSpans(scope=self._scope, spans=messages, schema_url=CONVENTIONS)
        of_process = ResourceSpans(resource=self._resource, scope_spans=[scope], schema_url=CONVENTIONS)
        return bytes(ExportTraceServiceRequest(resource_spans=[of_process]).SerializeToString())

    def _lose(self, why: str, spans: int) -> None:
        self._on_lost(why, spans)
        self._sending = []
        log.warning("tracing.spans_lost", reason=why, spans=spans, hint="traces have gaps; the log has none")


def _rejected_of(response: bytes) -> int:
    """How many spans of a call that was taken the collector rejected all the same."""
    try:
        return max(0, int(ExportTraceServiceResponse.FromString(response).partial_success.rejected_spans))
    except DecodeError:
        return 0
