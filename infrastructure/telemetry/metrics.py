"""Telemetry: the metrics of the contract, and spans without personal data."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace import Status as SpanStatus
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from application.ports import MailRequest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Metrics.render` returns (Prometheus text format)."""

CIRCUIT_STATES: Final = {"closed": 0, "half-opened": 1, "opened": 2}
"""What `registrar_circuit_state` shows for purgatory's names."""

_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_APPEND_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_APPEND_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
# A mail that goes straight out, one with retries, a code's ten minutes, an outage of hours.
_INBOX_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody needs


class Metrics:
    """Every metric of the contract, in a registry of its own. Labels come from small, fixed sets; never ids."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._registrations = Counter(
            "registrar_registrations_total", "Requests to register, by outcome", ["outcome"], registry=registry
        )
        self._verifications = Counter(
            "registrar_verifications_total", "Codes offered, by outcome", ["outcome"], registry=registry
        )
        self._mail = Counter(
            "registrar_mail_total", "Tries to hand a mail over", ["outcome", "provider"], registry=registry
        )
        self._mail_concurrency = Gauge(
            "registrar_mail_concurrency",
            "Mails that a server may be handed at the same time; fewer while it throttles",
            ["provider"],
            registry=registry,
        )
        self._time_to_inbox = Histogram(
            "registrar_time_to_inbox_seconds",
            "From the registration until a mail server accepted its first mail",
            buckets=_INBOX_SECONDS,
            registry=registry,
        )
        self._append = Histogram(
            "registrar_append_seconds", "Appends, their wait included", buckets=_APPEND_SECONDS, registry=registry
        )
        self._append_batch = Histogram(
            "registrar_append_batch_size", "Appends in one transaction", buckets=_APPEND_BATCH, registry=registry
        )
        self._lag_events = Gauge(
            "registrar_follower_lag_events", "Events not applied yet", ["follower"], registry=registry
        )
        self._lag_seconds = Gauge(
            "registrar_follower_lag_seconds", "Age of the first event not applied yet", ["follower"], registry=registry
        )
        self._parked = Gauge("registrar_parked_streams", "Parked streams", ["follower"], registry=registry)
        self._transitions = Counter(
            "registrar_circuit_transitions", "Changes of a circuit", ["name", "state"], registry=registry
        )
        self._circuit = Gauge("registrar_circuit_state", "0 closed, 1 half-open, 2 open", ["name"], registry=registry)
        self._dead_letters = Gauge(
            "registrar_dead_letters", "Mails that failed for good and wait for an operator", registry=registry
        )
        self._broker_up = Gauge("registrar_broker_up", "1 while it accepts messages", ["broker"], registry=registry)
        self._stray_messages = Gauge(
            "registrar_stray_messages", "Dead letters that are not Registrar's, not discarded yet", registry=registry
        )
        self._oldest_unsent = Gauge(
            "registrar_oldest_unsent_seconds", "How long the longest waiting mail has waited", registry=registry
        )
        self._stuck = Gauge(
            "registrar_stuck_registrations", "Registrations whose next step is overdue", registry=registry
        )
        self._requests = Histogram(
            "registrar_requests_seconds",
            "HTTP requests",
            ["route", "status"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._request_series: dict[tuple[str, int], Histogram] = {}  # looked up at every request: `labels` is slow
        self._shed = Counter(
            "registrar_shed_total", "Requests refused because of overload", ["reason"], registry=registry
        )
        self._alerts = Counter(
            "registrar_alerts_total", "Calls of the alert webhook, by outcome", ["alert", "outcome"], registry=registry
        )
        # Called at every refusal, which should cost next to nothing.
        self._registrations_by, self._shed_for = cache(self._registrations.labels), cache(self._shed.labels)
        self._hash_queue = Gauge("registrar_hash_queue_depth", "Passwords that wait to be hashed", registry=registry)

    def append_batch(self, count: int) -> None:
        self._append_batch.observe(count)

    def append(self, seconds: float) -> None:
        self._append.observe(seconds)

    def circuit(self, name: str, old: str, new: str) -> None:
        """See `infrastructure.mail.circuits.OnTransition`; of one that has not changed only the state is shown."""
        self._circuit.labels(name).set(CIRCUIT_STATES[new])
        if new != old:
            self._transitions.labels(name, new).inc()

    def mail(self, provider: str, outcome: str) -> None:
        self._mail.labels(outcome, provider).inc()

    def mail_concurrency(self, provider: str, mails: int) -> None:
        """See `infrastructure.mail.smtp.server.OnConcurrency`."""
        self._mail_concurrency.labels(provider).set(mails)

    def time_to_inbox(self, since: timedelta) -> None:
        """`since`: from a registration's first event until a mail server accepted its first mail."""
        self._time_to_inbox.observe(since.total_seconds())

    def registration(self, outcome: str) -> None:
        """`outcome`: "accepted", or an error code of the contract."""
        self._registrations_by(outcome).inc()

    def verification(self, outcome: str) -> None:
        """`outcome`: "accepted", or an error code of the contract."""
        self._verifications.labels(outcome).inc()

    def request(self, route: str, status: int, seconds: float) -> None:
        """`route`: its template, never the path that was asked for."""
        series = self._request_series.get((route, status))
        if series is None:
            series = self._request_series[route, status] = self._requests.labels(route, str(status))
        series.observe(seconds)

    def shed(self, reason: str) -> None:
        self._shed_for(reason).inc()

    def alert(self, alert: str, outcome: str) -> None:
        """See `infrastructure.alerts.alerts.OnAttempt`."""
        self._alerts.labels(alert, outcome).inc()

    # --- Collected at every scrape --------------------------------------------------------------

    def hash_queue(self, depth: int) -> None:
        self._hash_queue.set(depth)

    def follower(self, name: str, *, lag_events: int, lag_seconds: float, parked_streams: int) -> None:
        self._lag_events.labels(name).set(lag_events)
        self._lag_seconds.labels(name).set(lag_seconds)
        self._parked.labels(name).set(parked_streams)

    def broker(self, *, up: bool) -> None:
        """Is RabbitMQ up? Not called, and not shown, where none is configured."""
        self._broker_up.labels("rabbitmq").set(up)

    def backlog(
        self, *, dead_letters: float, stray_messages: float, oldest_unsent_seconds: float, stuck: float
    ) -> None:
        self._dead_letters.set(dead_letters)
        self._stray_messages.set(stray_messages)
        self._oldest_unsent.set(oldest_unsent_seconds)
        self._stuck.set(stuck)

    def forget_backlog(self) -> None:
        """The database is away: no value is better than a stale one."""
        for gauge in (self._lag_events, self._lag_seconds, self._parked):
            gauge.clear()
        self.backlog(dead_letters=math.nan, stray_messages=math.nan, oldest_unsent_seconds=math.nan, stuck=math.nan)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


# --- Tracing --------------------------------------------------------------------------------------

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
        exporter = OTLPSpanExporter(endpoint=f"{otlp_endpoint.rstrip('/')}/v1/traces", timeout=5)
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
