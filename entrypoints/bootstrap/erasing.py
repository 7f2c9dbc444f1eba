"""The parts of `registrar erase`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID, uuid4

from application.addresses import canonical_address
from application.commands import EraseRegistration
from application.ports import Context
from domain.errors import UnknownRegistration
from domain.recorded import Actor, Position
from domain.registration import Registration
from entrypoints.bootstrap.core import Core, core_as_it_is
from entrypoints.bootstrap.erasures import note_key
from entrypoints.queries.registrations import claims_of
from infrastructure.postgres.connection import Connection
from infrastructure.settings.settings import Settings
from projections.registrations import Registrations

PROOF: Final = "registrar/erasure-proof"
"""First line of a proof of erasure."""

PAGE: Final = 200
"""Registrations of one address that are asked for at once."""

PATIENCE: Final = timedelta(seconds=10)
"""For the read model to catch up; in a service that runs it does within some hundredths of a second."""

_LOOK: Final = 0.05

_ERASED: Final = """
    SELECT e.notification_id, e.recorded_at, b.first_position, b.last_position, b.hash,
           EXISTS (SELECT FROM public.personal_keys AS k WHERE k.registration_id = e.originator_id),
           (SELECT position FROM public.head), clock_timestamp()
    FROM public.events AS e
    CROSS JOIN LATERAL (
        SELECT * FROM public.blocks AS o WHERE o.last_position >= e.notification_id ORDER BY o.last_position LIMIT 1
    ) AS b
    WHERE e.originator_id = %s AND e.topic = %s
"""


@dataclass(frozen=True, slots=True)
class Erased:
    """A registration that is erased, as the database says.

    Attributes:
        outcome: "erased" now, or "erased before".
        position, erased_at: of the event that says so.
        first, last, block_hash: the block of that event, in the hash chain.
        key_is_there: is the person's key in the database?
        end, looked_at: the last position of the log, and the database's time, as of that look.
    """

    registration_id: UUID
    outcome: str
    position: Position
    erased_at: datetime
    first: Position
    last: Position
    block_hash: str
    key_is_there: bool
    end: Position
    looked_at: datetime

    def text(self) -> str:
        """What a proof says; nothing in it is personal."""
        return (
            f"{PROOF}\nregistration {self.registration_id}\nposition {self.position}\n"
            f"erased {self.erased_at.astimezone(UTC).isoformat()}\n"
            f"block {self.first} to {self.last}, hash {self.block_hash}\n"
            f"no key of it at {self.looked_at.astimezone(UTC).isoformat()}, end of the log {self.end}\n"
        )


@dataclass(frozen=True, slots=True)
class ErasureDesk:
    """For a command that erases.

    Attributes:
        public_key: verifies a proof; in the form of C2SP's signed-note.
    """

    _core: Core = field(repr=False)

    @property
    def public_key(self) -> str:
        return str(note_key(self._core.keyring).verifier)

    async def caught_up(self, within: timedelta = PATIENCE) -> bool:
        """Does the read model that addresses are looked up in know by now what was recorded before this was called?"""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within.total_seconds()
        end = await self._core.store.head()
        while not await self._core.pool.ask(partial(_has_reached, end)):
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_LOOK)
        return True

    async def of_address(self, email: str) -> list[UUID]:
        """The registrations of an address that are not erased, pending and ended ones and duplicates included; as of
        the read model, see `caught_up`."""
        claims = claims_of(self._core.keyring, canonical_address(email))
        found: list[UUID] = []
        cursor: str | None = None
        while True:
            page = await self._core.pool.ask(
                partial(Registrations().search, claim_ids=claims, cursor=cursor, limit=PAGE)
            )
            found += [view.registration_id for view in page.items if view.sealed is not None]
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def erase(self, registration_id: UUID, reason: str) -> Erased:
        """Erase a person; without effect on one who is erased.

        Raises:
            UnknownRegistration: there is none with this id.
            Conflict, Unavailable: worth a repeat.
        """
        context = Context(Actor.OPERATOR, uuid4(), reason=reason)
        answer = await self._core.handlers.handle(EraseRegistration(registration_id=registration_id), context)
        outcome = "erased" if answer.recorded else "erased before"
        erased = await self._core.pool.ask(partial(_look, registration_id, outcome))
        if erased.key_is_there:  # of one erased before, by a restore of that table alone
            await self._core.pool.ask(partial(_destroy_key, registration_id))
            erased = await self._core.pool.ask(partial(_look, registration_id, "erased"))
        return erased

    def proof(self, erased: Erased) -> str:
        """A signed note that says so."""
        return note_key(self._core.keyring).sign(erased.text())


async def _has_reached(position: Position, connection: Connection) -> bool:
    cursor = await connection.execute(
        "SELECT FROM public.followers WHERE name = %s AND position >= %s", (Registrations.name, position)
    )
    return await cursor.fetchone() is not None


async def _look(registration_id: UUID, outcome: str, connection: Connection) -> Erased:
    cursor = await connection.execute(_ERASED, (registration_id, Registration.PersonalDataErased.TOPIC))
    row = await cursor.fetchone()
    if row is None:
        raise UnknownRegistration
    position, erased_at, first, last, block_hash, *rest = row
    return Erased(registration_id, outcome, position, erased_at, first, last, block_hash.hex(), *rest)


async def _destroy_key(registration_id: UUID, connection: Connection) -> None:
    await connection.execute("DELETE FROM public.personal_keys WHERE registration_id = %s", (registration_id,))


@asynccontextmanager
async def erasure_desk(settings: Settings) -> AsyncIterator[ErasureDesk]:
    """It records events, and neither changes tables nor runs anything.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, WrongMasterKey: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        yield ErasureDesk(await core_as_it_is(settings, stack))
