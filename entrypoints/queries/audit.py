"""The audit log."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from entrypoints.queries.registrations import claims_of
from infrastructure.crypto.keyring import Keyring
from infrastructure.postgres.pool import QueryPool
from projections.audit import Audit, Entry
from projections.paging import Page


class AuditQueries:
    """
    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(self, pool: QueryPool, keyring: Keyring) -> None:
        self._pool = pool
        self._keyring = keyring
        self._audit = Audit()

    async def search(
        self,
        *,
        registration_id: UUID | None,
        email: str | None,
        actor: str | None,
        topic: str | None,
        correlation_id: UUID | None,
        since: datetime | None,
        until: datetime | None,
        cursor: str | None,
        limit: int,
    ) -> Page[Entry]:
        """Events, newest first.

        Args:
            email: only what is about this address.
            until: excluded.

        Raises:
            ValueError: malformed cursor.
        """
        claim_ids = None if email is None else claims_of(self._keyring, email)
        return await self._pool.ask(
            lambda connection: self._audit.search(
                connection,
                registration_id=registration_id,
                claim_ids=claim_ids,
                actor=actor,
                topic=topic,
                correlation_id=correlation_id,
                since=since,
                until=until,
                cursor=cursor,
                limit=limit,
            )
        )
