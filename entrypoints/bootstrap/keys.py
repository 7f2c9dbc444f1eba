"""The parts of the commands about the master keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from application.operator_acts import ROTATE_MASTER_KEY
from application.ports import WrongMasterKey
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.acts import record_act
from entrypoints.bootstrap.database import Database, first_connection, open_database, prepare
from infrastructure.crypto.key_uses import FIRST, count_persons, noted
from infrastructure.crypto.keyring import read_root_secret
from infrastructure.crypto.master_keys import KeyId, key_id
from infrastructure.crypto.rotation import CannotRotate, rotate
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.postgres.connection import Connection, closing, connect
from infrastructure.settings.settings import Settings

__all__ = ["CannotRotate", "KeyDesk", "key_desk"]

_PATIENCE: Final = timedelta(seconds=60)
"""For a statement: one of them counts all persons."""


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A master key.

    Attributes:
        key: its id; None: of the first one, as long as that is not known.
        use: "wraps" from now on; "replaced", and some keys are to be re-wrapped; "retired"; "next", which a rotation is
            to; "unknown" to this database, though it wraps something.
        here: does this process have it?
        persons: whose keys it wraps.
    """

    key: str | None
    use: str
    here: bool
    persons: int
    wraps_since: datetime | None = None
    retired_at: datetime | None = None

    @property
    def is_missing(self) -> bool:
        return not self.here and (self.use in {"wraps", "replaced"} or self.persons > 0)


@dataclass(frozen=True, slots=True)
class Done:
    """What a rotation did.

    Attributes:
        key: the id of the key that wraps now.
        retired: ids of those that wrap nothing any more.
        persons: whose keys this run has re-wrapped.
        resumed: an earlier run had begun it.
        advice: what to do now.
    """

    key: str
    retired: list[str]
    persons: int
    resumed: bool
    advice: str


@dataclass(frozen=True, slots=True)
class KeyDesk:
    """For a command about the master keys."""

    _settings: Settings
    _database: Database = field(repr=False)

    async def keys(self) -> list[ListedKey]:
        """Every master key that is known here, or that this process has."""
        ours = self._database.master_keys
        async with first_connection(self._database.dsn, read_only=True) as connection:
            known = await noted(connection)
            persons = {one.key_id: one.persons for one in await count_persons(connection)}
            if not known:
                return [await self._the_only_one(connection, persons.get(None, 0))]
        listed = []
        for one in known:
            use = "wraps" if one is known[-1] else "replaced" if one.retired_at is None else "retired"
            count = persons.pop(None if one.number == FIRST else one.key_id, 0)
            listed.append(
                ListedKey(one.key_id.hex(), use, one.key_id in ours.ids, count, one.wraps_since, one.retired_at)
            )
        listed += [
            ListedKey(None if one is None else one.hex(), "unknown", one in ours.ids, count)
            for one, count in persons.items()
        ]
        ids = {one.key for one in listed}
        return listed + [ListedKey(one.hex(), "next", True, 0) for one in ours.ids if one.hex() not in ids]

    async def _the_only_one(self, connection: Connection, persons: int) -> ListedKey:
        """Of a database that no process of a release with rotations has run on."""
        ours = self._database.master_keys
        try:
            await read_root_secret(connection, ours)
        except WrongMasterKey:
            return ListedKey(None, "wraps", False, persons)
        return ListedKey(ours.ids[0].hex(), "wraps", True, persons)

    async def rotate(self, watch: Callable[[int, int], None], reason: str | None = None) -> Done:
        """See `infrastructure.crypto.rotation.rotate`. The next key of a data directory is made, and then put in the
        place of the one that it has replaced.

        Args:
            reason: that the operator gives, for the audit.

        Raises:
            CannotRotate, CannotStart, WrongMasterKey, BadDataDirectory: one line each, fit to show.
            Unavailable: worth a repeat.
        """
        await prepare(self._database)
        own = None if self._settings.master_key is not None else DataDirectory(self._settings.data_dir)
        to = key_id(await asyncio.to_thread(self._next_key, own))
        self._database.master_keys.add(await asyncio.to_thread(self._database.find_keys))
        connection = await connect(self._database.dsn, name="keys", statement_timeout=_PATIENCE)
        record = partial(
            record_act, self._database.dsn, ROTATE_MASTER_KEY, reason,
            statement_timeout=self._settings.statement_timeout, once_for=to.hex(),
        )  # fmt: skip
        async with closing(connection):
            done = await rotate(connection, self._database.master_keys, to, watch=watch, first=record)
        advice = _SET_IT if own is None else await asyncio.to_thread(_take, own, to)
        return Done(to.hex(), [one.hex() for one in done.retired], done.persons, done.resumed, advice)

    def _next_key(self, own: DataDirectory | None) -> bytes:
        if own is not None:
            return own.next_master_key().get_secret_value()
        if self._settings.next_master_key is None:
            raise CannotStart(
                "REGISTRAR_NEXT_MASTER_KEY is not set; set it (or …_FILE) in every process to what "
                "`openssl rand -hex 32` prints, restart them one by one, then rotate."
            )
        return self._settings.next_master_key.get_secret_value()


_SET_IT: Final = (
    "Now set REGISTRAR_MASTER_KEY to the value of REGISTRAR_NEXT_MASTER_KEY in every process and unset the latter, by "
    "their next restart. Keep the old key for as long as a backup from before is kept, and not longer."
)


def _take(own: DataDirectory, key: KeyId) -> str:
    """Have the data directory's key be this one, which is its next one; what to do now."""
    old = key_id(own.master_key().get_secret_value())
    if old == key:
        return "There is nothing left to do."
    kept = own.take_next_master_key(old.hex())
    return f"The old key is in {kept}: keep it for as long as a backup from before is kept, and not longer."


@asynccontextmanager
async def key_desk(settings: Settings) -> AsyncIterator[KeyDesk]:
    """
    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        yield KeyDesk(settings, await open_database(settings, stack))
