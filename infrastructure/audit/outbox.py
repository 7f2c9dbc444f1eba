"""What was signed and is still to be published, and how long it is kept afterwards.

The table can be written by whoever can write to the database: only what one of our keys has signed leaves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import structlog

from application.crash_points import crash_point
from infrastructure.audit.known import keys_that_lead
from infrastructure.audit.note_keys import VerifierKey
from infrastructure.audit.notes import REPLACES, BadNote, checkpoint_in, open_note, time_in
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.roots import Checkpoint
from infrastructure.followers.leadership import while_touching
from infrastructure.postgres.connection import Connection

log = structlog.get_logger(__name__)

MOST_AT_ONCE: Final = 200
"""Checkpoints published in one go."""

SLOWEST: Final = timedelta(minutes=1)
"""Between two tries of an address that does not take a checkpoint."""

KEPT: Final = 1_000
"""Checkpoints that stay in the table, some hours of a busy log; of those before, the last one of each day does."""

THIN_AFTER: Final = 100
"""So many more than are kept may be there."""

Post = Callable[[bytes], Awaitable[str | None]]
"""Sends a note to the address; returns why that failed, or None. It ends by itself in a while."""

_FOR_DIRECTORY: Final = """
    SELECT size, note FROM public.checkpoints
    WHERE NOT (in_directory AND at_url) AND NOT in_directory AND size <> ALL (%s) ORDER BY size LIMIT %s
"""
_FOR_URL: Final = """
    SELECT size, note FROM public.checkpoints
    WHERE NOT (in_directory AND at_url) AND NOT at_url AND size <> ALL (%s) ORDER BY size LIMIT 1
"""

# A note that was signed once more meanwhile, by a new key, is still to be published.
_WRITTEN: Final = "UPDATE public.checkpoints SET in_directory = true WHERE size = %s AND note = %s"
_POSTED: Final = "UPDATE public.checkpoints SET at_url = true WHERE size = %s AND note = %s"
_SIGNED: Final = "SELECT size, note FROM public.checkpoints WHERE size < %s ORDER BY size DESC LIMIT 10"
_ENDLESS: Final = 2**63 - 1
_THIN: Final = f"""
    DELETE FROM public.checkpoints AS c
    WHERE c.in_directory AND c.at_url AND position(E'\\n{REPLACES} ' IN c.note) = 0
        AND c.size < (SELECT size FROM public.checkpoints ORDER BY size DESC OFFSET %s LIMIT 1)
        AND EXISTS (
            SELECT FROM public.checkpoints AS later
            WHERE later.size > c.size
                AND (later.signed_at AT TIME ZONE 'UTC')::date = (c.signed_at AT TIME ZONE 'UTC')::date
        )
