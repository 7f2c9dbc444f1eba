"""Read model `deadlines`: when to look at each unended registration again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import tuple_row

from domain.mail_saga import MailSaga
from domain.recorded import Position, Recorded
from projections.table import Connection, Table, schema_of

TABLES = """
    CREATE TABLE IF NOT EXISTS deadlines (
        registration_id uuid        PRIMARY KEY,
        look_again_at   timestamptz NOT NULL,
        position        bigint      NOT NULL,
        correlation_id  uuid        NOT NULL
    );
    CREATE INDEX IF NOT EXISTS deadlines_in_order ON deadlines (look_again_at, registration_id);
"""

TRACE = """
    ALTER TABLE deadlines ADD COLUMN IF NOT EXISTS trace text;
"""

DEADLINES = Table(
    "deadlines",
    {
        "registration_id": "uuid",
        "look_again_at": "timestamptz",
        "position": "bigint",
        "correlation_id": "uuid",
        "trace": "text",
    },
    key="registration_id",
    as_text=("registration_id",),
)

# This and the queries are planned each time: a plan made and kept while the table was empty would scan it for ever.
_REMOVE = "DELETE FROM deadlines WHERE registration_id = ANY (%b::text[]::uuid[])"


_REQUESTED = MailSaga.MailRequested.TOPIC

# While mails wait for their turn, the relay says after which position (`infrastructure.followers.turns`): there is
# nothing to be seen yet of those that were requested after it. Hardly ever is there such a row, and then one look does.
_BUT_WAITING = """
    AND NOT (d.position > coalesce(
            (SELECT f.position FROM public.followers AS f WHERE f.name = 'relay__waiting'), 9223372036854775807)
        AND EXISTS (SELECT FROM public.events AS e WHERE e.notification_id = d.position AND e.topic = %(requested)s))
"""


_LOOK = "registration_id, correlation_id, position, trace, look_again_at"


@dataclass(frozen=True, slots=True)
class DueLook:
    """A registration whose saga is to look again.

    Attributes:
        due_at: since when.
        correlation_id, position, trace: of the saga's event that set the date; no trace if it was set before the table
            kept it.
    """

    registration_id: UUID
    correlation_id: UUID
    position: Position
    trace: str | None
    due_at: datetime


class _Batch:
    """What some events change, by the registration's id as their text has it."""

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[str, datetime, Position, UUID, str | None]] = {}
        self.ended: set[str] = set()

    def started(self, recorded: Recorded, event: MailSaga.MailSagaStarted) -> None:
        self._wait(recorded, event.registration_id, event.ends_at)

    def began_again(self, recorded: Recorded, event: MailSaga.MailSagaReopened) -> None:
        self.ended.discard(event.registration_id)
        self._wait(recorded, event.registration_id, event.ends_at)

    def went_on(
        self,
        recorded: Recorded,
        event: MailSaga.MailRequested
        | MailSaga.RetryScheduled
        | MailSaga.CodeFoundDead
        | MailSaga.FreshCodeAsked
        | MailSaga.EndAwaited
        | MailSaga.UndoDecided,
    ) -> None:
        self._wait(recorded, event.registration_id, event.look_again_at)

    def over(self, _: Recorded, event: MailSaga.MailSagaEnded) -> None:
        self.waiting.pop(event.registration_id, None)
        self.ended.add(event.registration_id)

    def _wait(self, recorded: Recorded, key: str, until: datetime) -> None:
        self.waiting[key] = (key, until, recorded.position, recorded.correlation_id, recorded.trace)


_CHANGES: dict[Any, Callable[[_Batch, Recorded, Any], None]] = {
    MailSaga.MailSagaStarted: _Batch.started,
    MailSaga.MailRequested: _Batch.went_on,
    MailSaga.RetryScheduled: _Batch.went_on,
    MailSaga.CodeFoundDead: _Batch.went_on,
    MailSaga.FreshCodeAsked: _Batch.went_on,
    MailSaga.EndAwaited: _Batch.went_on,
    MailSaga.UndoDecided: _Batch.went_on,
    MailSaga.MailSagaReopened: _Batch.began_again,
    MailSaga.MailSagaEnded: _Batch.over,
}


class Deadlines:
    """A row per mail saga that has not ended."""

    name = "deadlines"
    topics: tuple[str, ...] | None = tuple(event.TOPIC for event in _CHANGES)
    tables: tuple[str, ...] = (TABLES, TRACE)
    metadata = True

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema or schema_of(self.name)
        self._deadlines = DEADLINES.within(self.schema)

    async def apply(self, connection: Connection, events: Sequence[Recorded]) -> None:
        """Write what a batch of events changes."""
        batch = _Batch()
        for recorded in events:
            _CHANGES[type(recorded.event)](batch, recorded, recorded.event)

        cursor = connection.cursor(binary=True)
        if batch.waiting:
            await cursor.execute(DEADLINES.upsert, DEADLINES.arrays(batch.waiting.values()))
        if batch.ended:
            await cursor.execute(_REMOVE, (list(batch.ended),), prepare=False)

    async def due(self, connection: Connection, now: datetime, limit: int) -> list[DueLook]:
        """The registrations to look at by then, the one that has waited longest first; not those whose mail waits for
        its turn."""
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        await cursor.execute(
            f"SELECT {_LOOK} FROM {self._deadlines} AS d"  # noqa: S608 - a constant
            f" WHERE look_again_at <= %(now)s {_BUT_WAITING}"
            " ORDER BY look_again_at, registration_id LIMIT %(limit)s",
            {"now": now, "limit": limit, "requested": _REQUESTED},
            prepare=False,
        )
        return [DueLook(*row) for row in await cursor.fetchall()]

    async def overdue(self, connection: Connection, before: datetime) -> int:
        """How many registrations should have been looked at before this time and were not: these are stuck. Not those
        whose mail waits for its turn (`due`)."""
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        await cursor.execute(
            f"SELECT count(*) FROM {self._deadlines} AS d"  # noqa: S608 - a constant
            f" WHERE look_again_at < %(before)s {_BUT_WAITING}",
            {"before": before, "requested": _REQUESTED},
            prepare=False,
        )
        row = await cursor.fetchone()
        return 0 if row is None else int(row[0])
