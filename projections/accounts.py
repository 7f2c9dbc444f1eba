"""Read model `accounts`: the active accounts, which a login service reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from domain.recorded import Recorded
from domain.registration import Registration

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

_ADD_CANDIDATES = """
    INSERT INTO candidates (registration_id, claim_id, sealed, locale)
    SELECT * FROM unnest(%b::uuid[], %b::text[]::uuid[], %b::text[], %b::text[])
"""

_ACTIVATE = """
    WITH activated AS (
        DELETE FROM candidates AS c USING unnest(%b::uuid[], %b::timestamptz[]) AS u (registration_id, activated_at)
        WHERE c.registration_id = u.registration_id
        RETURNING c.registration_id, c.claim_id, c.sealed, c.locale, u.activated_at
    )
    INSERT INTO accounts (registration_id, claim_id, sealed, locale, activated_at) SELECT * FROM activated
    RETURNING registration_id
"""

_REMOVE = """
    WITH over AS (DELETE FROM candidates WHERE registration_id = ANY (%(ended)b))
    DELETE FROM accounts WHERE registration_id = ANY (%(ended)b)
"""

_ACCOUNT = """
    SELECT a.registration_id, a.claim_id, a.sealed, k.wrapped, a.locale, a.activated_at
    FROM read_accounts.accounts AS a LEFT JOIN public.personal_keys AS k USING (registration_id)
"""


@dataclass(frozen=True, slots=True)
class Account:
    """
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


class Accounts:
    """A row per active account, from its activation until it is erased."""

    name = "accounts"
    topics: tuple[str, ...] | None = (
        Registration.UserRegistered.TOPIC,
        Registration.AccountActivated.TOPIC,
        Registration.RegistrationCancelled.TOPIC,
        Registration.PersonalDataErased.TOPIC,
    )
    tables: tuple[str, ...] = (TABLES,)

    async def apply(self, connection: psycopg.AsyncConnection[Any], events: Sequence[Recorded]) -> None:
        """Write what a batch of events changes.

        Raises:
            LookupError: an account was activated whose registration never began.
        """
        begun: dict[UUID, tuple[UUID, str, str, str]] = {}
        activated: dict[UUID, datetime] = {}
        ended: set[UUID] = set()
        for recorded in events:
            match recorded.event:
                # A duplicate never becomes an account.
                case Registration.UserRegistered(duplicate_of=None) as event:
                    begun[event.originator_id] = (
                        event.originator_id, event.claim_id, event.personal_data, event.locale,
                    )  # fmt: skip
                case Registration.AccountActivated() as event:
                    activated[event.originator_id] = event.timestamp
                case Registration.RegistrationCancelled() | Registration.PersonalDataErased() as event:
                    ended.add(event.originator_id)

        # In the order of a registration's life, so it does not matter how much of it is in this batch.
        # Not prepared: a plan made and kept while the tables were empty would scan them for ever.
        cursor = connection.cursor(binary=True)
        if begun:
            columns = [list(column) for column in zip(*begun.values(), strict=True)]
            await cursor.execute(_ADD_CANDIDATES, columns)
        if activated:
            await cursor.execute(_ACTIVATE, (list(activated), list(activated.values())), prepare=False)
            # Fetched, not counted by `rowcount`, which a pipeline does not know yet.
            if (missing := len(activated) - len(await cursor.fetchall())) > 0:
                raise LookupError(f"{missing} of these accounts never began as a registration")
        if ended:
            await cursor.execute(_REMOVE, {"ended": list(ended)}, prepare=False)

    @staticmethod
    async def by_address(connection: psycopg.AsyncConnection[Any], claim_id: UUID) -> Account | None:
        """The account that holds an address."""
        return await _one(connection, " WHERE a.claim_id = %s ORDER BY a.activated_at DESC LIMIT 1", claim_id)

    @staticmethod
    async def by_id(connection: psycopg.AsyncConnection[Any], registration_id: UUID) -> Account | None:
        """The account that this registration became."""
        return await _one(connection, " WHERE a.registration_id = %s", registration_id)


async def _one(connection: psycopg.AsyncConnection[Any], where: str, key: UUID) -> Account | None:
    cursor = connection.cursor(binary=True, row_factory=tuple_row)
    await cursor.execute(_ACCOUNT + where, (key,))
    row = await cursor.fetchone()
    return None if row is None else Account(*row)
