"""Read model `funnel`: how many registrations reach each stage, hour by hour, and how long it takes them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf, isinf
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from domain.mail_outcome import IssueReason, MailKind
from domain.recorded import AnyEvent, Recorded
from domain.registration import Registration

AT_MOST = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0, inf)
"""Upper ends of the histogram's classes, in seconds; those of a mail that goes straight out, a retry, a code's ten
minutes, an outage, a registration's day."""

# Durations are whole microseconds: sums of them do not depend on the order of summing, as sums of fractions would.
TABLES = """
    CREATE TABLE IF NOT EXISTS stages (
        hour      timestamptz NOT NULL,
        stage     text        NOT NULL,
        duplicate boolean     NOT NULL,
        count     bigint      NOT NULL,
        PRIMARY KEY (hour, stage, duplicate)
    ) WITH (fillfactor = 50);
    CREATE TABLE IF NOT EXISTS durations (
        hour       timestamptz      NOT NULL,
        step       text             NOT NULL,
        duplicate  boolean          NOT NULL,
        at_most    double precision NOT NULL,
        count      bigint           NOT NULL,
        total_us   bigint           NOT NULL,
        longest_us bigint           NOT NULL,
        PRIMARY KEY (hour, step, duplicate, at_most)
    ) WITH (fillfactor = 50);
    -- Registrations that have not ended, for what their later events do not say.
    CREATE TABLE IF NOT EXISTS under_way (
        registration_id   uuid        PRIMARY KEY,
        duplicate         boolean     NOT NULL,
        registered_at     timestamptz NOT NULL,
        handed_over_at    timestamptz,
        handed_over_serial integer
    ) WITH (fillfactor = 70);
"""

# Row by row through the index, on purpose: a plan made and kept while the table was empty would scan it for ever.
_LOAD = """
    SELECT w.*
    FROM unnest(%b::uuid[]) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT registration_id, duplicate, registered_at, handed_over_at, handed_over_serial
        FROM under_way WHERE registration_id = wanted.id LIMIT 1
    ) AS w
"""

_SAVE = """
    INSERT INTO under_way (registration_id, duplicate, registered_at, handed_over_at, handed_over_serial)
    SELECT * FROM unnest(%b::uuid[], %b::boolean[], %b::timestamptz[], %b::timestamptz[], %b::integer[])
    ON CONFLICT (registration_id) DO UPDATE SET
        handed_over_at = excluded.handed_over_at, handed_over_serial = excluded.handed_over_serial
"""

_END = "DELETE FROM under_way WHERE registration_id = ANY (%b)"

_COUNT = """
    INSERT INTO stages AS s (hour, stage, duplicate, count)
    SELECT * FROM unnest(%b::timestamptz[], %b::text[], %b::boolean[], %b::bigint[])
    ON CONFLICT (hour, stage, duplicate) DO UPDATE SET count = s.count + excluded.count
"""

_MEASURE = """
    INSERT INTO durations AS d (hour, step, duplicate, at_most, count, total_us, longest_us)
    SELECT * FROM unnest(
        %b::timestamptz[], %b::text[], %b::boolean[], %b::double precision[], %b::bigint[], %b::bigint[], %b::bigint[])
    ON CONFLICT (hour, step, duplicate, at_most) DO UPDATE SET
        count = d.count + excluded.count, total_us = d.total_us + excluded.total_us,
        longest_us = greatest(d.longest_us, excluded.longest_us)
"""

_FUNNEL = """
    SELECT date_trunc(%(bucket)s, hour, 'UTC') AS start, duplicate, stage AS name, NULL::double precision AS at_most,
           sum(count)::bigint AS count, 0::bigint AS total_us, 0::bigint AS longest_us
    FROM read_funnel.stages WHERE hour >= date_trunc(%(bucket)s, %(since)s::timestamptz, 'UTC')
    GROUP BY start, duplicate, name
    UNION ALL
    SELECT date_trunc(%(bucket)s, hour, 'UTC') AS start, duplicate, step AS name, at_most,
           sum(count)::bigint, sum(total_us)::bigint, max(longest_us)
    FROM read_funnel.durations WHERE hour >= date_trunc(%(bucket)s, %(since)s::timestamptz, 'UTC')
    GROUP BY start, duplicate, name, at_most
    ORDER BY start, name, at_most
"""


