"""Read model `funnel`: how many registrations reach each stage, hour by hour, and how long it takes them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf, isinf
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import tuple_row

from domain.mail_outcome import IssueReason, MailKind
from domain.recorded import Told
from domain.registration import BEGINNINGS, Registration
from domain.synthetic import is_synthetic
from projections.table import Connection, Table, schema_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AN_HOUR = timedelta(hours=1)
_MICROSECOND = timedelta(microseconds=1)

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

STAGES = Table(
    "stages",
    {"hour": "timestamptz", "stage": "text", "duplicate": "boolean", "count": "bigint"},
    key=("hour", "stage", "duplicate"),
)

DURATIONS = Table(
    "durations",
    {
        "hour": "timestamptz",
        "step": "text",
        "duplicate": "boolean",
        "at_most": "double precision",
        "count": "bigint",
        "total_us": "bigint",
        "longest_us": "bigint",
    },
    key=("hour", "step", "duplicate", "at_most"),
)

UNDER_WAY = Table(
    "under_way",
    {
        "registration_id": "uuid",
        "duplicate": "boolean",
        "registered_at": "timestamptz",
        "handed_over_at": "timestamptz",
        "handed_over_serial": "integer",
    },
    key="registration_id",
)

_END = "DELETE FROM under_way WHERE registration_id = ANY (%b)"

_COUNT = f"{STAGES.insert}{STAGES.on_conflict} count = stages.count + excluded.count"

_MEASURE = f"""{DURATIONS.insert}{DURATIONS.on_conflict}
    count = durations.count + excluded.count, total_us = durations.total_us + excluded.total_us,
    longest_us = greatest(durations.longest_us, excluded.longest_us)
"""

_FUNNEL = """
    SELECT date_trunc(%(bucket)s, hour, 'UTC') AS start, duplicate, stage AS name, NULL::double precision AS at_most,
           sum(count)::bigint AS count, 0::bigint AS total_us, 0::bigint AS longest_us
    FROM {stages} WHERE hour >= date_trunc(%(bucket)s, %(since)s::timestamptz, 'UTC')
    GROUP BY start, duplicate, name
    UNION ALL
    SELECT date_trunc(%(bucket)s, hour, 'UTC') AS start, duplicate, step AS name, at_most,
           sum(count)::bigint, sum(total_us)::bigint, max(longest_us)
    FROM {durations} WHERE hour >= date_trunc(%(bucket)s, %(since)s::timestamptz, 'UTC')
    GROUP BY start, duplicate, name, at_most
    ORDER BY start, name, at_most
