"""Read model `deadlines`: when to look at each unended registration again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from domain.mail_saga import MailSaga
from domain.recorded import Position, Recorded

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

_SET = """
    INSERT INTO deadlines (registration_id, look_again_at, position, correlation_id, trace)
    SELECT * FROM unnest(%b::text[]::uuid[], %b::timestamptz[], %b::bigint[], %b::uuid[], %b::text[])
    ON CONFLICT (registration_id) DO UPDATE
    SET look_again_at = excluded.look_again_at, position = excluded.position, correlation_id = excluded.correlation_id,
        trace = excluded.trace
"""

# This and the queries are planned each time: a plan made and kept while the table was empty would scan it for ever.
_REMOVE = "DELETE FROM deadlines WHERE registration_id = ANY (%b::text[]::uuid[])"


@dataclass(frozen=True, slots=True)
class DueLook:
    """A registration whose saga is to look again.

    Attributes:
        correlation_id, position, trace: of the saga's event that set the date; no trace if it was set before the table
            kept it.
    """

    registration_id: UUID
    correlation_id: UUID
    position: Position
    trace: str | None


class Deadlines:
    """A row per mail saga that has not ended."""

    name = "deadlines"
    topics: tuple[str, ...] | None = tuple(
        event.TOPIC
        for event in (
            MailSaga.MailSagaStarted,
            MailSaga.MailRequested,
            MailSaga.RetryScheduled,
            MailSaga.CodeFoundDead,
            MailSaga.FreshCodeAsked,
            MailSaga.EndAwaited,
            MailSaga.UndoDecided,
            MailSaga.MailSagaEnded,
        )
    )
    tables: tuple[str, ...] = (TABLES, TRACE)

    async def apply(self, connection: psycopg.AsyncConnection[Any], events: Sequence[Recorded]) -> None:
        """Write what a batch of events changes."""
        waiting: dict[str, tuple[str, datetime, Position, UUID, str | None]] = {}
        ended: set[str] = set()
        for recorded in events:
            match recorded.event:
                case MailSaga.MailSagaStarted(registration_id=key, ends_at=at):
                    waiting[key] = (key, at, recorded.position, recorded.correlation_id, recorded.trace)
                case MailSaga.MailSagaEnded(registration_id=key):
                    waiting.pop(key, None)
                    ended.add(key)
                case (
                    MailSaga.MailRequested(registration_id=key, look_again_at=at)
                    | MailSaga.RetryScheduled(registration_id=key, look_again_at=at)
                    | MailSaga.CodeFoundDead(registration_id=key, look_again_at=at)
                    | MailSaga.FreshCodeAsked(registration_id=key, look_again_at=at)
                    | MailSaga.EndAwaited(registration_id=key, look_again_at=at)
                    | MailSaga.UndoDecided(registration_id=key, look_again_at=at)
                ):
                    waiting[key] = (key, at, recorded.position, recorded.correlation_id, recorded.trace)

        cursor = connection.cursor(binary=True)
        if waiting:
            await cursor.execute(_SET, [list(column) for column in zip(*waiting.values(), strict=True)])
        if ended:
            await cursor.execute(_REMOVE, (list(ended),), prepare=False)

    @staticmethod
    async def due(connection: psycopg.AsyncConnection[Any], now: datetime, limit: int) -> list[DueLook]:
        """The registrations to look at now, the one that has waited longest first."""
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        await cursor.execute(
            "SELECT registration_id, correlation_id, position, trace FROM read_deadlines.deadlines"
            " WHERE look_again_at <= %s ORDER BY look_again_at, registration_id LIMIT %s",
            (now, limit),
            prepare=False,
        )
        return [DueLook(*row) for row in await cursor.fetchall()]

    @staticmethod
    async def overdue(connection: psycopg.AsyncConnection[Any], before: datetime) -> int:
        """How many registrations should have been looked at before this time and were not: these are stuck."""
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        await cursor.execute(
            "SELECT count(*) FROM read_deadlines.deadlines WHERE look_again_at < %s", (before,), prepare=False
        )
        row = await cursor.fetchone()
        return 0 if row is None else int(row[0])
