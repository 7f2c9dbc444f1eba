"""Which key signs checkpoints: the one in use by the database, and with it, once, the one that is to replace it.

So a process that still has only the old key goes on with it until the change is made, and afterwards signs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from infrastructure.audit.note_keys import SigningKey, VerifierKey
from infrastructure.audit.notes import Change, checkpoint_text, signed_note
from infrastructure.audit.roots import Checkpoint
from infrastructure.postgres.connection import Connection

log = structlog.get_logger(__name__)

Seeds = Callable[[], Sequence[bytes]]
"""What the keys that this process has by now are made of; the one that signs first."""

_KEYS: Final = "SELECT number, public_key, first_size, alone FROM public.checkpoint_keys ORDER BY number"
_CHANGES: Final = "SELECT 1 FROM public.checkpoint_keys WHERE first_size IS NULL"
_USED: Final = """
    INSERT INTO public.checkpoint_keys (number, public_key, first_size) VALUES (%s, %s, %s)
    ON CONFLICT (number) DO UPDATE SET first_size = excluded.first_size
"""


class KeyNotHere(Exception):
    """The key that signs is none of this process's; one line, fit to show."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A row of `checkpoint_keys`."""

    number: int
    public: bytes
    first_size: int | None
    alone: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """Who signs the next checkpoint.

    Attributes:
        keys: one, or an old one and the new one that replaces it.
        first_of: the new one's row, where this is its first checkpoint.
        change: what the checkpoint says of that.
    """

    keys: Sequence[SigningKey]
    first_of: KeyRow | None
    change: Change | None = None

    def note(self, origin: str, checkpoint: Checkpoint, at: datetime) -> str:
        return signed_note(checkpoint_text(origin, checkpoint, at, self.change), self.keys, at)

    async def keep(self, connection: Connection, size: int) -> None:
        """Note that the new key is in use, in the transaction that keeps its first checkpoint."""
        if self.first_of is not None:
            await connection.execute(_USED, (self.first_of.number, self.first_of.public, size))


class Signers:
    """The keys that this process has; they are looked for anew where one is missing."""

    def __init__(self, seeds: Seeds) -> None:
        self._find = seeds
        self._seeds: Sequence[bytes] = ()
        self._told_missing: bytes | None = None

    async def choose(self, connection: Connection, origin: str) -> Chosen:
        """
        Raises:
            KeyNotHere: that key is none of this process's.
        """
        rows = await read_keys(connection)
        used = next((one for one in reversed(rows) if one.first_size is not None), None)
        wanted = next((one for one in rows if one.first_size is None), None)
        here = await self._here(origin, [one.public for one in (used, wanted) if one is not None])
        if used is None:
            first = SigningKey(origin, self._seeds[0])
            return Chosen([first], KeyRow(1, first.verifier.public, None, alone=False))
        old, new = here.get(used.public), here.get(wanted.public) if wanted else None
        if wanted is not None and new is not None and wanted.alone:
            return Chosen([new], wanted, Change(new.verifiers, []))
        if old is None:
            raise KeyNotHere(f"the key {VerifierKey(origin, used.public).short}, which signs, is not here")
        if wanted is not None and new is not None:
            return Chosen([old, new], wanted, Change(new.verifiers, old.verifiers))
        if wanted is not None and wanted.public != self._told_missing:
            self._told_missing = wanted.public
            hint = "checkpoints are signed by the old key until this process has the new one, and is restarted"
            log.warning("checkpoint.key_missing", key=VerifierKey(origin, wanted.public).short, hint=hint)
        return Chosen([old], None)

    async def is_changing(self, connection: Connection) -> bool:
        """Is there a key that has not signed anything yet?"""
        return await (await connection.execute(_CHANGES)).fetchone() is not None

    async def verifiers(self, connection: Connection, origin: str) -> list[VerifierKey]:
        """Of those of our keys that sign or signed."""
        rows = await read_keys(connection)
        used = [one.public for one in rows if one.first_size is not None]
        here = await self._here(origin, used)
        return [key for public in used if public in here for key in here[public].verifiers]

    async def _here(self, origin: str, wanted: Sequence[bytes]) -> dict[bytes, SigningKey]:
        here = self._by_public(origin)
        if not here or not here.keys() >= set(wanted):
            self._seeds = await asyncio.to_thread(self._find)
            here = self._by_public(origin)
        return here

    def _by_public(self, origin: str) -> dict[bytes, SigningKey]:
        keys = [SigningKey(origin, seed) for seed in self._seeds]
        return {key.verifier.public: key for key in keys}


async def read_keys(connection: Connection) -> list[KeyRow]:
    """All that were ever chosen, the latest last."""
    rows: list[Any] = await (await connection.cursor(binary=True).execute(_KEYS)).fetchall()
    return [KeyRow(*row) for row in rows]
