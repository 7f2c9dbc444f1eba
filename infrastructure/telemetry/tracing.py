"""Spans, exported without personal data, and W3C trace contexts."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace import Status as SpanStatus
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from application.ports import MailRequest

if TYPE_CHECKING:  # see `_exporter_to`
    from requests import Response

ALLOWED_ATTRIBUTES: Final = frozenset(
    {
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "error.type",
        "registrar.correlation_id",
        "registrar.registration_id",
        "registrar.command",
        "registrar.position",
    }
)
"""What a span may carry (docs/security.md, S9). Anything else is dropped before it leaves the process."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def parse_traceparent(header: bytes | None) -> str | None:
    """A W3C `traceparent` as it came, None if it is not one."""
    if header is None or len(header) != 55:
        return None
    text = header.decode("latin-1")
    return text if _TRACEPARENT.fullmatch(text) else None


def traceparent(span: Span) -> str:
    """The span as W3C `traceparent`, to continue its trace elsewhere."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def continued(parent: str | None) -> Context | None:
    """The OpenTelemetry context in which a new span continues the trace of this `traceparent`."""
    return TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None


class _AttributeFilter(SpanExporter):
    """Exports spans with allowed attributes only, and without events, whose texts are unchecked."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([_allowed(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _allowed(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes={key: value for key, value in (span.attributes or {}).items() if key in ALLOWED_ATTRIBUTES},
        links=span.links,
        kind=span.kind,
        status=SpanStatus(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


class _Redirected(Exception):
    """The exporter follows no redirect, and would take it for a success (docs/compatibility.md)."""


def _refuse_redirect(response: Response, *_: object, **__: object) -> None:
    if 300 <= response.status_code < 400:
        response.close()
        raise _Redirected(f"redirected ({response.status_code}): OTLP_ENDPOINT is not the collector's own URL")


def _exporter_to(url: str) -> SpanExporter:
    # Only where it is used: the protocol's classes are a twentieth of a process's start (our measurement).
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from requests import Session  # noqa: PLC0415

    session = Session()
    session.hooks["response"].append(_refuse_redirect)
    return OTLPSpanExporter(endpoint=url, timeout=5, session=session)


def setup_tracing(
    otlp_endpoint: str | None, service_version: str, *, exporter: SpanExporter | None = None
) -> TracerProvider | None:
    """Set up the export of spans; does nothing and returns None without an endpoint. The caller calls `shutdown()`.

    Args:
        otlp_endpoint: base URL of an OTLP/HTTP collector.
        exporter: used instead of one to `otlp_endpoint`.
    """
    if exporter is None:
        if not otlp_endpoint:
            return None
        exporter = _exporter_to(f"{otlp_endpoint.rstrip('/')}/v1/traces")
    resource = Resource.create({"service.name": "registrar", "service.version": service_version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_AttributeFilter(exporter)))
    return provider


def traced(
    tracing: TracerProvider | None, deliver: Callable[[MailRequest], Awaitable[None]]
) -> Callable[[MailRequest], Awaitable[None]]:
    """Wrap the delivery of mails in a span each, in the trace of the request that led to it."""
    if tracing is None:
        return deliver
    tracer = tracing.get_tracer("registrar")

    async def deliver_traced(request: MailRequest) -> None:
        attributes: dict[str, str | int] = {
            "registrar.correlation_id": str(request.correlation_id),
            "registrar.registration_id": str(request.registration_id),
            "registrar.position": request.position or 0,
        }
        with tracer.start_as_current_span(
            "mail.deliver", context=continued(request.trace), kind=SpanKind.CONSUMER, attributes=attributes
        ) as span:
            await deliver(replace(request, trace=traceparent(span)))

    return deliver_traced
