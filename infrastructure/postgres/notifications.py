"""Announcements: hears what commits announce (LISTEN), and wakes those who wait for it.

Nobody relies on hearing: a lost notification is a delay of at most a second, because every waiter looks again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta

import structlog

from domain.recorded import Position
from infrastructure.postgres.connection import Connection, connect

log = structlog.get_logger(__name__)

LOG = "log"
"""What the event store announces its head under; a follower's progress is announced under its own name."""

LOOK_ANYWAY = timedelta(seconds=1)

_POSITION = re.compile("[0-9]{1,19}")  # no more than a bigint has


class Announcements:
    """One LISTEN connection for the whole process. It reconnects for ever; while it is away, waiters time out."""

    def __init__(self, dsn: str, *, on_restart: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            on_restart: called whenever listening begins again: after a failover, what was known may never have been.
        """
        self._dsn = dsn
        self._on_restart = on_restart
        self._heard: dict[str, Position] = {}
        self._unproven: dict[str, Position] = {}  # announced to us, and not compared with the tables yet
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Listen until cancelled."""
        lost_at = 0.0
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - the loop's edge: whatever it was, it is listened again
                now = asyncio.get_running_loop().time()
                if now > lost_at + 2 * LOOK_ANYWAY.total_seconds():  # once an outage, not once a second
                    log.warning(
                        "announcements.lost", error=type(error).__name__, hint="reconnecting; waiters poll meanwhile"
                    )
                lost_at = now
                await asyncio.sleep(LOOK_ANYWAY.total_seconds())

    async def beyond(self, who: str, position: Position, *, within: timedelta = LOOK_ANYWAY) -> bool:
        """Wait until `who` was heard to be beyond `position`; False if that did not happen in time."""
        deadline = asyncio.get_running_loop().time() + within.total_seconds()
        while self._heard.get(who, 0) <= position:
            future = self._waiting.get(who)
            if future is None:
                future = self._waiting[who] = asyncio.get_running_loop().create_future()
            # Shielded: many wait for the same future, and one of them may be cancelled. Not `wait_for`: up to Python
            # 3.11 it loses a cancellation that comes together with the result.
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(future)
            except TimeoutError:
                return False
        return True

    def hear(self, who: str, position: Position) -> None:
        """Take note of a position; also called directly by what commits in this very process."""
        if position > self._heard.get(who, 0):
            self._heard[who] = position
            future = self._waiting.pop(who, None)
            if future is not None and not future.done():
                future.set_result(None)

    async def _listen(self) -> None:
        connection = await connect(self._dsn, name="listen", statement_timeout=timedelta(seconds=10))
        async with connection:
            await connection.execute("LISTEN registrar_log")
            await connection.execute("LISTEN registrar_follower")
            # From scratch: after a restore or a failover the log may be shorter than what was heard, and who waits
            # beyond that would never wait.
            self._heard.clear()
            self._unproven.clear()
            self._on_restart()
            # What was announced before we listened.
            for who, position in (await _positions(connection)).items():
                self.hear(who, position)
            while True:
                async for notification in connection.notifies(timeout=LOOK_ANYWAY.total_seconds()):
                    name, _, number = notification.payload.rpartition(":")
                    if _POSITION.fullmatch(number):
                        self._take_for_true(LOG if notification.channel == "registrar_log" else name, int(number))
                if self._unproven:
                    self._take_back(await _positions(connection))

    def _take_for_true(self, who: str, position: Position) -> None:
        """Wake who waits for it now; whether it is so is asked within a second, as any role of the database may notify."""
        if position > self._heard.get(who, 0):
            self._unproven[who] = position
            self.hear(who, position)

    def _take_back(self, positions: dict[str, Position]) -> None:
        """Forget what was announced and is not so: it would let nobody wait."""
        for who, position in self._unproven.items():
            if self._heard[who] == position > positions.get(who, 0):
                self._heard[who] = positions.get(who, 0)
            if not self._heard[who]:
                del self._heard[who]
        self._unproven.clear()


async def _positions(connection: Connection) -> dict[str, Position]:
    cursor = await connection.execute(
        "SELECT %s, position FROM head UNION ALL SELECT name, position FROM followers", (LOG,)
    )
    return dict(await cursor.fetchall())
