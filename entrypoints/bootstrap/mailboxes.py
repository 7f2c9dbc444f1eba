"""Which mailbox a registration's address leads to, where no event of it says so."""

from __future__ import annotations

from application.addresses import canonical_address, mailbox_guess
from domain.mailbox import MailboxId
from domain.registration import Registration
from infrastructure.crypto.keyring import Keyring
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import QueryPool


async def mailbox_of(pool: QueryPool, keyring: Keyring, registration: Registration) -> MailboxId | None:
    """By what is known of its person; None if that was erased.

    Raises:
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
        WrongMasterKey: the person's key cannot be opened.
    """

    async def ask(connection: Connection) -> bytes | None:
        found = await connection.execute(
            "SELECT wrapped FROM public.personal_keys WHERE registration_id = %s", (registration.id,)
        )
        row = await found.fetchone()
        return None if row is None else row[0]

    wrapped = await pool.ask(ask)
    if wrapped is None:
        return None
    person = keyring.open(registration.id, registration.personal_data, wrapped)
    return keyring.mailbox_id(mailbox_guess(canonical_address(person.email)))