@dataclass(slots=True)
class Durations:
    """
    Attributes:
        total, longest: seconds; the mean is `total / count`.
        histogram: how many took up to that many seconds but more than the class before; None: more than a day.
    """

    count: int = 0
    total: float = 0.0
    longest: float = 0.0
    histogram: dict[float | None, int] = field(default_factory=dict)


@dataclass(slots=True)
class Flow:
    """
    Attributes:
        stages: "registered", "code_renewed:<reason>", "mail_dispatched", "mail_withheld", "mail_failed:<failure>",
            "code_rejected", "code_locked", "verified", "activated", "cancelled:<reason>"; one that is missing did
            not happen.
        durations: "registered_to_dispatched" (the first mail), "dispatched_to_verified" (the mail with the code that
            was used), "registered_to_activated"; counted when they ended.
    """

    stages: dict[str, int] = field(default_factory=dict)
    durations: dict[str, Durations] = field(default_factory=dict)


@dataclass(slots=True)
class Bucket:
    """One hour or day (UTC) in which something happened.

    Attributes:
        duplicates: the registrations for addresses that an account held already; not among `registrations`.
    """

    start: datetime
    registrations: Flow = field(default_factory=Flow)
    duplicates: Flow = field(default_factory=Flow)


@dataclass(slots=True)
class _UnderWay:
    registration_id: UUID
    duplicate: bool
    registered_at: datetime
    handed_over_at: datetime | None = None
    handed_over_serial: int | None = None


