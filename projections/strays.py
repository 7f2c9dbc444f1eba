"""Part of read model `mail`: the foreign messages among the dead letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from domain.recorded import Position, Told
from domain.stray_message import StrayMessage
from projections.paging import Page, before, page
from projections.table import Connection, Table

TABLES = """\
    CREATE TABLE IF NOT EXISTS strays (
        id           uuid        PRIMARY KEY,
        digest       text        NOT NULL,
        reason       text        NOT NULL,
        died_of      text        NOT NULL,
        size         integer     NOT NULL,
        content_type text,
        fields       text        NOT NULL,
        other_fields integer     NOT NULL,
        kept_at      timestamptz NOT NULL,
        position     bigint      NOT NULL UNIQUE,
        discarded    boolean     NOT NULL
    );
    CREATE INDEX IF NOT EXISTS strays_kept ON strays (position) WHERE NOT discarded;
"""
"""The end of the first script of read model `mail`."""

STRAYS = Table(
    "strays",
    {
        "id": "uuid",
        "digest": "text",
        "reason": "text",
        "died_of": "text",
        "size": "integer",
        "content_type": "text",
        "fields": "text",
        "other_fields": "integer",
        "kept_at": "timestamptz",
        "position": "bigint",
        "discarded": "boolean",
    },
    key="id",
)

_DISCARD = "UPDATE strays SET discarded = true WHERE id = ANY (%b::uuid[]) RETURNING id"


@dataclass(frozen=True, slots=True)
class Stray:
    """A foreign message among the dead letters, described in our words: nothing that somebody else wrote.

    Attributes:
        digest: SHA-256 of its bytes, in hexadecimal.
        reason: what it lacks.
        died_of: how it came among the dead letters, by RabbitMQ's word; "unknown" if somebody put it there.
        size: in bytes.
        fields: those of a mail request that it has, separated by commas; `other_fields`: how many more at its top.
        position: of the event that keeps it; the order of lists.
    """

    id: UUID
    digest: str
    reason: str
    died_of: str
    size: int
    content_type: str | None
    fields: str
    other_fields: int
    kept_at: datetime
    position: Position
    discarded: bool


class _Batch:
    def __init__(self) -> None:
        self.kept: list[Stray] = []
        self.discarded: list[UUID] = []

    def keep(self, event: StrayMessage.StrayMessageKept, position: Position) -> None:
        stray = Stray(
            event.originator_id, event.digest, event.reason, event.died_of, event.size, event.content_type,
            event.fields, event.other_fields, event.timestamp, position, discarded=False,
        )  # fmt: skip
        self.kept.append(stray)

    def discard(self, event: StrayMessage.StrayMessageDiscarded, _: Position) -> None:
        self.discarded.append(event.originator_id)


CHANGES: dict[Any, Callable[[_Batch, Any, Position], None]] = {
    StrayMessage.StrayMessageKept: _Batch.keep,
    StrayMessage.StrayMessageDiscarded: _Batch.discard,
}


async def apply(cursor: psycopg.AsyncCursor[Any], events: Sequence[Told]) -> None:
    """Write what a batch of these events changes.

    Raises:
        LookupError: a stray message was discarded that was never kept.
    """
    batch = _Batch()
    for recorded in events:
        CHANGES[type(recorded.event)](batch, recorded.event, recorded.position)
    if batch.kept:
        await cursor.execute(STRAYS.insert, STRAYS.arrays(batch.kept))
    if batch.discarded:
        await cursor.execute(_DISCARD, (batch.discarded,))
        if len(await cursor.fetchall()) < len(batch.discarded):
            raise LookupError("a stray message that was never kept was discarded")


class Strays:
    """What waits to be looked at: the stray messages that nobody has discarded."""

    def __init__(self, schema: str) -> None:
        """Args: schema: that of the read model `mail`."""
        self._strays = STRAYS.within(schema)

    async def search(self, connection: Connection, *, cursor: str | None = None, limit: int = 50) -> Page[Stray]:
        """The latest first.

        Raises:
            ValueError: malformed cursor.
        """
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(
            f"SELECT {STRAYS.names} FROM {self._strays} WHERE NOT discarded AND position < %s"  # noqa: S608 - a constant
            " ORDER BY position DESC LIMIT %s",
            (before(cursor), limit + 1),
            prepare=False,
        )
        found = [Stray(*row) for row in await reading.fetchall()]
        return page(found, limit, lambda stray: stray.position)

    async def count(self, connection: Connection) -> int:
        """How many there are."""
        reading = connection.cursor(binary=True, row_factory=tuple_row)
        await reading.execute(f"SELECT count(*) FROM {self._strays} WHERE NOT discarded")  # noqa: S608 - a constant
        row = await reading.fetchone()
        return 0 if row is None else int(row[0])
