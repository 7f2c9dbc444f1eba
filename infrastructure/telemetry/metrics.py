"""The metrics of the contract."""

from __future__ import annotations

import math
from collections import Counter as Counts
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from infrastructure.telemetry.durations import Durations
from infrastructure.telemetry.logs import lines_lost

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Metrics.render` returns (Prometheus text format)."""

CIRCUIT_STATES: Final = {"closed": 0, "half-opened": 1, "opened": 2}
"""What `registrar_circuit_state` shows for purgatory's names."""

_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_APPEND_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_APPEND_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
# A mail that goes straight out, one with retries, a code's ten minutes, an outage of hours.
_INBOX_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)

_SYNTHETIC_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody needs


class Metrics:
    """Every metric of the contract, in a registry of its own. Labels come from small, fixed sets; never ids."""

    def __init__(self) -> None:
        """Over 40 lines, because it is the list of all metrics, each with its name, help and labels."""
        self._registry = registry = CollectorRegistry()
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
        self._mismatches = Gauge(
            "registrar_projection_mismatches",
            "Differences between a read model and the log that its last full verification has found",
            ["projection"],
            registry=registry,
        )
        self._verified = Gauge(
            "registrar_projection_verified_timestamp_seconds",
            "When a read model was last verified, all of it",
            ["projection"],
            registry=registry,
        )
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
        self._requests = Durations("registrar_requests_seconds", "HTTP requests", ["route", "status"], _REQUEST_SECONDS)
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
        self._backup_age = Gauge("registrar_backup_age_seconds", "Age of the last backup", registry=registry)
        self._drill_age = Gauge(
            "registrar_drill_age_seconds", "Since a backup was last restored and verified", registry=registry
        )
        self.backups()
        self._checkpoint_age = Gauge(
            "registrar_checkpoint_age_seconds", "Age of the first event without a checkpoint", registry=registry
        )
        self._checkpoint_position = Gauge(
            "registrar_checkpoint_position", "Last event that a checkpoint covers", registry=registry
        )
        self._unpublished = Gauge(
            "registrar_checkpoints_unpublished", "Checkpoints that wait to be published", registry=registry
        )
        self._chain_mismatches = Gauge(
            "registrar_chain_mismatches", "1 while the log is not what was recorded", registry=registry
        )
        self.checkpoints()
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
        self._hash_queue = Gauge("registrar_hash_queue_depth", "Passwords that wait to be hashed", registry=registry)
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
        self._synthetic_age = Gauge(
            "registrar_synthetic_age_seconds",
            "Since a synthetic registration last became an account",
            registry=registry,
        )
        self.synthetic_age()

    def append_batch(self, count: int) -> None:
        self._append_batch.observe(count)

    def append(self, seconds: float) -> None:
        self._append.observe(seconds)

    def circuit(self, name: str, old: str, new: str) -> None:
        """See `infrastructure.circuits.OnTransition`; of one that has not changed only the state is shown."""
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

    def spans_exported(self, spans: int) -> None:
        self._spans_exported.inc(spans)

    def spans_lost(self, reason: str, spans: int) -> None:
        """See `infrastructure.telemetry.export.SpanExport`."""
        self._spans_lost.labels(reason).inc(spans)

    def synthetic(self, outcome: str, seconds: float) -> None:
        """See `infrastructure.synthetic.probe.OnEnd`."""
        self._synthetic.labels(outcome).inc()
        self._synthetic_seconds.observe(seconds)

    # --- Collected at every scrape --------------------------------------------------------------

    def hash_queue(self, depth: int) -> None:
        self._hash_queue.set(depth)

    def follower(self, name: str, *, lag_events: int, lag_seconds: float, parked_streams: int) -> None:
        self._lag_events.labels(name).set(lag_events)
        self._lag_seconds.labels(name).set(lag_seconds)
        self._parked.labels(name).set(parked_streams)

    def projection(self, name: str, *, mismatches: int, verified_at: datetime) -> None:
        """See `infrastructure.followers.progress.Progress`."""
        self._mismatches.labels(name).set(mismatches)
        self._verified.labels(name).set(verified_at.timestamp())

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

    def backups(self, *, backup_age: float = math.nan, drill_age: float = math.nan) -> None:
        """In seconds; NaN: none is known of."""
        self._backup_age.set(backup_age)
        self._drill_age.set(drill_age)

    def synthetic_age(self, seconds: float = math.nan) -> None:
        """NaN: none ever has, as far as is known."""
        self._synthetic_age.set(seconds)

    def checkpoints(
        self,
        *,
        age_seconds: float = math.nan,
        position: float = math.nan,
        unpublished: float = math.nan,
        mismatches: float = math.nan,
    ) -> None:
        """See `infrastructure.audit.standing.Standing`; NaN: not known."""
        self._checkpoint_age.set(age_seconds)
        self._checkpoint_position.set(position)
        self._unpublished.set(unpublished)
        self._chain_mismatches.set(mismatches)

    def without_checkpoints(self) -> None:
        """There are none: do not show their metrics."""
        for gauge in (self._checkpoint_age, self._checkpoint_position, self._unpublished, self._chain_mismatches):
            self._registry.unregister(gauge)

    def forget_backlog(self) -> None:
        """The database is away: no value is better than a stale one."""
        for gauge in (self._lag_events, self._lag_seconds, self._parked, self._mismatches, self._verified):
            gauge.clear()
        self.backlog(dead_letters=math.nan, stray_messages=math.nan, oldest_unsent_seconds=math.nan, stuck=math.nan)
        self.backups()
        self.checkpoints()
        self.synthetic_age()

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
