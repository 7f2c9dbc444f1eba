"""The metrics of the contract."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from infrastructure.telemetry.durations import Distribution, Durations
from infrastructure.telemetry.logs import lines_lost
from infrastructure.telemetry.measured import Measured

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Metrics.render` returns (Prometheus text format)."""

CIRCUIT_STATES: Final = {"closed": 0, "half-opened": 1, "opened": 2}
"""What `registrar_circuit_state` shows for purgatory's names."""

MOST_SERIES: Final = 500
"""Of one process, whatever is asked of it (`tests/integration/test_metrics.py`)."""

PEOPLES: Final = {
    "/v1/registrations": 202,
    "/v1/registrations/{registration_id}": 200,
    "/v1/registrations/{registration_id}/verification": 200,
    "/v1/registrations/{registration_id}/otp": 202,
}
"""The registrants' routes, each with the status of a success: those that objectives are about."""

FAILURES: Final = (500, 503, 504)
"""The statuses that are our fault."""

_OTHER_REQUESTS = 37
"""Pairs of another route or status that are shown by themselves."""

# The ends at 0.5, 5 and 60 s are those of the objectives (docs/monitoring.md).
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 60)
_APPEND_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_APPEND_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
# A mail that goes straight out, one with retries, a code's ten minutes, an outage of hours.
_INBOX_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)

# Hardly one passes within 0.1 s: that is how often it looks for its mail, and for its account.
_SYNTHETIC_SECONDS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody needs


