"""Read model `audit`: who did what, when, and because of what; every event of the log, searchable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from psycopg.rows import tuple_row

from domain.recorded import AnyEvent, Position, Recorded
from domain.registration import PERSONAL_FIELDS, Registration
from projections.paging import Page, before, page
from projections.table import Connection, Table, schema_of

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

_FILTERS = {
    "registration_id": "registration_id = %(registration_id)s",
    "claim_ids": "registration_id = ANY (ARRAY("
    "SELECT s.registration_id FROM {subjects} AS s WHERE s.claim_id = ANY (%(claim_ids)s)))",
    "actor": "actor = %(actor)s",
    "topic": "topic = %(topic)s",
    "correlation_id": "correlation_id = %(correlation_id)s",
    "since": "recorded_at >= %(since)s",
    "until": "recorded_at < %(until)s",
}

_NOT_DETAILS = frozenset(
    {
        # In columns of their own.
        "originator_id", "originator_version", "originator_topic", "timestamp", "registration_id",
        *PERSONAL_FIELDS,
    }
)  # fmt: skip


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


class Audit:
    """A row per event."""

    name = "audit"
    topics: tuple[str, ...] | None = None
    tables: tuple[str, ...] = (TABLES,)

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema = schema or schema_of(self.name)
        self._search = f"SELECT {ENTRIES.names} FROM {ENTRIES.within(schema)} WHERE position < %(before)s"  # noqa: S608 - a constant
        subjects = SUBJECTS.within(schema)
        self._filters = {name: condition.format(subjects=subjects) for name, condition in _FILTERS.items()}

    async def apply(self, connection: Connection, events: Sequence[Recorded]) -> None:
        """Add a batch of events."""
        if not events:
            return
        cursor = connection.cursor(binary=True)
        await cursor.execute(ENTRIES.insert, ENTRIES.arrays(_row(recorded) for recorded in events))
        begun = [
            (recorded.event.originator_id, recorded.event.claim_id)
            for recorded in events
            if isinstance(recorded.event, Registration.UserRegistered)
        ]
        if begun:
            await cursor.execute(SUBJECTS.insert, SUBJECTS.arrays(begun))

    async def search(
        self,
        connection: Connection,
        *,
        registration_id: UUID | None = None,
        claim_ids: Sequence[UUID] | None = None,
        actor: str | None = None,
        topic: str | None = None,
        correlation_id: UUID | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Entry]:
        """What happened, newest first; what is None does not matter.

        Args:
            claim_ids: those of an address: the address's own and the one of its duplicates.
            since, until: time of recording, `until` itself excluded.

        Raises:
            ValueError: malformed cursor.
        """
        wanted: dict[str, Any] = {
            "registration_id": registration_id,
            "claim_ids": None if claim_ids is None else list(claim_ids),
            "actor": actor,
            "topic": topic,
            "correlation_id": correlation_id,
            "since": since,
            "until": until,
        }
        filters = "".join(f" AND {self._filters[name]}" for name, value in wanted.items() if value is not None)
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(
            self._search + filters + " ORDER BY position DESC LIMIT %(limit)s",
            wanted | {"before": before(cursor), "limit": limit + 1},
            prepare=False,
        )
        found = [Entry(*row) for row in await reading.fetchall()]
        return page(found, limit, lambda entry: entry.position)


_encode = msgspec.json.Encoder().encode


def _row(recorded: Recorded) -> tuple[Any, ...]:
    event = recorded.event
    details = {
        name: value.isoformat() if isinstance(value, datetime) else value  # with "+00:00", as ever
        for name, value in vars(event).items()
        if name not in _NOT_DETAILS
    }
    return (
        recorded.position, recorded.recorded_at, recorded.topic, event.originator_id, event.originator_version,
        _registration_of(event), recorded.actor, recorded.correlation_id, recorded.causation_position, recorded.trace,
        _encode(details).decode() if details else "{}",
    )  # fmt: skip


def _registration_of(event: AnyEvent) -> UUID:
    """An event of any other stream than a registration's own names its registration, if it is about one."""
    named: str | None = getattr(event, "registration_id", None)
    return event.originator_id if named is None else UUID(named)
