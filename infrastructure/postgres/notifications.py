"""Notifications: receives what commits announce (LISTEN), and wakes the tasks that wait for it.

Nothing relies on notifications: a lost one is a delay of three seconds at most, because every waiter polls as well.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from domain.recorded import Position
from infrastructure.postgres.circumstances import why_unusable
from infrastructure.postgres.connection import AWAY, Connection, closing, connect
from infrastructure.ticks import after

log = structlog.get_logger(__name__)

HEAD = "log"
"""Name under which the event store announces the head of the log; a follower's progress is announced under its own."""

FOLLOWERS = "followers"
"""Stands for the names of all followers whose progress is announced."""

EVERYTHING: Final = {HEAD: "LISTEN registrar_log", FOLLOWERS: "LISTEN registrar_follower"}
"""What can be heard, and how."""

REQUESTS = "requests"
"""Name under which a saga that leads in this process notes a position up to which it has requested mails; who follows
those need not look at everything else that is appended."""

LOOK_ANYWAY = timedelta(seconds=1)
"""How long to wait for a notification before polling, while the session that they come by is lost."""

LOOK_AGAIN = timedelta(seconds=3)
"""How often the listening session looks at all positions, and the watches look, without being told to."""

LISTENED_FOR = timedelta(seconds=10)
"""How long to wait before polling while the session lasts, which looks for everybody: it may hang."""

_POSITION = re.compile("[0-9]{1,19}")  # no more than a bigint has


@dataclass(frozen=True, slots=True)
class Watch:
    """Something in the database that a process keeps up with.

    Attributes:
        channel: announces that it has changed; a constant of ours.
        look: looks at it, on a session that lasts as long as the process as a rule: also at the start of each session,
            and every `LOOK_AGAIN`.
    """

    channel: str
    look: Callable[[Connection], Awaitable[None]]


class Notifications:
    """One LISTEN connection for the whole process. It reconnects for ever; while it is away, waiters time out."""

    def __init__(
        self,
        dsn: str,
        *,
        hears: Iterable[str] = EVERYTHING,
        on_restart: Callable[[], None] = lambda: None,
        watches: Sequence[Watch] = (),
    ) -> None:
        """
        Args:
            hears: `HEAD` and `FOLLOWERS`, whichever somebody in this process waits for: each announcement wakes it.
            on_restart: called whenever listening starts or restarts: after a failover, what was read before may be
                wrong.
            watches: what else is looked at on the listening session.
        """
        self._dsn = dsn
        self._on_restart = on_restart
        self._hears = tuple(hears)
        self._watches = watches
        self._channels = frozenset(watch.channel for watch in watches)
        self._failed: set[str] = set()
        self._listening = False
        self._heard: dict[str, Position] = {}
        self._unverified: dict[str, Position] = {}  # announced, but not compared with the tables yet
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Listen until cancelled."""
        lost_at = 0.0
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - the loop's edge: whatever it was, listen again
                self._listening = False
                now = asyncio.get_running_loop().time()
                if now > lost_at + 2 * LOOK_ANYWAY.total_seconds():  # once per outage, not once per second
                    log.warning(
                        "announcements.lost", error=type(error).__name__, hint="reconnecting; waiters poll meanwhile"
                    )
                lost_at = now
                await asyncio.sleep(LOOK_ANYWAY.total_seconds())

    @property
    def patience(self) -> timedelta:
        """How long to wait for an announcement before looking without one."""
        return LISTENED_FOR if self._listening else LOOK_ANYWAY

    async def wait_past(self, who: str, position: Position, *, within: timedelta = LOOK_ANYWAY) -> bool:
        """Wait until `who` has announced a position beyond `position`; False if that did not happen in time."""
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

    def note_position(self, who: str, position: Position) -> None:
        """Note a position; also called directly by what commits in this very process."""
        if position > self._heard.get(who, 0):
            self._heard[who] = position
            future = self._waiting.pop(who, None)
            if future is not None and not future.done():
                future.set_result(None)

    async def _listen(self) -> None:
        connection = await connect(self._dsn, name="listen", statement_timeout=timedelta(seconds=10))
        async with closing(connection):
            for what in self._hears:
                await connection.execute(EVERYTHING[what].encode())
            # From scratch: after a restore or a failover the log may end before what was announced, and a waiter for
            # a position in between would return at once, for ever.
            self._heard.clear()
            self._unverified.clear()
            self._on_restart()
            for watch in self._watches:
                await connection.execute(f"LISTEN {watch.channel}".encode())
            due: set[str] = set()
            look_at = 0.0
            self._listening = True
            while True:
                now = asyncio.get_running_loop().time()
                if now >= look_at:  # at first for what was announced before we were listening
                    for who, position in (await _positions(connection)).items():
                        self.note_position(who, position)
                if due or now >= look_at:
                    due.clear()
                    await self._look(connection)
                    look_at = after(now, LOOK_AGAIN)
                # First what came with the answers to our own statements, of which the socket does not tell any more.
                heard = await self._hear(connection, due, within=0)
                if not heard:
                    await _until_told(connection, within=look_at - now)
                    heard = await self._hear(connection, due, within=0)
                if heard:  # what else comes within a second is taken together
                    await self._hear(connection, due, within=LOOK_ANYWAY.total_seconds())
                if self._unverified:
                    self._correct(await _positions(connection))

    async def _hear(self, connection: Connection, due: set[str], *, within: float) -> bool:
        """Take what is announced within so many seconds; adds the watches that it concerns to `due`."""
        heard = False
        async for notification in connection.notifies(timeout=within):
            heard = True
            due |= {notification.channel} & self._channels
            name, _, number = notification.payload.rpartition(":")
            if _POSITION.fullmatch(number) and notification.channel not in self._channels:
                self._trust_for_now(HEAD if notification.channel == "registrar_log" else name, int(number))
        return heard

    async def _look(self, connection: Connection) -> None:
        """Run the watches; one that fails does not keep the others from it, nor anybody from what is announced."""
        for watch in self._watches:
            try:
                await watch.look(connection)
            except AWAY:
                raise
            except Exception as error:
                if watch.channel not in self._failed:  # once, not every few seconds
                    log.exception("watch.failed", watch=watch.channel, hint=why_unusable(error) or "report this bug")
                self._failed.add(watch.channel)
            else:
                self._failed.discard(watch.channel)

    def _trust_for_now(self, who: str, position: Position) -> None:
        """Wake its waiters now, and verify it within a second: any role of the database may notify."""
        if position > self._heard.get(who, 0):
            self._unverified[who] = position
            self.note_position(who, position)

    def _correct(self, positions: dict[str, Position]) -> None:
        """Correct what was announced but is not true: with it no waiter would wait any more."""
        for who, position in self._unverified.items():
            if self._heard[who] == position > positions.get(who, 0):
                self._heard[who] = positions.get(who, 0)
            if not self._heard[who]:
                del self._heard[who]
        self._unverified.clear()


async def _until_told(connection: Connection, *, within: float) -> None:
    """Wait until the server sends something. psycopg's own waiting wakes ten times a second (3.3.9)."""
    loop, told, socket = asyncio.get_running_loop(), asyncio.Event(), connection.fileno()
    loop.add_reader(socket, told.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await told.wait()
    finally:
        loop.remove_reader(socket)


async def _positions(connection: Connection) -> dict[str, Position]:
    cursor = await connection.execute(
        "SELECT %s, position FROM head UNION ALL SELECT name, position FROM followers", (HEAD,)
    )
    return dict(await cursor.fetchall())
