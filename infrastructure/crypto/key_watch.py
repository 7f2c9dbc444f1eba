"""A running process keeps up with the rotation of master keys, without a restart.

What it has and does is shown to `rotation` by advisory locks of its listening session, which end with the process: one
for each master key that it has, one for the key that it wraps with. A process of a release without a rotation holds
none, and is recognised by that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from infrastructure.crypto.key_uses import read_use
from infrastructure.crypto.master_keys import KeyId, MasterKeys
from infrastructure.postgres.connection import Connection

log = structlog.get_logger(__name__)

What = Literal["has", "wraps"]

_CLASS: Final[dict[What, str]] = {
    "has": "hashtext('registrar has master key')",
    "wraps": "hashtext('registrar wraps with master key')",
}
_SHOW: Final = "SELECT pg_advisory_lock_shared({what}, hashtext(encode(%b, 'hex')))"
_SESSIONS: Final = """
    SELECT a.pid, host(a.client_addr)
    FROM pg_stat_activity AS a
    WHERE a.datname = current_database() AND a.application_name = 'registrar listen' AND NOT EXISTS (
        SELECT FROM pg_locks AS l
        WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
            AND l.classid = {what}::oid AND l.objid = hashtext(encode(%b, 'hex'))::oid)
    ORDER BY a.pid
"""


class KeyWatch:
    """Looks what the database says of the keys, and shows what this process makes of it."""

    def __init__(
        self,
        keys: MasterKeys,
        *,
        find: Callable[[], Sequence[bytes]] = lambda: (),
        settled: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            find: the keys in the data directory by now, if they are kept there.
            settled: returns when what is being recorded is recorded: it may be wrapped by the key of before.
        """
        self._keys = keys
        self._find = find
        self._settled = settled
        self._session: Connection | None = None
        self._shown: set[tuple[What, KeyId]] = set()
        self._told: frozenset[KeyId] = frozenset()

    async def look(self, connection: Connection) -> None:
        """See `infrastructure.postgres.notifications.Watch`."""
        if connection is not self._session:
            self._session, self._shown = connection, set()
        self._keys.add(await asyncio.to_thread(self._find))
        before = self._keys.wrapping
        self._keys.follow(await read_use(connection))
        self._tell_missing()
        if self._keys.wrapping != before:
            log.info("keys.wraps_from_now_on", wraps=self._keys.wrapping.hex())
        for key in self._keys.ids:
            await self._show(connection, "has", key)
        if ("wraps", self._keys.wrapping) not in self._shown:
            await self._settled()
            await self._show(connection, "wraps", self._keys.wrapping)

    async def _show(self, connection: Connection, what: What, key: KeyId) -> None:
        if (what, key) not in self._shown:
            await connection.execute(_SHOW.format(what=_CLASS[what]).encode(), (key,))
            self._shown.add((what, key))

    def _tell_missing(self) -> None:
        missing = self._keys.missing
        if missing and missing != self._told:
            log.error(
                "keys.missing",
                missing=[one.hex() for one in sorted(missing)],
                hint="persons' keys are wrapped by it: start this process with it (REGISTRAR_NEXT_MASTER_KEY)",
            )
        self._told = missing


@dataclass(frozen=True, slots=True)
class Lacking:
    """A running process that does not show something.

    Attributes:
        pid: of its listening session in PostgreSQL.
        address: where it connects from; None: this machine, or the role may not see it.
    """

    pid: int
    address: str | None

    def __str__(self) -> str:
        return f"pid {self.pid} of pg_stat_activity{f' from {self.address}' if self.address else ''}"


async def lacking(connection: Connection, what: What, key: KeyId) -> Sequence[Lacking]:
    """The running processes that do not show this of the key: that they have it, or that they wrap with it."""
    cursor = await connection.execute(_SESSIONS.format(what=_CLASS[what]).encode(), (key,))
    return [Lacking(pid, address) for pid, address in await cursor.fetchall()]