"""  # noqa: S608 - a constant


async def latest_signed(connection: Connection, keys: Sequence[VerifierKey]) -> Checkpoint | None:
    """The checkpoint of the largest tree that one of the keys has signed."""
    below = _ENDLESS
    while rows := await (await connection.execute(_SIGNED, (below,))).fetchall():
        for size, note in rows:
            if _refusal(size, note, keys) is None:
                return checkpoint_in(note)
        below = rows[-1][0]
    return None


def _refusal(size: int, note: str, keys: Sequence[VerifierKey]) -> str | None:
    """Why a row of the table is no checkpoint."""
    try:
        text = open_note(note, keys)
        time_in(text)
        return None if checkpoint_in(text).size == size else "it stands in the place of another one"
    except BadNote as error:
        return str(error)


class Outbox:
    """Publishes to the directory and to the address, each in the order of the trees, and thins out what is published.

    One is in memory as long as a process leads.
    """

    def __init__(self, directory: CheckpointDirectory | None, post: Post | None) -> None:
        self._directory = directory
        self._directory_failed = False
        self._latest = 0
        self._posting = _Posting(post) if post is not None else None
        self._refused: set[int] = set()
        self._published = 0

    def add(self, size: int) -> None:
        """A checkpoint of that size was signed: whatever stood in its place is replaced."""
        self._refused.discard(size)

    async def go_on(self, connection: Connection, ours: Callable[[], Awaitable[Sequence[VerifierKey]]]) -> None:
        """Publish what waits, as far as that goes; the rest at the next call.

        Args:
            ours: our keys, which are asked for where something waits.
        """
        await self._to_directory(connection, ours)
        if self._posting is not None:
            await self._posting.note_outcome(connection)
            if self._posting.is_ready:
                await self._post_next(connection, self._posting, ours)
        if self._published >= THIN_AFTER:
            await connection.execute(_THIN, (KEPT - 1,))
            self._published = 0

    async def _to_directory(self, connection: Connection, ours: Callable[[], Awaitable[Sequence[VerifierKey]]]) -> None:
        """What fails is tried at the next call."""
        if self._directory is None:
            return
        parameters = (list(self._refused), MOST_AT_ONCE)
        waiting = await (await connection.execute(_FOR_DIRECTORY, parameters)).fetchall()
        if not waiting:
            return
        signs = await ours()
        try:
            keys = await keys_that_lead(connection, self._directory, signs)
            for size, note in waiting:
                if self._is_ours(size, note, keys):
                    await self._write(connection, self._directory, size, note, signs)
        except OSError as error:
            if not self._directory_failed:  # once an outage
                hint = "checkpoints wait in the database until they can be written; appends go on"
                log.error("checkpoint.not_written", error=error.strerror or str(error), hint=hint)  # noqa: TRY400
            self._directory_failed = True
            return
        self._directory_failed = False

    async def _write(
        self, connection: Connection, directory: CheckpointDirectory, size: int, note: str, keys: Sequence[VerifierKey]
    ) -> None:
        is_latest = size >= self._latest  # a row that was marked as unpublished makes nothing older the latest
        await while_touching(
            connection, asyncio.to_thread(directory.publish, note, time_in(note), keys, is_latest=is_latest)
        )
        self._latest = max(size, self._latest)
        crash_point("checkpoint.before_note")
        await connection.execute(_WRITTEN, (size, note))
        self._published += 1

    async def _post_next(
        self,
        connection: Connection,
        posting: _Posting,
        ours: Callable[[], Awaitable[Sequence[VerifierKey]]],
    ) -> None:
        row: Any = await (await connection.execute(_FOR_URL, (list(self._refused),))).fetchone()
        if row is None:
            return
        signs = await ours()
        keys = await keys_that_lead(connection, None, signs)
        with suppress(OSError):  # of the directory, which is told where it is written to
            keys = await keys_that_lead(connection, self._directory, signs)
        size, note = row
        if self._is_ours(size, note, keys):
            posting.begin(size, note)
            self._published += self._directory is None

    def _is_ours(self, size: int, note: str, keys: Sequence[VerifierKey]) -> bool:
        """Is it one of our checkpoints? Else it stays where it is, waiting, which health shows."""
        why = _refusal(size, note, keys)
        if why is not None:
            hint = "nothing of it is published; `registrar audit checkpoints list` shows it"
            log.error("checkpoint.forged", size=size, why=why, hint=hint)
            self._refused.add(size)
        return why is None

    async def close(self) -> None:
        if self._posting is not None:
            await self._posting.close()


class _Posting:
    """Posts one checkpoint after the other, beside everything else: an address may take its time to fail."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._under_way: tuple[int, str, asyncio.Future[str | None]] | None = None
        self._pause = 0.0
        self._not_before = 0.0

    async def note_outcome(self, connection: Connection) -> None:
        """Note what has become of the last one, if that is known by now."""
        if self._under_way is None or not self._under_way[2].done():
            return
        size, note, task = self._under_way
        self._under_way = None
        if (failure := task.result()) is None:
            await connection.execute(_POSTED, (size, note))
            self._pause = 0.0
            return
        if not self._pause:  # once an outage
            hint = "checkpoints wait in the database until they are taken; appends go on"
            log.error("checkpoint.not_posted", why=failure, hint=hint)
        self._pause = min(2 * self._pause or 1.0, SLOWEST.total_seconds())
        self._not_before = asyncio.get_running_loop().time() + self._pause

    @property
    def is_ready(self) -> bool:
        return self._under_way is None and asyncio.get_running_loop().time() >= self._not_before

    def begin(self, size: int, note: str) -> None:
        self._under_way = size, note, asyncio.ensure_future(self._post(note.encode()))

    async def close(self) -> None:
        if self._under_way is not None:
            self._under_way[2].cancel()
            await asyncio.gather(self._under_way[2], return_exceptions=True)
