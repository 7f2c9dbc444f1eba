"""Read model `accounts`: the active accounts, which a login service reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import tuple_row

from domain.recorded import Told
from domain.registration import Registration
from projections.table import Connection, Table, schema_of

# An account's address and personal data are in the first event of its registration: kept as a candidate until the
# registration turns into an account or ends.
TABLES = """
    CREATE TABLE IF NOT EXISTS candidates (
        registration_id uuid PRIMARY KEY,
        claim_id        uuid NOT NULL,
        sealed          text NOT NULL,
        locale          text NOT NULL
    );
    CREATE TABLE IF NOT EXISTS accounts (
        registration_id uuid        PRIMARY KEY,
        claim_id        uuid        NOT NULL, -- not unique here: that is the log's business
        sealed          text        NOT NULL,
        locale          text        NOT NULL,
        activated_at    timestamptz NOT NULL
    );
    CREATE INDEX IF NOT EXISTS accounts_of_claim ON accounts (claim_id, activated_at);
"""

CANDIDATES = Table(
    "candidates",
    {"registration_id": "uuid", "claim_id": "uuid", "sealed": "text", "locale": "text"},
    key="registration_id",
    as_text=("claim_id",),
)

ACCOUNTS = Table("accounts", CANDIDATES.columns | {"activated_at": "timestamptz"}, key="registration_id")

_ACTIVATE = f"""
    WITH activated AS (
        DELETE FROM candidates AS c USING unnest(%b::uuid[], %b::timestamptz[]) AS u (registration_id, activated_at)
        WHERE c.registration_id = u.registration_id
        RETURNING c.registration_id, c.claim_id, c.sealed, c.locale, u.activated_at
    )
    INSERT INTO accounts ({ACCOUNTS.names}) SELECT * FROM activated
    RETURNING registration_id
"""  # noqa: S608 - a constant

_RESEAL = """
    WITH resealed AS (SELECT unnest(%(ids)b::uuid[]) AS registration_id, unnest(%(sealed)b::text[]) AS sealed),
    verified AS (
        UPDATE candidates AS c SET sealed = r.sealed FROM resealed AS r WHERE c.registration_id = r.registration_id
    )
    UPDATE accounts AS a SET sealed = r.sealed FROM resealed AS r WHERE a.registration_id = r.registration_id
"""

_REMOVE = """
    WITH over AS (DELETE FROM candidates WHERE registration_id = ANY (%(ended)b))
    DELETE FROM accounts WHERE registration_id = ANY (%(ended)b)
"""

_ACCOUNT = """
    SELECT a.registration_id, a.claim_id, a.sealed, k.wrapped, a.locale, a.activated_at
    FROM {accounts} AS a LEFT JOIN public.personal_keys AS k USING (registration_id)