class _Tally:
    """What a batch adds."""

    def __init__(self, under_way: dict[UUID, _UnderWay]) -> None:
        self.under_way = under_way
        self.changed: dict[UUID, _UnderWay] = {}
        self.ended: set[UUID] = set()
        self.stages: Counter[tuple[datetime, str, bool]] = Counter()
        self.durations: dict[tuple[datetime, str, bool, float], tuple[int, int, int]] = {}

    def fold(self, event: AnyEvent) -> None:
        match event:
            case Registration.UserRegistered():
                registration_id, duplicate = event.originator_id, event.duplicate_of is not None
                begun = _UnderWay(registration_id, duplicate, event.timestamp)
                self.under_way[registration_id] = self.changed[registration_id] = begun
                self._count("registered", event.timestamp, duplicate)
            case Registration.OtpIssued():
                if event.reason != IssueReason.REGISTERED:
                    self._pass(f"code_renewed:{event.reason}", event)
            case Registration.EmailDispatched():
                self._dispatched(event)
            case Registration.EmailWithheld():
                self._pass("mail_withheld", event)
            case Registration.EmailDispatchFailed():
                self._pass(f"mail_failed:{event.failure}", event)
            case Registration.CodeRejected():
                self._pass("code_rejected", event)
            case Registration.CodeLocked():
                self._pass("code_locked", event)
            case Registration.EmailVerified():
                row = self._pass("verified", event)
                if row.handed_over_at is not None and row.handed_over_serial == event.serial:
                    self._measure("dispatched_to_verified", row.handed_over_at, event.timestamp, row.duplicate)
            case Registration.AccountActivated():
                row = self._pass("activated", event)
                self._measure("registered_to_activated", row.registered_at, event.timestamp, row.duplicate)
                self._end(event.originator_id)
            case Registration.RegistrationCancelled():
                ended = self.under_way.get(event.originator_id)
                # Only an account goes on after its end: it is erased. A duplicate never becomes one.
                duplicate = ended is not None and ended.duplicate
                self._count(f"cancelled:{event.reason}", event.timestamp, duplicate)
                self._end(event.originator_id)

    def _dispatched(self, event: Registration.EmailDispatched) -> None:
        duplicate = event.kind == MailKind.NOTICE
        self._count("mail_dispatched", event.timestamp, duplicate)
        row = self.under_way.get(event.originator_id)
        if row is None:
            return  # a hand-over is recorded even after the end
        if row.handed_over_at is None:
            self._measure("registered_to_dispatched", row.registered_at, event.timestamp, duplicate)
        row.handed_over_at = event.timestamp
        row.handed_over_serial = event.serial
        self.changed[row.registration_id] = row

    def _pass(
        self,
        stage: str,
        event: Registration.OtpIssued
        | Registration.EmailWithheld
        | Registration.EmailDispatchFailed
        | Registration.CodeRejected
        | Registration.CodeLocked
        | Registration.EmailVerified
        | Registration.AccountActivated,
    ) -> _UnderWay:
        row = self.under_way.get(event.originator_id)
        if row is None:
            raise LookupError(f"registration {event.originator_id} is not under way")
        self._count(stage, event.timestamp, row.duplicate)
        return row

    def _count(self, stage: str, at: datetime, duplicate: bool) -> None:
        self.stages[_hour(at), stage, duplicate] += 1

    def _measure(self, step: str, since: datetime, until: datetime, duplicate: bool) -> None:
        # Two machines' clocks: an event may seem to precede its cause by a little.
        took = max(0, (until - since) // timedelta(microseconds=1))
        key = (_hour(until), step, duplicate, AT_MOST[bisect_left(AT_MOST, took / 1_000_000)])
        count, total, longest = self.durations.get(key, (0, 0, 0))
        self.durations[key] = (count + 1, total + took, max(longest, took))

    def _end(self, registration_id: UUID) -> None:
        self.under_way.pop(registration_id, None)
        self.changed.pop(registration_id, None)
        self.ended.add(registration_id)


class Funnel:
    """Counts and durations per hour of the events' own time."""

    name = "funnel"
    topics: tuple[str, ...] | None = tuple(
        event.TOPIC
        for event in (
            Registration.UserRegistered,
            Registration.OtpIssued,
            Registration.EmailDispatched,
            Registration.EmailWithheld,
            Registration.EmailDispatchFailed,
            Registration.CodeRejected,
            Registration.CodeLocked,
            Registration.EmailVerified,
            Registration.AccountActivated,
            Registration.RegistrationCancelled,
        )
    )
    tables: tuple[str, ...] = (TABLES,)

    async def apply(self, connection: psycopg.AsyncConnection[Any], events: Sequence[Recorded]) -> None:
        """Add what a batch of events counts.

        Raises:
            LookupError: an event's registration never began.
        """
        begun = {r.event.originator_id for r in events if isinstance(r.event, Registration.UserRegistered)}
        known = {r.event.originator_id for r in events} - begun
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        under_way: dict[UUID, _UnderWay] = {}
        if known:
            await cursor.execute(_LOAD, (list(known),))
            under_way = {row[0]: _UnderWay(*row) for row in await cursor.fetchall()}
        tally = _Tally(under_way)
        for recorded in events:
            tally.fold(recorded.event)

        if tally.changed:
            rows = [
                (row.registration_id, row.duplicate, row.registered_at, row.handed_over_at, row.handed_over_serial)
                for row in tally.changed.values()
            ]
            await cursor.execute(_SAVE, _columns(rows))
        if ended := tally.ended & known:
            await cursor.execute(_END, (list(ended),), prepare=False)
        if tally.stages:
            await cursor.execute(_COUNT, _columns([(*key, count) for key, count in tally.stages.items()]))
        if tally.durations:
            await cursor.execute(_MEASURE, _columns([(*key, *sums) for key, sums in tally.durations.items()]))

    @staticmethod
    async def funnel(
        connection: psycopg.AsyncConnection[Any], since: datetime, bucket: Literal["hour", "day"]
    ) -> list[Bucket]:
        """The hours or days (UTC) from the one that `since` falls into, each as a whole, in order."""
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        await cursor.execute(_FUNNEL, {"bucket": bucket, "since": since}, prepare=False)
        buckets: dict[datetime, Bucket] = {}
        for start, duplicate, name, at_most, count, total_us, longest_us in await cursor.fetchall():
            in_bucket = buckets.setdefault(start, Bucket(start))
            flow = in_bucket.duplicates if duplicate else in_bucket.registrations
            if at_most is None:
                flow.stages[name] = count
            else:
                took = flow.durations.setdefault(name, Durations())
                took.count += count
                took.total += total_us / 1_000_000
                took.longest = max(took.longest, longest_us / 1_000_000)
                took.histogram[None if isinf(at_most) else at_most] = count
        return list(buckets.values())


def _hour(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
