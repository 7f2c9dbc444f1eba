"""The parts of the command that changes the key which signs checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from application.operator_acts import ROTATE_SIGNING_KEY
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.acts import record_act
from entrypoints.bootstrap.checkpoint_places import checkpoint_seeds
from entrypoints.bootstrap.checkpoints import checkpointer
from entrypoints.bootstrap.database import check_schema, dsn_to_read, first_connection
from infrastructure.audit.checkpointer import Checkpointer
from infrastructure.audit.note_keys import SigningKey, VerifierKey
from infrastructure.audit.signers import KeyRow, read_keys
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.followers.leadership import lead
from infrastructure.postgres.connection import Connection
from infrastructure.settings.settings import Settings

PATIENCE: Final = timedelta(seconds=60)
"""For the process that leads to sign a checkpoint by the new key: it does so within seconds, if it can."""

_LOOK: Final = 0.2

_ORIGIN: Final = "SELECT origin FROM public.tree_head WHERE origin <> ''"
_FORGET: Final = "DELETE FROM public.checkpoint_keys WHERE first_size IS NULL AND public_key <> %s"
_CHOOSE: Final = """
    INSERT INTO public.checkpoint_keys (number, public_key, alone)
    SELECT coalesce(max(number), 0) + 1, %(key)s, %(alone)s FROM public.checkpoint_keys
    ON CONFLICT (public_key) DO UPDATE SET alone = excluded.alone WHERE checkpoint_keys.first_size IS NULL
"""
_FIRST: Final = "SELECT first_size FROM public.checkpoint_keys WHERE public_key = %s AND first_size IS NOT NULL"


class CannotChange(Exception):
    """The key that signs stays what it is; one line, fit to show."""


@dataclass(frozen=True, slots=True)
class Changed:
    """
    Attributes:
        keys: of the new one, to be given to auditors and witnesses.
        replaced: its id and name; None if this run only finished what an earlier one had done.
        first_size: of the first checkpoint that it has signed.
        advice: what to do now.
    """

    keys: Sequence[VerifierKey]
    replaced: str | None
    first_size: int
    advice: str


@dataclass(frozen=True, slots=True)
class SigningKeyDesk:
    """
    Attributes:
        checkpointer: stands by, so that the change is also made where nothing of the service runs.
    """

    _settings: Settings
    _dsn: str = field(repr=False)
    _checkpointer: Checkpointer

    async def change(self, *, old_is_lost: bool, reason: str | None = None, patience: timedelta = PATIENCE) -> Changed:
        """Have the next key sign from now on; the first checkpoint is signed by the old one, too.

        Ended at any point, it is finished when it is called again.

        Args:
            old_is_lost: the first checkpoint is signed by the new key alone.
            reason: the operator's.

        Raises:
            CannotChange, CannotStart, BadDataDirectory: one line each, fit to show.
            Unavailable: it could not be recorded, and is not made.
        """
        own = None if self._settings.checkpoint_key is not None else self._own_directory()
        async with first_connection(self._dsn) as connection:
            origin, used = await _now(connection)
            new = SigningKey(origin, await asyncio.to_thread(self._next, own))
            resumed = new.verifier.public == used.public
            if not resumed:
                await self._choose(connection, origin, used, new, old_is_lost=old_is_lost, reason=reason)
            first_size = await self._until_signed(connection, new, patience)
        replaced = None if resumed else VerifierKey(origin, used.public).short
        advice = _SET_IT if own is None else await asyncio.to_thread(_take, own, origin)
        return Changed(new.verifiers, replaced, first_size, advice)

    def _own_directory(self) -> DataDirectory | None:
        return DataDirectory(self._settings.data_dir) if self._settings.database_url is None else None

    def _next(self, own: DataDirectory | None) -> bytes:
        if own is not None:
            return own.next_checkpoint_key().get_secret_value()
        if self._settings.next_checkpoint_key is None:
            raise CannotStart(
                "REGISTRAR_NEXT_CHECKPOINT_KEY is not set; set it (or …_FILE) to what `openssl rand -hex 32` prints in "
                "every process that may sign (`up`, `process`), restart them one by one, then change the key."
            )
        return self._settings.next_checkpoint_key.get_secret_value()

    async def _choose(
        self,
        connection: Connection,
        origin: str,
        used: KeyRow,
        new: SigningKey,
        *,
        old_is_lost: bool,
        reason: str | None,
    ) -> None:
        """Note which key is to sign, and record that an operator has it so, once for each key."""
        seeds = await asyncio.to_thread(checkpoint_seeds, self._settings)
        if not old_is_lost and used.public not in {SigningKey(origin, seed).verifier.public for seed in seeds}:
            raise CannotChange(
                f"The key {VerifierKey(origin, used.public).short}, which signs, is not here; put it back "
                "(REGISTRAR_CHECKPOINT_KEY, or checkpoint.key in the data directory), or say --old-key-is-lost."
            )
        async with connection.transaction():
            await connection.execute(_FORGET, (new.verifier.public,))
            chosen = await connection.execute(_CHOOSE, {"key": new.verifier.public, "alone": old_is_lost})
            if not chosen.rowcount:
                raise CannotChange("The next key has signed before, and was replaced; take one that is new.")
            await record_act(
                self._dsn,
                ROTATE_SIGNING_KEY,
                reason,
                statement_timeout=self._settings.statement_timeout,
                once_for=new.verifier.public.hex(),
            )

    async def _until_signed(self, connection: Connection, new: SigningKey, patience: timedelta) -> int:
        standing_by = asyncio.create_task(lead(self._checkpointer, self._dsn))
        try:
            async with asyncio.timeout(patience.total_seconds()):
                while True:
                    row: Any = await (await connection.execute(_FIRST, (new.verifier.public,))).fetchone()
                    if row is not None:
                        return int(row[0])
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise CannotChange(
                "The change is asked for, and not made yet: the process that leads the checkpointer does not have both "
                "keys, or the log does not verify (`registrar audit verify`). Its log says which; run this again then."
            ) from None
        finally:
            standing_by.cancel()
            await asyncio.gather(standing_by, return_exceptions=True)


_SET_IT: Final = (
    "Now set REGISTRAR_CHECKPOINT_KEY to the value of REGISTRAR_NEXT_CHECKPOINT_KEY in every process and unset the "
    "latter, by their next restart. The old key is needed only after a restore of a backup from before."
)


def _take(own: DataDirectory, origin: str) -> str:
    old = SigningKey(origin, own.checkpoint_key().get_secret_value()).verifier
    kept = own.take_next_checkpoint_key(old.id.hex())
    return f"The old key is in {kept}: it is needed only after a restore of a backup from before."


async def _now(connection: Connection) -> tuple[str, KeyRow]:
    """The log's name, and the key that signs."""
    row: Any = await (await connection.execute(_ORIGIN)).fetchone()
    used = [one for one in await read_keys(connection) if one.first_size is not None]
    if row is None or not used:
        raise CannotChange("Nothing has been signed yet, so that there is no key to change: set another one.")
    return row[0], used[-1]


@asynccontextmanager
async def signing_key_desk(settings: Settings) -> AsyncIterator[SigningKeyDesk]:
    """
    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    made = checkpointer(settings)
    if made is None:
        raise CannotStart(
            "Nothing signs checkpoints here: REGISTRAR_CHECKPOINT_DIR and REGISTRAR_CHECKPOINT_URL are unset."
        )
    async with AsyncExitStack() as stack:
        dsn = await dsn_to_read(settings, stack)
        await check_schema(dsn)
        yield SigningKeyDesk(settings, dsn, made)
