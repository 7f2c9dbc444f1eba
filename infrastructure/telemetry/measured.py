"""The metrics that show how things are: measured at every scrape, not counted as they happen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge


class Measured:
    """What `entrypoints.queries.health.HealthChecks.measure` finds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Over 40 lines, because it is the list of these metrics, each with its name, help and labels."""
        self._registry = registry
        self._info = Gauge(
            "registrar_info", "1: what runs here, and of which release", ["role", "version"], registry=registry
        )
        self._ready = Gauge("registrar_ready", "1 while /health/ready is 200", registry=registry)
        self._append_queue = Gauge(
            "registrar_append_queue_depth", "Appends that wait for the next transaction", registry=registry
        )
        self._pool = Gauge(
            "registrar_pool_connections", "Connections for queries, by state (idle, used)", ["state"], registry=registry
        )
        self._pool_waiting = Gauge("registrar_pool_waiting", "Queries that wait for a connection", registry=registry)
        self._hash_queue = Gauge("registrar_hash_queue_depth", "Passwords that wait to be hashed", registry=registry)
        self._log_position = Gauge("registrar_log_position", "Events in the log", registry=registry)
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
        self._paced = Gauge(
            "registrar_mails_paced", "1 while mails wait for their turn in the limit of all mails", registry=registry
        )
        self._broker_up = Gauge("registrar_broker_up", "1 while it accepts messages", ["broker"], registry=registry)
        self._queue_messages = Gauge(
            "registrar_broker_messages", "Messages that wait in RabbitMQ", ["queue"], registry=registry
        )
        self._queue_consumers = Gauge(
            "registrar_broker_consumers", "Consumers of a queue in RabbitMQ", ["queue"], registry=registry
        )
        self._trouble = Gauge(
            "registrar_mail_server_trouble",
            "1 for a server that may be called, and takes no mails (refusing, deferring)",
            ["name", "trouble"],
            registry=registry,
        )
        self._dead_letters = Gauge(
            "registrar_dead_letters", "Mails that failed for good and wait for an operator", registry=registry
        )
        self._stray_messages = Gauge(
            "registrar_stray_messages", "Dead letters that are not Registrar's, not discarded yet", registry=registry
        )
        self._oldest_unsent = Gauge(
            "registrar_oldest_unsent_seconds", "How long the longest waiting mail has waited", registry=registry
        )
        self._stuck = Gauge(
            "registrar_stuck_registrations", "Registrations whose next step is overdue", registry=registry
        )
        self._backup_age = Gauge("registrar_backup_age_seconds", "Age of the last backup", registry=registry)
        self._drill_age = Gauge(
            "registrar_drill_age_seconds", "Since a backup was last restored and verified", registry=registry
        )
        self._checkpoint_age = Gauge(
            "registrar_checkpoint_age_seconds", "Age of the first event without a checkpoint", registry=registry
        )
        self._checkpoint_position = Gauge(
            "registrar_checkpoint_position", "Last event that a checkpoint covers", registry=registry
        )
        self._unpublished = Gauge(
            "registrar_checkpoints_unpublished", "Checkpoints that wait to be published", registry=registry
        )
        self._unpublished_age = Gauge(
            "registrar_checkpoint_unpublished_seconds",
            "How long the first checkpoint that waits to be published has waited",
            registry=registry,
        )
        self._chain_mismatches = Gauge(
            "registrar_chain_mismatches", "1 while the log is not what was recorded", registry=registry
        )
        self._synthetic_age = Gauge(
            "registrar_synthetic_age_seconds",
            "Since a synthetic registration last became an account",
            registry=registry,
        )
        self._synthetic_interval = Gauge(
            "registrar_synthetic_interval_seconds",
            "How often this process is to make a synthetic registration; 0: never",
            registry=registry,
        )
        self._webhook_failing = Gauge(
            "registrar_webhook_failing_seconds",
            "For how long the endpoint of webhooks has failed that has failed for longest; 0: none fails",
            registry=registry,
        )
        self.backups()
        self.checkpoints()
        self.synthetic_age()

    def runs(self, role: str, release: str) -> None:
        """`role`: the command that was started."""
        self._info.labels(role, release).set(1)

    def ready(self, ready: bool) -> None:
        self._ready.set(ready)

    def queues(self, *, hashes: int, appends: int, queries: int) -> None:
        """What waits in this process: for a thread, the next transaction, a connection."""
        self._hash_queue.set(hashes)
        self._append_queue.set(appends)
        self._pool_waiting.set(queries)

    def pool(self, *, idle: int, used: int) -> None:
        """See `infrastructure.postgres.pool.QueryPool.depths`."""
        self._pool.labels("idle").set(idle)
        self._pool.labels("used").set(used)

    def follower(self, name: str, *, lag_events: int, lag_seconds: float, parked_streams: int) -> None:
        self._lag_events.labels(name).set(lag_events)
        self._lag_seconds.labels(name).set(lag_seconds)
        self._parked.labels(name).set(parked_streams)

    def projection(self, name: str, *, mismatches: int, verified_at: datetime) -> None:
        """See `infrastructure.followers.progress.Progress`."""
        self._mismatches.labels(name).set(mismatches)
        self._verified.labels(name).set(verified_at.timestamp())

    def broker(self, *, up: bool, queues: Mapping[str, Mapping[str, int]]) -> None:
        """Is RabbitMQ up, and what waits there? Not called, and not shown, where none is configured.

        Args:
            queues: see `infrastructure.rabbitmq.topology.queue_counts`; what is not known is not shown.
        """
        self._broker_up.labels("rabbitmq").set(up)
        self._queue_messages.clear()
        self._queue_consumers.clear()
        for name, counts in queues.items():
            self._queue_messages.labels(name).set(counts["messages"])
            self._queue_consumers.labels(name).set(counts["consumers"])

    def troubles(self, troubles: Mapping[str, str]) -> None:
        """See `infrastructure.mail.shared_circuits.SharedCircuits.troubles`."""
        self._trouble.clear()
        for name, trouble in troubles.items():
            self._trouble.labels(name, trouble).set(1)

    def log(self, *, position: int, paced: bool) -> None:
        """See `infrastructure.followers.progress.AllProgress`."""
        self._log_position.set(position)
        self._paced.set(paced)

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

    def webhook_failing(self, seconds: float = math.nan) -> None:
        """NaN: not known."""
        self._webhook_failing.set(seconds)

    def synthetic_interval(self, seconds: float) -> None:
        """From the begin of a synthetic registration to the begin of the next."""
        self._synthetic_interval.set(seconds)

    def checkpoints(
        self,
        *,
        age_seconds: float = math.nan,
        position: float = math.nan,
        unpublished: float = math.nan,
        unpublished_seconds: float = math.nan,
        mismatches: float = math.nan,
    ) -> None:
        """See `infrastructure.audit.standing.Standing`; NaN: not known."""
        self._checkpoint_age.set(age_seconds)
        self._checkpoint_position.set(position)
        self._unpublished.set(unpublished)
        self._unpublished_age.set(unpublished_seconds)
        self._chain_mismatches.set(mismatches)

    def without_checkpoints(self) -> None:
        """There are none: do not show their metrics."""
        for gauge in (
            self._checkpoint_age,
            self._checkpoint_position,
            self._unpublished,
            self._unpublished_age,
            self._chain_mismatches,
        ):
            self._registry.unregister(gauge)

    def forget_backlog(self) -> None:
        """The database is away: no value is better than a stale one."""
        for gauge in (self._lag_events, self._lag_seconds, self._parked, self._mismatches, self._verified):
            gauge.clear()
        self._log_position.set(math.nan)
        self._paced.set(math.nan)
        self.backlog(dead_letters=math.nan, stray_messages=math.nan, oldest_unsent_seconds=math.nan, stuck=math.nan)
        self.backups()
        self.checkpoints()
        self.synthetic_age()
        self.webhook_failing()