class Metrics:
    """Every metric of the contract, in a registry of its own. Labels come from small, fixed sets; never ids.

    Attributes:
        measured: those that are not counted as things happen.
    """

    def __init__(self) -> None:
        """Over 40 lines, because it is the list of all that is counted, each with its name, help and labels."""
        self._registry = registry = CollectorRegistry()
        self.measured = Measured(registry)
        ProcessCollector(registry=registry)
        self._registrations = Counter(
            "registrar_registrations_total", "Requests to register, by outcome", ["outcome"], registry=registry
        )
        self._doubtful_addresses = Counter(
            "registrar_doubtful_addresses_total",
            "Requests to register an address at a domain that is disposable or looks misspelt",
            ["doubt", "policy"],
            registry=registry,
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
        self._append = Distribution(
            "registrar_append_seconds", "Appends, their wait included", _APPEND_SECONDS, registry
        )
        self._append_batch = Histogram(
            "registrar_append_batch_size", "Appends in one transaction", buckets=_APPEND_BATCH, registry=registry
        )
        self._transitions = Counter(
            "registrar_circuit_transitions", "Changes of a circuit", ["name", "state"], registry=registry
        )
        self._circuit = Gauge("registrar_circuit_state", "0 closed, 1 half-open, 2 open", ["name"], registry=registry)
        self._named: frozenset[str] = frozenset()
        self._requests = Durations(
            "registrar_requests_seconds",
            "HTTP requests",
            ["route", "status"],
            _REQUEST_SECONDS,
            fine=PEOPLES,
            failures=FAILURES,
            most=_OTHER_REQUESTS,
        )
        registry.register(self._requests)
        self._under_way = Gauge(
            "registrar_requests_under_way",
            "Requests that are being worked on, by the class that they are bounded in",
            ["class"],
            registry=registry,
        )
        self._count_under_way: list[Callable[[], Mapping[str, int]]] = []
        self._shed = Counter(
            "registrar_shed_total", "Requests refused because of overload", ["reason"], registry=registry
        )
        self._alerts = Counter(
            "registrar_alerts_total", "Calls of the alert webhook, by outcome", ["alert", "outcome"], registry=registry
        )
        self._limits = Counter(
            "registrar_limit_total", "What the rate limits said of requests", ["policy", "outcome"], registry=registry
        )
        self._limiter_degraded = Gauge(
            "registrar_limiter_degraded", "1 while Redis does not count, and each process does", registry=registry
        )
        # Called for every request, and `labels` is slow.
        self._registrations_by, self._verifications_by = map(
            cache, (self._registrations.labels, self._verifications.labels)
        )
        self._registrations_by("accepted")  # shown before there is one: see `Durations`
        self._verifications_by("accepted")
        self._verifications_by("wrong-code")
        self._limits_by = cache(self._limits.labels)
        self._passed: Counts[tuple[str, ...]] = Counts()
        self._turned_away: Counts[tuple[str, str]] = Counts()
        self._log_lines_lost = Counter(
            "registrar_log_lines_lost_total",
            "Log lines that nobody took, or that there was no room for",
            registry=registry,
        )
        self._log_lines_reported = 0
        self._spans_exported = Counter(
            "registrar_spans_exported_total", "Spans that a collector of traces has taken", registry=registry
        )
        self._spans_lost = Counter(
            "registrar_spans_lost_total", "Spans that no collector of traces has got", ["reason"], registry=registry
        )
        self._webhooks = Counter(
            "registrar_webhooks_total", "Calls of webhooks, by outcome", ["outcome"], registry=registry
        )
        self._bounces = Counter(
            "registrar_bounces_total",
            "Mails that came back (hard, soft) or were not wanted (complaint), and reports of no mail (unknown)",
            ["outcome"],
            registry=registry,
        )
        self._add_synthetic(registry)

    def _add_synthetic(self, registry: CollectorRegistry) -> None:
        self._synthetic = Counter(
            "registrar_synthetic_total", "Synthetic registrations, by outcome", ["outcome"], registry=registry
        )
        self._synthetic_seconds = Histogram(
            "registrar_synthetic_seconds",
            "From the request of a synthetic registration until it was an account, or had failed",
            buckets=_SYNTHETIC_SECONDS,
            registry=registry,
        )

    def append_batch(self, count: int) -> None:
        self._append_batch.observe(count)

    def append(self, seconds: float) -> None:
        self._append.observe(seconds)

    def circuit(self, name: str, old: str, new: str) -> None:  # noqa: ARG002 - its callers have it
        """See `infrastructure.circuits.OnTransition`."""
        self._circuit.labels(name).set(CIRCUIT_STATES[new])
        self._transitions.labels(name, new).inc()

    def circuits(self, states: Mapping[str, str]) -> None:
        """Those of the mail servers, as all workers know them; a server that was here before and is not now is no
        longer in use."""
        for name in self._named - states.keys():
            self._circuit.remove(name)
        for name, state in states.items():
            self._circuit.labels(name).set(CIRCUIT_STATES[state])
        self._named = frozenset(states)

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

    def doubtful_address(self, doubt: str, policy: str) -> None:
        """`doubt`: "misspelt-domain" or "disposable-domain"; `policy`: the setting that says what becomes of it."""
        self._doubtful_addresses.labels(doubt, policy).inc()

    def verification(self, outcome: str) -> None:
        """`outcome`: "accepted", or an error code of the contract."""
        self._verifications_by(outcome).inc()

    def request(self, route: str, status: int, seconds: float) -> None:
        """`route`: its template, never the path that was asked for."""
        self._requests.observe(route, status, seconds)

    def turned_away(self, reason: str, route: str) -> None:
        """A request was refused before the application saw it; written down at a scrape, as these come in floods."""
        self._turned_away[reason, route] += 1

    def overloaded(self, reason: str, requests: int = 1) -> None:
        """Counts requests that there was no place for as what became of registrations and verifications."""
        if reason == "busy":
            self._registrations_by("overloaded").inc(requests)
        elif reason == "busy-verify":
            self._verifications_by("overloaded").inc(requests)

    def shows_under_way(self, count: Callable[[], Mapping[str, int]]) -> None:
        """`count` says how many requests of each class are under way; those of several are added up."""
        self._count_under_way.append(count)

    def shed(self, reason: str) -> None:
        self._shed.labels(reason).inc()

    def limit(self, policy: str, outcome: str) -> None:
        """`outcome`: "passed" (the request did), "refused", or of a policy in shadow "would-refuse"."""
        self._limits_by(policy, outcome).inc()

    def limits_passed(self, policies: tuple[str, ...]) -> None:
        """The same of a request that all of them let pass; once for each request, so it is written down at a scrape."""
        self._passed[policies] += 1

    def limiter_degraded(self, degraded: bool) -> None:
        self._limiter_degraded.set(degraded)

    def alert(self, alert: str, outcome: str) -> None:
        """See `infrastructure.alerts.alerts.OnAttempt`."""
        self._alerts.labels(alert, outcome).inc()

    def webhook(self, outcome: str) -> None:
        """See `infrastructure.webhooks.delivery.OnAttempt`."""
        self._webhooks.labels(outcome).inc()

    def takes_bounces(self) -> None:
        """Show all of them from now on, before there is one: see `Durations`."""
        for outcome in ("hard", "soft", "complaint", "unknown"):
            self._bounces.labels(outcome)

    def bounce(self, outcome: str) -> None:
        """See `application.bounce_reports.Outcome`."""
        self._bounces.labels(outcome).inc()

    def spans_exported(self, spans: int) -> None:
        self._spans_exported.inc(spans)

    def spans_lost(self, reason: str, spans: int) -> None:
        """See `infrastructure.telemetry.export.SpanExport`."""
        self._spans_lost.labels(reason).inc(spans)

    def synthetic(self, outcome: str, seconds: float) -> None:
        """See `infrastructure.synthetic.probe.OnEnd`."""
        self._synthetic.labels(outcome).inc()
        self._synthetic_seconds.observe(seconds)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        passed, self._passed = self._passed, Counts()
        for policies, requests in passed.items():
            for policy in policies:
                self._limits_by(policy, "passed").inc(requests)
        turned_away, self._turned_away = self._turned_away, Counts()
        for (reason, route), requests in turned_away.items():
            self._shed.labels(reason).inc(requests)
            self.overloaded(reason, requests)
            self._requests.observe(route, 503, 0.0, requests)
        under_way: Counts[str] = Counts()
        for count in self._count_under_way:
            under_way.update(count())
        for name, requests in under_way.items():
            self._under_way.labels(name).set(requests)
        lost = lines_lost()
        self._log_lines_lost.inc(lost - self._log_lines_reported)
        self._log_lines_reported = lost
        return generate_latest(self._registry)
