"""Spans, exported without personal data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status as SpanStatus

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


def provider_for(exporter: SpanExporter, service_version: str) -> TracerProvider:
    """Makes spans, which `exporter` is given in batches; the caller calls `shutdown()`."""
    resource = Resource.create({"service.name": "registrar", "service.version": service_version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_AttributeFilter(exporter)))
    return provider


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
