"""Read model `audit`: who did what, when, and because of what; every event of the log, searchable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack
from uuid import UUID

import msgspec
from psycopg.rows import tuple_row

from domain.recorded import Position, Recorded
from domain.registration import PERSONAL_FIELDS, Registration
from projections.paging import Page, before, page
from projections.table import Connection, Table, schema_of, uuid_of

# `subjects` says whose address a registration is about: an entry is found by address through its registration,
# whichever stream it stands in.
TABLES = """
    CREATE TABLE IF NOT EXISTS entries (
        position           bigint      PRIMARY KEY,
        recorded_at        timestamptz NOT NULL,
        topic              text        NOT NULL,
        stream_id          uuid        NOT NULL,
        version            bigint      NOT NULL,
        registration_id    uuid        NOT NULL,
        actor              text        NOT NULL,
        correlation_id     uuid        NOT NULL,
        causation_position bigint,
        trace              text,
        details            jsonb       NOT NULL
    );
    CREATE INDEX IF NOT EXISTS entries_of_registration ON entries (registration_id, position);
    CREATE INDEX IF NOT EXISTS entries_of_correlation ON entries (correlation_id, position);
    CREATE INDEX IF NOT EXISTS entries_of_actor ON entries (actor, position);
    CREATE INDEX IF NOT EXISTS entries_of_topic ON entries (topic, position);
    -- Times rise with positions, so a summary of each stretch of the table is enough, and costs next to nothing.
    CREATE INDEX IF NOT EXISTS entries_in_time ON entries USING brin (recorded_at) WITH (pages_per_range = 16);
    CREATE TABLE IF NOT EXISTS subjects (
        registration_id uuid PRIMARY KEY,
        claim_id        uuid NOT NULL
    );
    CREATE INDEX IF NOT EXISTS subjects_of_claim ON subjects (claim_id, registration_id);
"""

ENTRIES = Table(
    "entries",
    {
        "position": "bigint",
        "recorded_at": "timestamptz",
        "topic": "text",
        "stream_id": "uuid",
        "version": "bigint",
        "registration_id": "uuid",
        "actor": "text",
        "correlation_id": "uuid",
        "causation_position": "bigint",
        "trace": "text",
        "details": "jsonb",
    },
    key="position",
    as_text=("details",),
)

SUBJECTS = Table(
    "subjects", {"registration_id": "uuid", "claim_id": "uuid"}, key="registration_id", as_text=("claim_id",)
)

_NARROW = {
    "registration_id": "registration_id = %(registration_id)s",
    "claim_ids": "registration_id = ANY (ARRAY("
    "SELECT s.registration_id FROM {subjects} AS s WHERE s.claim_id = ANY (%(claim_ids)s)))",
    "correlation_id": "correlation_id = %(correlation_id)s",
}
"""Filters that leave few entries, which are looked up before anything else: to go through the log in order until so
many were found would be to read nearly all of it."""

_WIDE = {
    "actor": "actor = %(actor)s",
    "topic": "topic = %(topic)s",
    "since": "CASE WHEN recorded_at >= %(since)s THEN true END AND position >= %(since_position)s",
    "until": "CASE WHEN recorded_at < %(until)s THEN true END AND position < %(until_position)s",
}
"""Filters that may leave most of the log, which is gone through in order until enough is found.