"""


@dataclass(frozen=True, slots=True)
class Account:
    """An active account.

    Attributes:
        sealed, wrapped: personal data with the password hash, and the key that opens it, itself wrapped by the
            master key; `wrapped` is None for the moment between an erasure and its arrival here.
    """

    registration_id: UUID
    claim_id: UUID
    sealed: str = field(repr=False)
    wrapped: bytes | None = field(repr=False)
    locale: str
    activated_at: datetime


class _Batch:
    """What some events change."""

    def __init__(self) -> None:
        self.begun: dict[UUID, tuple[UUID, str, str, str]] = {}
        self.imported: dict[UUID, tuple[UUID, str, str, str, datetime]] = {}
        self.activated: dict[UUID, datetime] = {}
        self.resealed: dict[UUID, str] = {}
        self.ended: set[UUID] = set()
        self.reopened = False

    def registered(self, event: Registration.UserRegistered | Registration.RegistrationReopened) -> None:
        if event.duplicate_of is None:  # a duplicate never becomes an account
            row = (event.originator_id, event.claim_id, event.personal_data, event.locale)
            self.begun[event.originator_id] = row

    def taken_over(self, event: Registration.UserImported) -> None:
        row = (event.originator_id, event.claim_id, event.personal_data, event.locale)
        if event.verified:
            self.imported[event.originator_id] = (*row, event.timestamp)
        else:
            self.begun[event.originator_id] = row

    def began_again(self, event: Registration.RegistrationReopened) -> None:
        self.registered(event)
        self.ended.discard(event.originator_id)
        self.reopened = True

    def became_active(self, event: Registration.AccountActivated) -> None:
        self.activated[event.originator_id] = event.timestamp

    def has_another_password(self, event: Registration.PasswordSet | Registration.PasswordRehashed) -> None:
        self.resealed[event.originator_id] = event.personal_data

    def over(self, event: Registration.RegistrationCancelled | Registration.PersonalDataErased) -> None:
        self.ended.add(event.originator_id)


_CHANGES: dict[Any, Callable[[_Batch, Any], None]] = {
    Registration.UserRegistered: _Batch.registered,
    Registration.UserImported: _Batch.taken_over,
    Registration.AccountActivated: _Batch.became_active,
    Registration.PasswordSet: _Batch.has_another_password,
    Registration.PasswordRehashed: _Batch.has_another_password,
    Registration.RegistrationCancelled: _Batch.over,
    Registration.RegistrationReopened: _Batch.began_again,
    Registration.PersonalDataErased: _Batch.over,
}


class Accounts:
    """A row per active account, from its activation until it is erased."""

    name = "accounts"
    topics: tuple[str, ...] | None = tuple(event.TOPIC for event in _CHANGES)
    tables: tuple[str, ...] = (TABLES,)
    metadata = False

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema = schema or schema_of(self.name)
        self._account = _ACCOUNT.format(accounts=ACCOUNTS.within(schema))

    async def apply(self, connection: Connection, events: Sequence[Told]) -> None:
        """Write what a batch of events changes.

        Raises:
            LookupError: an account was activated whose registration never started.
        """
        batch = _Batch()
        for recorded in events:
            _CHANGES[type(recorded.event)](batch, recorded.event)

        # In the order of a registration's life, so it does not matter how much of it is in this batch.
        # Not prepared: a plan made and kept while the tables were empty would scan them for ever.
        cursor = connection.cursor(binary=True)
        if batch.begun:
            # The end of one that began again may be in this batch, too: then its row is still there.
            write = CANDIDATES.upsert if batch.reopened else CANDIDATES.insert
            await cursor.execute(write, CANDIDATES.arrays(batch.begun.values()))
        if batch.imported:
            await cursor.execute(ACCOUNTS.insert, ACCOUNTS.arrays(batch.imported.values()))
        if activated := batch.activated:
            await cursor.execute(_ACTIVATE, (list(activated), list(activated.values())), prepare=False)
            # Fetched, not counted by `rowcount`, which a pipeline does not know yet.
            if (missing := len(activated) - len(await cursor.fetchall())) > 0:
                raise LookupError(f"{missing} of these accounts never started as a registration")
        if resealed := batch.resealed:
            parameters = {"ids": list(resealed), "sealed": list(resealed.values())}
            await cursor.execute(_RESEAL, parameters, prepare=False)
        if batch.ended:
            await cursor.execute(_REMOVE, {"ended": list(batch.ended)}, prepare=False)

    async def by_address(self, connection: Connection, claim_id: UUID) -> Account | None:
        """The account that holds an address."""
        return await self._one(connection, " WHERE a.claim_id = %s ORDER BY a.activated_at DESC LIMIT 1", claim_id)

    async def by_id(self, connection: Connection, registration_id: UUID) -> Account | None:
        """The account that this registration became."""
        return await self._one(connection, " WHERE a.registration_id = %s", registration_id)

    async def _one(self, connection: Connection, where: str, key: UUID) -> Account | None:
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        await cursor.execute(self._account + where, (key,))
        row = await cursor.fetchone()
        return None if row is None else Account(*row)