"""


@dataclass(slots=True)
class Durations:
    """How long some step took.

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
    """What happened to some registrations.

    Attributes:
        stages: "registered", "imported", "invited", "code_renewed:<reason>", "mail_dispatched", "mail_withheld",
            "mail_failed:<failure>", "mail_bounced:<failure>", "mail_complained", "code_rejected", "code_locked",
            "verified", "activated", "cancelled:<reason>", "reopened"; one that is missing did not happen.
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

    # By numbers: to compare two UUIDs, or two times with a zone, takes many times as long.
    def __init__(self, under_way: dict[int, _UnderWay]) -> None:
        self.under_way = under_way
        self.changed: dict[int, _UnderWay] = {}
        self.ended: dict[int, UUID] = {}
        self.stages: Counter[tuple[int, str, bool]] = Counter()
        self.durations: dict[tuple[int, str, bool, float], tuple[int, int, int]] = {}

    def registered(self, event: Registration.UserRegistered) -> None:
        registration_id, duplicate = event.originator_id, event.duplicate_of is not None
        begun = _UnderWay(registration_id, duplicate, event.timestamp)
        self.under_way[registration_id.int] = self.changed[registration_id.int] = begun
        self._count("registered", event.timestamp, duplicate)

    def taken_over(self, event: Registration.UserImported) -> None:
        self._count("imported", event.timestamp, duplicate=False)
        if not event.verified:
            begun = _UnderWay(event.originator_id, duplicate=False, registered_at=event.timestamp)
            self.under_way[event.originator_id.int] = self.changed[event.originator_id.int] = begun

    def invited(self, event: Registration.UserInvited) -> None:
        row = self._pass("invited", event)
        row.registered_at = event.timestamp  # until then nobody could do anything
        self.changed[event.originator_id.int] = row

    def reopened(self, event: Registration.RegistrationReopened) -> None:
        registration_id, duplicate = event.originator_id, event.duplicate_of is not None
        begun = _UnderWay(registration_id, duplicate, event.timestamp)
        self.under_way[registration_id.int] = self.changed[registration_id.int] = begun
        self.ended.pop(registration_id.int, None)
        self._count("reopened", event.timestamp, duplicate)

    def issued(self, event: Registration.OtpIssued) -> None:
        if event.reason not in {IssueReason.REGISTERED, IssueReason.INVITED}:
            self._pass(f"code_renewed:{event.reason}", event)

    def withheld(self, event: Registration.EmailWithheld) -> None:
        self._pass("mail_withheld", event)

    def failed(self, event: Registration.EmailDispatchFailed) -> None:
        self._pass(f"mail_failed:{event.failure}", event)

    def bounced(self, event: Registration.EmailBounced) -> None:
        self._pass(f"mail_bounced:{event.failure}", event)

    def complained(self, event: Registration.EmailComplained) -> None:
        self._count("mail_complained", event.timestamp, event.kind == MailKind.NOTICE)

    def rejected(self, event: Registration.CodeRejected) -> None:
        self._pass("code_rejected", event)

    def locked(self, event: Registration.CodeLocked) -> None:
        self._pass("code_locked", event)

    def verified(self, event: Registration.EmailVerified) -> None:
        row = self._pass("verified", event)
        if row.handed_over_at is not None and row.handed_over_serial == event.serial:
            self._measure("dispatched_to_verified", row.handed_over_at, event.timestamp, row.duplicate)

    def became_active(self, event: Registration.AccountActivated) -> None:
        row = self._pass("activated", event)
        self._measure("registered_to_activated", row.registered_at, event.timestamp, row.duplicate)
        self._end(event.originator_id)

    def cancelled(self, event: Registration.RegistrationCancelled) -> None:
        ended = self.under_way.get(event.originator_id.int)
        # Only an account goes on after its end: it is erased. A duplicate never becomes one.
        duplicate = ended is not None and ended.duplicate
        self._count(f"cancelled:{event.reason}", event.timestamp, duplicate)
        self._end(event.originator_id)

    def dispatched(self, event: Registration.EmailDispatched) -> None:
        duplicate = event.kind == MailKind.NOTICE
        self._count("mail_dispatched", event.timestamp, duplicate)
        row = self.under_way.get(event.originator_id.int)
        if row is None:
            return  # a hand-over is recorded even after the end
        if row.handed_over_at is None:
            self._measure("registered_to_dispatched", row.registered_at, event.timestamp, duplicate)
        row.handed_over_at = event.timestamp
        row.handed_over_serial = event.serial
        self.changed[row.registration_id.int] = row

    def _pass(
        self,
        stage: str,
        event: Registration.UserInvited
        | Registration.OtpIssued
        | Registration.EmailWithheld
        | Registration.EmailDispatchFailed
        | Registration.EmailBounced
        | Registration.CodeRejected
        | Registration.CodeLocked
        | Registration.EmailVerified
        | Registration.AccountActivated,
    ) -> _UnderWay:
        row = self.under_way.get(event.originator_id.int)
        if row is None:
            raise LookupError(f"registration {event.originator_id} is not under way")
        self._count(stage, event.timestamp, row.duplicate)
        return row

    def _count(self, stage: str, at: datetime, duplicate: bool) -> None:
        self.stages[_hour(at), stage, duplicate] += 1

    def _measure(self, step: str, since: datetime, until: datetime, duplicate: bool) -> None:
        # Two machines' clocks: an event may seem to precede its cause by a little.
        took = max(0, (until - since) // _MICROSECOND)
        key = (_hour(until), step, duplicate, AT_MOST[bisect_left(AT_MOST, took / 1_000_000)])
        count, total, longest = self.durations.get(key, (0, 0, 0))
        self.durations[key] = (count + 1, total + took, max(longest, took))

    def _end(self, registration_id: UUID) -> None:
        self.under_way.pop(registration_id.int, None)
        self.changed.pop(registration_id.int, None)
        self.ended[registration_id.int] = registration_id


_CHANGES: dict[Any, Callable[[_Tally, Any], None]] = {
    Registration.UserRegistered: _Tally.registered,
    Registration.UserImported: _Tally.taken_over,
    Registration.UserInvited: _Tally.invited,
    Registration.OtpIssued: _Tally.issued,
    Registration.EmailDispatched: _Tally.dispatched,
    Registration.EmailBounced: _Tally.bounced,
    Registration.EmailComplained: _Tally.complained,
    Registration.EmailWithheld: _Tally.withheld,
    Registration.EmailDispatchFailed: _Tally.failed,
    Registration.CodeRejected: _Tally.rejected,
    Registration.CodeLocked: _Tally.locked,
    Registration.EmailVerified: _Tally.verified,
    Registration.AccountActivated: _Tally.became_active,
    Registration.RegistrationCancelled: _Tally.cancelled,
    Registration.RegistrationReopened: _Tally.reopened,
}


class Funnel:
    """Counts and durations per hour of the events' own time; synthetic registrations are none."""

    name = "funnel"
    topics: tuple[str, ...] | None = tuple(event.TOPIC for event in _CHANGES)
    tables: tuple[str, ...] = (TABLES,)
    metadata = False

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema = schema or schema_of(self.name)
        self._funnel = _FUNNEL.format(stages=STAGES.within(schema), durations=DURATIONS.within(schema))

    async def apply(self, connection: Connection, events: Sequence[Told]) -> None:
        """Add what a batch of events counts.

        Raises:
            LookupError: an event's registration never started.
        """
        events = [one for one in events if not is_synthetic(one.event.originator_id)]
        ids = {r.event.originator_id.int: r.event.originator_id for r in events}
        begun = {r.event.originator_id.int for r in events if type(r.event) in BEGINNINGS}
        known = [registration_id for number, registration_id in ids.items() if number not in begun]
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        under_way: dict[int, _UnderWay] = {}
        if known:
            await cursor.execute(UNDER_WAY.load, (known,))
            under_way = {row[0].int: _UnderWay(*row) for row in await cursor.fetchall()}
        tally = _Tally(under_way)
        for recorded in events:
            _CHANGES[type(recorded.event)](tally, recorded.event)

        if tally.changed:
            await cursor.execute(UNDER_WAY.upsert, UNDER_WAY.arrays(tally.changed.values()))
        if ended := [registration_id for number, registration_id in tally.ended.items() if number not in begun]:
            await cursor.execute(_END, (ended,), prepare=False)
        if tally.stages:
            await cursor.execute(
                _COUNT, STAGES.arrays((_start(hour), *key, count) for (hour, *key), count in tally.stages.items())
            )
        if tally.durations:
            await cursor.execute(
                _MEASURE,
                DURATIONS.arrays((_start(hour), *key, *sums) for (hour, *key), sums in tally.durations.items()),
            )

    async def funnel(self, connection: Connection, since: datetime, bucket: Literal["hour", "day"]) -> list[Bucket]:
        """The hours or days (UTC) from the one that `since` falls into, each as a whole, in order."""
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        await cursor.execute(self._funnel, {"bucket": bucket, "since": since}, prepare=False)
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


def _hour(at: datetime) -> int:
    """The number of the hour of this time."""
    return (at - _EPOCH) // _AN_HOUR


def _start(hour: int) -> datetime:
    return _EPOCH + hour * _AN_HOUR
