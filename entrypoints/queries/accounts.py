"""Accounts, for the login service of an application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from application.addresses import canonical_address
from application.ports import SealedPerson
from domain.recorded import Recorded
from domain.registration import Status
from entrypoints.queries.registrations import in_log
from infrastructure.crypto.keyring import Keyring
from infrastructure.event_store.reader import RecordedRow
from infrastructure.postgres.batching import Batcher
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.postgres.pool import QueryPool
from projections.accounts import Accounts
from projections.registrations import folded


@dataclass(frozen=True, slots=True)
class FoundAccount:
    """An active account, without what is personal about it."""

    registration_id: UUID
    locale: str
    activated_at: datetime
    has_password: bool


class AccountQueries:
    """Implements `application.ports.Persons`.

    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
        WrongMasterKey: the key of this person cannot be opened.
    """

    def __init__(
        self,
        pool: QueryPool,
        connection: ReconnectingConnection,
        *,
        keyring: Keyring,
        decode: Callable[[RecordedRow], Recorded],
    ) -> None:
        """
        Args:
            connection: of its own, as logins come in floods; it is opened with the first.
            decode: see `infrastructure.event_store.reader.LogReader.decode`.
        """
        self._pool = pool
        self._connection = connection
        self._keyring = keyring
        self._decode = decode
        self._accounts = Accounts()
        self._finds: Batcher[UUID, SealedPerson | None] = Batcher(
            self._find, name="accounts", max_batch=100, max_waiting=1000
        )

    async def close(self) -> None:
        await self._finds.close()
        await self._connection.close()

    async def by_address(self, email: str) -> FoundAccount | None:
        """The active account of an address, as the read model has it."""
        claim_id = self._keyring.claim_id(canonical_address(email))
        found = await self._pool.ask(lambda connection: self._accounts.by_address(connection, claim_id))
        if found is None or found.wrapped is None:
            return None
        person = self._keyring.open(found.registration_id, found.sealed, found.wrapped)
        return FoundAccount(
            found.registration_id, found.locale, found.activated_at, has_password=person.password_hash is not None
        )

    async def sealed(self, registration_id: UUID) -> SealedPerson | None:
        """See `application.ports.Persons`. From the log: a password that was just set counts, and the former does not,
        however far behind the read model is."""
        return await self._finds.do(registration_id)

    async def _find(self, wanted: Sequence[UUID]) -> Sequence[SealedPerson | None]:
        read = await self._connection.execute_idempotent(partial(self._read, list(set(wanted))))
        return [read.get(registration_id) for registration_id in wanted]

    async def _read(self, ids: Sequence[UUID], connection: Connection) -> dict[UUID, SealedPerson]:
        found = {}
        for events, wrapped in await in_log(connection, ids, self._decode):
            view = folded(events, wrapped)
            if view.sealed is not None:
                is_active = view.status is Status.ACTIVE
                is_proven = is_active or view.status is Status.VERIFIED
                found[view.registration_id] = SealedPerson(is_proven, is_active, view.sealed, wrapped)
        return found
