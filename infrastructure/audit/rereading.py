"""What was verified and signed is read again, over and over: a row may be altered a year after it was recorded."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from domain.recorded import Position
from infrastructure.audit.growing_tree import GrowingTree
from infrastructure.audit.roots import Checkpoint, Frontier
from infrastructure.audit.sound import Unsound, sound_stretch
from infrastructure.audit.walk import BEGINNING, Link
from infrastructure.followers.leadership import while_touching
from infrastructure.postgres.connection import Connection

REST: Final = 99
"""Rest after a stretch, in times of what it took: 1 % of the time is reading."""

REST_IN_DOUBT: Final = 9
"""The same while nothing is signed until all of it was read."""


class Rereading:
    """Readings of all that is verified, one after the other. How far one is, is known to this process alone: the next
    leader begins a new one.

    Attributes:
        in_doubt: something was found, and since then no whole reading has found nothing.
    """

    def __init__(self, every: timedelta | None, *, again: float, in_doubt: bool) -> None:
        """
        Args:
            every: from the end of one reading to the next; None: there is none without doubt.
            again: seconds until a stretch in which something was found is read again.
        """
        self.in_doubt = in_doubt
        self._every = every
        self._again = again
        self._due = 0.0
        self._reading: _Reading | None = None

    async def go_on(self, connection: Connection, tree: GrowingTree, end: Link) -> None:
        """Read a stretch, if it is time to; while there is doubt, all that is left.

        Args:
            tree, end: what was verified.

        Raises:
            Unsound: something is not what was recorded any more.
        """
        loop = asyncio.get_running_loop()
        if not tree.size or (self._every is None and not self.in_doubt) or loop.time() < self._due:
            return
        if self._reading is None:
            self._reading = _Reading(Checkpoint(tree.size, end.position, tree.root()))
        try:
            while await self._takes_rest(connection, self._reading):
                pass
        except Unsound:
            self.in_doubt = True
            self._due = loop.time() + self._again
            raise

    async def _takes_rest(self, connection: Connection, reading: _Reading) -> bool:
        """Read a stretch, and rest as long as it demands; False if others have their turn first."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        is_whole = await reading.go_on(connection)
        took = loop.time() - begun
        if not is_whole and self.in_doubt:
            await while_touching(connection, asyncio.sleep(REST_IN_DOUBT * took))
            return True
        if is_whole:
            self._reading, self.in_doubt = None, False
        rest = REST * took if not is_whole else self._every.total_seconds() if self._every is not None else 0.0
        self._due = loop.time() + rest
        return False


class _Reading:
    """From the first block to what was verified when it began."""

    def __init__(self, upto: Checkpoint) -> None:
        self._upto = upto
        self._tree = Frontier()
        self._end = BEGINNING

    async def go_on(self, connection: Connection) -> bool:
        """Read a stretch; True if it was the last.

        Raises:
            Unsound: it is not what was recorded; it is read again the next time, or all of it.
        """
        stretch = await sound_stretch(connection, self._end, self._upto.position)
        self._tree.add_all(stretch.leaves())
        self._end = stretch.end
        if self._end.position < self._upto.position:
            return False
        if Checkpoint(self._tree.size, self._end.position, self._tree.root()) != self._upto:
            self._tree, self._end = Frontier(), BEGINNING
            raise Unsound(another_log(self._upto.position))
        return True


def another_log(signed: Position) -> str:
    """All hashes fit each other, and are others."""
    return f"the log up to position {signed} is not the one that was signed"
