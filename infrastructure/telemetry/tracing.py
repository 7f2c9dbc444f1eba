"""Tracing where it is set up, and W3C trace contexts."""

# ruff: noqa: PLC0415 - as in `cli.main`: what exports spans is loaded only where a collector is set
from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from application.ports import MailRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from requests import Response

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


class _Redirected(Exception):
    """The exporter follows no redirect, and would take it for a success (docs/compatibility.md)."""


def _refuse_redirect(response: Response, *_: object, **__: object) -> None:
    if 300 <= response.status_code < 400:
        response.close()
        raise _Redirected(f"redirected ({response.status_code}): OTLP_ENDPOINT is not the collector's own URL")


def _exporter_to(url: str) -> SpanExporter:
    # Only where it is used: the protocol's classes are a twentieth of a process's start (our measurement).
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from requests import Session

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
    # Only where it is used: what makes spans is a twentieth of a start, too (our measurement).
    from infrastructure.telemetry.spans import provider_for

    return provider_for(exporter, service_version)


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
