"""The audit log: searched, and exported with the blocks of the hash chain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypedDict
from uuid import UUID

from domain.recorded import Position
from entrypoints.queries.registrations import claims_of
from infrastructure.audit.blocks import blocks_of
from infrastructure.crypto.keyring import Keyring
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import QueryPool
from projections.audit import Audit, Entry, Wanted
from projections.paging import Page

EXPORTED_AT_ONCE: Final = 1_000
"""Entries in one query."""


class NoSecrets(Exception):
    """What is asked for an address needs the keys from which its hash is derived."""


class Filters(TypedDict, total=False):
    """What is searched for; what is None does not matter.

    Attributes:
        email: only what is about this address.
        until: excluded.
    """

    registration_id: UUID | None
    email: str | None
    actor: str | None
    topic: str | None
    correlation_id: UUID | None
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class ExportedEntry:
    """An entry with its place in the hash chain.

    Attributes:
        block: the last position of its block.
        previous_hash: of the block before, in hexadecimal.
        type: of the event.
        details: its other fields, without personal data.
    """

    position: Position
    block: Position
    previous_hash: str
    recorded_at: datetime
    type: str
    stream_id: UUID
    version: int
    registration_id: UUID
    actor: str
    correlation_id: UUID
    causation_position: Position | None
    trace: str | None
    details: dict[str, Any]


class AuditQueries:
    """
    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
        NoSecrets: an address was given, and there is no keyring.
    """

    def __init__(self, pool: QueryPool, keyring: Keyring | None) -> None:
        """
        Args:
            keyring: None where the process knows no secrets.
        """
        self._pool = pool
        self._keyring = keyring
        self._audit = Audit()

    async def search(self, filters: Filters, *, cursor: str | None, limit: int) -> Page[Entry]:
        """Events, newest first.

        Raises:
            ValueError: malformed cursor.
        """
        wanted = self._wanted(filters)
        return await self._pool.ask(
            lambda connection: self._audit.search(connection, cursor=cursor, limit=limit, **wanted)
        )

    async def exported(
        self, filters: Filters, on_events: Callable[[Position, Position], None]
    ) -> AsyncGenerator[list[ExportedEntry], None]:
        """Every event up to where the read model is now, oldest first, in pieces.

        Args:
            on_events: called with the position that is reached, and that of the end.
        """
        wanted = self._wanted(filters)
        end = await self._pool.ask(self._audit.end)
        after = 0

        async def select(connection: Connection) -> list[ExportedEntry]:
            found = await self._audit.in_order(connection, after=after, upto=end, limit=EXPORTED_AT_ONCE, **wanted)
            return await _in_chain(connection, found)

        while piece := await self._pool.ask(select):
            yield piece
            after = piece[-1].position
            on_events(after, end)
            if len(piece) < EXPORTED_AT_ONCE:
                break
        on_events(end, end)

    def claims_of(self, email: str) -> list[UUID]:
        """The claims of an address."""
        if self._keyring is None:
            raise NoSecrets
        return claims_of(self._keyring, email)

    def _wanted(self, filters: Filters) -> Wanted:
        email = filters.get("email")
        return Wanted(
            registration_id=filters.get("registration_id"),
            claim_ids=None if email is None else self.claims_of(email),
            actor=filters.get("actor"),
            topic=filters.get("topic"),
            correlation_id=filters.get("correlation_id"),
            since=filters.get("since"),
            until=filters.get("until"),
        )


async def _in_chain(connection: Connection, found: Sequence[Entry]) -> list[ExportedEntry]:
    blocks = await blocks_of(connection, [one.position for one in found])
    return [
        ExportedEntry(
            position=one.position,
            block=blocks[one.position].last,
            previous_hash=blocks[one.position].previous_hash,
            recorded_at=one.recorded_at,
            type=one.topic,
            stream_id=one.stream_id,
            version=one.version,
            registration_id=one.registration_id,
            actor=one.actor,
            correlation_id=one.correlation_id,
            causation_position=one.causation_position,
            trace=one.trace,
            details=one.details,
        )
        for one in found
    ]