The planner must not see that the times are compared: it takes them to narrow down what the positions have narrowed down
already, expects hardly any entry, and reads the whole time between instead of the few entries that are asked for.
"""

# Halves the log until one position is left: entries before it are older than a time, those from it on are not. Twenty
# steps through the primary key for a million entries; a scan, even of the summaries in `entries_in_time`, would grow
# with the log. A position that is not there (its stream is parked) counts as the next one.
_FIRST_AT = """(
    WITH RECURSIVE halving AS (
        SELECT 0::bigint AS low, coalesce((SELECT max(e.position) FROM {entries} AS e), 0) + 1 AS high
        UNION ALL
        SELECT CASE WHEN found.recorded_at < {at} THEN h.middle ELSE h.low END,
               CASE WHEN found.recorded_at < {at} THEN h.high ELSE h.middle END
        FROM (SELECT low, high, (low + high) / 2 AS middle FROM halving WHERE high - low > 1) AS h
        CROSS JOIN LATERAL (
            SELECT e.recorded_at FROM {entries} AS e WHERE e.position >= h.middle ORDER BY e.position LIMIT 1
        ) AS found
    )
    SELECT min(high) FROM halving
)"""

SET_BACK = timedelta(milliseconds=100)
"""By so much the database's clock may be set back without a search by time losing anything: times rise with positions
otherwise. More would be read in vain by every search up to a time: a busy log has thousands of entries a second."""

_LEEWAY = {"since": -SET_BACK, "until": SET_BACK}

_NOT_DETAILS = frozenset(
    {
        # In columns of their own.
        "originator_id", "originator_version", "originator_topic", "timestamp", "registration_id",
        *PERSONAL_FIELDS,
    }
)  # fmt: skip


_LATER = frozenset({"circuit", "withheld", "mailbox_id"})
"""Fields that events got later: entries of older events are without them, and stay as they are."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the log.

    Attributes:
        recorded_at, actor, correlation_id, causation_position, trace: see `domain.recorded.Recorded`.
        registration_id: the registration it is about, whichever stream it stands in; its stream's id where it is
            about none (a stray message).
        details: the event's other fields, without personal data.
    """

    position: Position
    recorded_at: datetime
    topic: str
    stream_id: UUID
    version: int
    registration_id: UUID
    actor: str
    correlation_id: UUID
    causation_position: Position | None
    trace: str | None
    details: dict[str, Any]


class Wanted(TypedDict, total=False):
    """What an entry must be; what is None or missing does not matter.

    Attributes:
        claim_ids: those of an address: the address's own and the one of its duplicates.
        since, until: time of recording, `until` itself excluded.
    """

    registration_id: UUID | None
    claim_ids: Sequence[UUID] | None
    actor: str | None
    topic: str | None
    correlation_id: UUID | None
    since: datetime | None
    until: datetime | None


class Audit:
    """A row per event."""

    name = "audit"
    topics: tuple[str, ...] | None = None
    tables: tuple[str, ...] = (TABLES,)
    metadata = True

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema = schema or schema_of(self.name)
        self._entries = ENTRIES.within(schema)
        self._first_at = {
            name: _FIRST_AT.format(entries=self._entries, at=f"%({name})s::timestamptz") for name in _LEEWAY
        }
        self._about = f"SELECT position FROM {self._entries} WHERE registration_id = %s ORDER BY position DESC LIMIT %s"  # noqa: S608 - a constant
        self._end = f"SELECT coalesce(max(position), 0) FROM {self._entries}"  # noqa: S608 - a constant
        subjects = SUBJECTS.within(schema)
        self._subjects = (
            f"SELECT s.registration_id FROM {subjects} AS s CROSS JOIN LATERAL ("  # noqa: S608 - constants
            f"SELECT min(e.position) AS begun FROM {self._entries} AS e WHERE e.registration_id = s.registration_id"
            ") AS b WHERE s.claim_id = ANY (%s) ORDER BY b.begun DESC"
        )
        self._narrow = {name: condition.format(subjects=subjects) for name, condition in _NARROW.items()}

    async def apply(self, connection: Connection, events: Sequence[Recorded]) -> None:
        """Add a batch of events."""
        if not events:
            return
        cursor = connection.cursor(binary=True)
        await cursor.execute(ENTRIES.insert, ENTRIES.arrays(_row(recorded) for recorded in events))
        begun = [
            (recorded.event.originator_id, recorded.event.claim_id)
            for recorded in events
            if isinstance(recorded.event, Registration.UserRegistered | Registration.UserImported)
        ]
        if begun:
            await cursor.execute(SUBJECTS.insert, SUBJECTS.arrays(begun))

    async def search(
        self, connection: Connection, *, cursor: str | None = None, limit: int = 50, **wanted: Unpack[Wanted]
    ) -> Page[Entry]:
        """What happened, newest first.

        Raises:
            ValueError: malformed cursor.
        """
        found = await self._select(
            connection, "position < %(before)s", "DESC", {"before": before(cursor), "limit": limit + 1}, wanted
        )
        return page(found, limit, lambda entry: entry.position)

    async def in_order(
        self, connection: Connection, *, after: Position, upto: Position, limit: int, **wanted: Unpack[Wanted]
    ) -> list[Entry]:
        """What happened after one position and up to another, oldest first."""
        bounds = {"after": after, "upto": upto, "limit": limit}
        return await self._select(connection, "position > %(after)s AND position <= %(upto)s", "ASC", bounds, wanted)

    async def positions_about(self, connection: Connection, registration_id: UUID, *, limit: int) -> list[Position]:
        """Where what is about a registration stands, the latest first."""
        found = await connection.execute(self._about.encode(), (registration_id, limit))
        return [row[0] for row in await found.fetchall()]

    async def end(self, connection: Connection) -> Position:
        """Position of the latest entry, 0 if there is none."""
        row = await (await connection.execute(self._end.encode())).fetchone()
        return 0 if row is None else int(row[0])

    async def registrations_of(self, connection: Connection, claim_ids: Sequence[UUID]) -> list[UUID]:
        """The registrations of an address, by its claims; the latest first."""
        return [
            row[0] for row in await (await connection.execute(self._subjects.encode(), (list(claim_ids),))).fetchall()
        ]

    async def _select(
        self, connection: Connection, bounds: str, order: str, parameters: dict[str, Any], wanted: Wanted
    ) -> list[Entry]:
        given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
        parameters = parameters | given
        parameters |= await self._positions(connection, {name: given[name] for name in _LEEWAY if name in given})
        narrow = [condition for name, condition in self._narrow.items() if name in given]
        source = self._entries
        if narrow:  # OFFSET 0 keeps the planner from walking through the log in order all the same
            source = f"(SELECT {ENTRIES.names} FROM {source} WHERE {' AND '.join(narrow)} OFFSET 0) AS e"  # noqa: S608
        conditions = [bounds, *(condition for name, condition in _WIDE.items() if name in given)]
        query = f"SELECT {ENTRIES.names} FROM {source} WHERE {' AND '.join(conditions)}"  # noqa: S608 - constants
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(f"{query} ORDER BY position {order} LIMIT %(limit)s".encode(), parameters, prepare=False)
        return [Entry(*row) for row in await reading.fetchall()]

    async def _positions(self, connection: Connection, times: dict[str, datetime]) -> dict[str, Position]:
        """For each time the first position from which on nothing is older, all in one round trip."""
        if not times:
            return {}
        moved = {name: _moved(at, _LEEWAY[name]) for name, at in times.items()}
        query = "SELECT " + ", ".join(self._first_at[name] for name in times)
        row = await (await connection.execute(query.encode(), moved)).fetchone()
        assert row is not None  # noqa: S101 - a SELECT without FROM has a row
        return {f"{name}_position": position for name, position in zip(times, row, strict=True)}


def _moved(at: datetime, by: timedelta) -> datetime:
    """A time earlier or later, as far as there is one."""
    try:
        return at + by
    except OverflowError:
        return at


_encode = msgspec.json.Encoder().encode


def _row(recorded: Recorded) -> tuple[Any, ...]:
    event, position, topic, recorded_at, correlation_id, causation_position, actor, trace = recorded
    fields = vars(event)
    details = {
        name: value.isoformat() if type(value) is datetime else value  # with "+00:00", as ever
        for name, value in fields.items()
        if name not in _NOT_DETAILS and not (value is None and name in _LATER)
    }
    # An event of any other stream than a registration's own names its registration, if it is about one.
    stream_id, named = event.originator_id, fields.get("registration_id")
    return (
        position, recorded_at, topic, stream_id, event.originator_version,
        stream_id if named is None else uuid_of(named), actor, correlation_id, causation_position, trace,
        _encode(details).decode() if details else "{}",
    )  # fmt: skip
