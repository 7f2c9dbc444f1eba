"""The checkpointer: follows the log, verifies what is new, and signs how far it is what was recorded.

It only reads what appends write, and locks nothing of it. What does not verify is never signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog

from application.crash_points import crash_point
from domain.recorded import Position
from infrastructure.audit.growing_tree import GrowingTree, edge_of
from infrastructure.audit.paths import Tiles, consistency_proof
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.roots import Checkpoint, leaf_of
from infrastructure.audit.rows import block_from, blocks_between, ends, events_between
from infrastructure.audit.signers import Chosen, KeyNotHere, Seeds, Signers
from infrastructure.audit.walk import BEGINNING, Event, Finding, Link, walk
from infrastructure.audit.witness import Witnesses
from infrastructure.followers.leadership import while_touching
from infrastructure.postgres.connection import Connection

log = structlog.get_logger(__name__)

EVERY: Final = timedelta(seconds=10)
"""Least time between two checkpoints, while there is news, unless there is much of it."""

MANY_EVENTS: Final = 10_000
"""So much news is signed at once."""

LOOK: Final = timedelta(seconds=1)
"""How often is looked whether there is news, and whether something can be published now."""

STRETCH: Final = 1_000
"""Positions verified in one go, in some milliseconds; afterwards this process does other things."""

REST: Final = 9
"""Rest after a stretch, in times of what it took: a first pass over a long log, or many appends, leave others nine
tenths of a core."""

MOST_AT_ONCE: Final = 200
"""Checkpoints published in one go."""

SLOWEST: Final = timedelta(minutes=1)
"""Between two tries of an address that does not take a checkpoint."""

Post = Callable[[bytes], Awaitable[str | None]]
"""Sends a note to the address; returns why that failed, or None. It ends by itself in a while."""

_HEAD: Final = "SELECT size, position, hash, origin, unsound FROM public.tree_head"
_TILE: Final = "SELECT hashes FROM public.tree_tiles WHERE level = %s AND index = %s"
_KEEP_TILE: Final = """
    INSERT INTO public.tree_tiles (level, index, hashes) VALUES (%s, %s, %s)
    ON CONFLICT (level, index) DO UPDATE SET hashes = excluded.hashes
"""
_KEEP_DIGESTS: Final = """
    INSERT INTO public.event_digests (first_position, last_position, digests) VALUES (%s, %s, %s)
    ON CONFLICT (first_position) DO NOTHING
"""
_KEEP_HEAD: Final = """
    INSERT INTO public.tree_head (size, position, hash, origin) VALUES (%s, %s, %s, %s)
    ON CONFLICT (only_row) DO UPDATE SET size = excluded.size, position = excluded.position, hash = excluded.hash,
        unsound = NULL
"""
_KEEP_UNSOUND: Final = """
    INSERT INTO public.tree_head (size, position, hash, origin, unsound) VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (only_row) DO UPDATE SET unsound = excluded.unsound
"""
_LOSABLE: Final = "SET LOCAL synchronous_commit = off"  # what is lost is done again, and no append waits for its flush
_SIGNED: Final = "SELECT coalesce(max(size), 0), coalesce(max(position), 0) FROM public.checkpoints WHERE size <= %s"
_KEEP: Final = """
    INSERT INTO public.checkpoints (size, position, note, signed_at, in_directory, at_url)
    VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (size) DO UPDATE SET note = excluded.note,
        signed_at = excluded.signed_at, in_directory = excluded.in_directory, at_url = excluded.at_url
"""
_FOR_DIRECTORY: Final = """
    SELECT size, note, signed_at FROM public.checkpoints
    WHERE NOT (in_directory AND at_url) AND NOT in_directory ORDER BY size LIMIT %s
"""
_FOR_URL: Final = """
    SELECT size, note FROM public.checkpoints
    WHERE NOT (in_directory AND at_url) AND NOT at_url ORDER BY size LIMIT 1
"""

# A note that was signed once more meanwhile, by a new key, is still to be posted.
_POSTED: Final = "UPDATE public.checkpoints SET at_url = true WHERE size = %s AND note = %s"


class Unsound(Exception):
    """The log is not what was recorded; one line, fit to show."""


@dataclass(slots=True)
class _Head:
    """Up to where all is verified and in the tree. `origin` is empty before the first block."""

    tree: GrowingTree
    link: Link
    origin: str = ""
    unsound: str | None = None


class Checkpointer:
    """One process does it, whichever leads (`followers.leadership.lead`)."""

    name = "checkpoints"

    def __init__(
        self,
        *,
        seeds: Seeds,
        directory: CheckpointDirectory | None,
        post: Post | None,
        witnesses: Witnesses,
        every: timedelta = EVERY,
        look: timedelta = LOOK,
    ) -> None:
        """
        Args:
            seeds: of the keys that this process has.
            directory, post: where checkpoints are published.
        """
        self._signers = Signers(seeds)
        self._not_here: str | None = None
        self._directory = directory
        self._post = post
        self._witnesses = witnesses
        self._every = every.total_seconds()
        self._look = look.total_seconds()
        self._directory_failed = False

    async def work(self, connection: Connection) -> None:
        """Verify, sign and publish until cancelled; see `LeaderTask`."""
        loop = asyncio.get_running_loop()
        head = await read_head(connection)
        signed, signed_position = await (await connection.execute(_SIGNED, (head.tree.size,))).fetchone() or (0, 0)
        due = loop.time()
        posting = _Posting(self._post) if self._post else None
        try:
            while True:
                news = (await ends(connection)).block.position - signed_position
                changing = await self._signers.is_changing(connection)
                much = (news < 0 or news >= MANY_EVENTS) and head.unsound is None  # what is unsound stays so for long
                if much or ((news or changing) and loop.time() >= due):
                    await self._follow(connection, head)
                    if await self._sign(connection, head, signed, changing=changing):
                        signed, signed_position = head.tree.size, head.link.position
                    due = loop.time() + self._every
                await self._to_directory(connection, head.origin)
                if posting is not None:
                    await posting.go_on(connection)
                await asyncio.sleep(self._look)
        finally:
            if posting is not None:
                await posting.close()

    async def _follow(self, connection: Connection, head: _Head) -> None:
        """Verify up to the end of the log as it is now, or as far as it is what was recorded."""
        loop = asyncio.get_running_loop()
        end = (await ends(connection)).block.position
        if end < head.link.position:
            verified = head.link.position
            await _say(connection, head, f"the log was cut off: it was verified up to {verified}, and ends at {end}")
        try:
            while head.link.position < end:
                begun = loop.time()
                await self._stretch(connection, head, min(head.link.position + STRETCH, end))
                if head.link.position < end:
                    await while_touching(connection, asyncio.sleep(REST * (loop.time() - begun)))
        except Unsound as error:
            await _say(connection, head, str(error))

    async def _stretch(self, connection: Connection, head: _Head, upto: Position) -> None:
        """Verify some blocks, and add them to the tree.

        Raises:
            Unsound: they are not what was recorded; nothing of them is added.
        """
        after = head.link
        last = await block_from(connection, upto)
        if last is None:
            raise Unsound(f"no block contains position {upto}")
        blocks = await blocks_between(connection, after.position, last.position)
        events = await _events_of(connection, after.position, last.position)
        steps = list(walk(after, blocks, events))
        findings = [one for step in steps for one in step.findings]
        if findings:
            raise Unsound(_line(findings[0]))
        for block in blocks:
            head.tree.add(leaf_of(block.hash))
        head.origin = head.origin or f"registrar/{blocks[0].hash.hex()[:16]}"
        head.link, head.unsound = last, None
        digests = b"".join(digest for step in steps for digest in step.digests)
        async with connection.transaction():
            await connection.execute(_LOSABLE)
            for (level, index), hashes in head.tree.take_changed().items():
                await connection.execute(_KEEP_TILE, (level, index, hashes))
            await connection.execute(_KEEP_DIGESTS, (after.position + 1, last.position, digests))
            await connection.execute(_KEEP_HEAD, (head.tree.size, last.position, last.hash, head.origin))

    async def _sign(self, connection: Connection, head: _Head, signed: int, *, changing: bool) -> bool:
        """Sign the tree if it has grown, or by a new key what was signed by the old one; True if that was done."""
        has_grown = head.tree.size > signed
        if not has_grown and (not changing or not head.tree.size or head.unsound is not None):
            return False
        try:
            chosen = await self._signers.choose(connection, head.origin)
        except KeyNotHere as error:
            if str(error) != self._not_here:
                hint = "nothing is signed by this process; is it in REGISTRAR_CHECKPOINT_KEY, or …_FILE?"
                log.error("checkpoint.not_signed", why=str(error), hint=hint)  # noqa: TRY400 - no bug
            self._not_here = str(error)
            return False
        self._not_here = None
        if not has_grown and chosen.first_of is None:
            return False
        await self._keep(connection, head, chosen)
        return True

    async def _keep(self, connection: Connection, head: _Head, chosen: Chosen) -> None:
        """Have a checkpoint of the tree as it is signed and cosigned, and keep it to be published."""
        now = datetime.now(UTC)
        checkpoint = Checkpoint(head.tree.size, head.link.position, head.tree.root())
        note = chosen.note(head.origin, checkpoint, now)
        prove = partial(consistency_proof, Tiles.of(connection), size=checkpoint.size)
        note = await while_touching(connection, self._witnesses.cosign(note, checkpoint.size, prove))
        published = (self._directory is None, self._post is None)
        async with connection.transaction():
            await connection.execute(_KEEP, (checkpoint.size, checkpoint.position, note, now, *published))
            await chosen.keep(connection, checkpoint.size)
        crash_point("checkpoint.before_publication")

    async def _to_directory(self, connection: Connection, origin: str) -> None:
        """Publish what is not there yet, the oldest first; what fails is tried at the next look."""
        if self._directory is None or not origin:
            return
        waiting = await (await connection.execute(_FOR_DIRECTORY, (MOST_AT_ONCE,))).fetchall()
        keys = await self._signers.verifiers(connection, origin) if waiting else []
        for size, note, signed_at in waiting:
            try:
                await while_touching(
                    connection, asyncio.to_thread(self._directory.publish, note, signed_at.astimezone(UTC), keys)
                )
            except OSError as error:
                if not self._directory_failed:  # once an outage
                    hint = "checkpoints wait in the database until they can be written; appends go on"
                    log.error("checkpoint.not_written", error=error.strerror or str(error), hint=hint)  # noqa: TRY400
                self._directory_failed = True
                return
            self._directory_failed = False
            crash_point("checkpoint.before_note")
            await connection.execute("UPDATE public.checkpoints SET in_directory = true WHERE size = %s", (size,))


class _Posting:
    """Posts one checkpoint after the other, beside everything else: an address may take its time to fail."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._under_way: tuple[int, str, asyncio.Future[str | None]] | None = None
        self._pause = 0.0
        self._not_before = 0.0

    async def go_on(self, connection: Connection) -> None:
        """Note what has become of the last one, and begin with the next."""
        now = asyncio.get_running_loop().time()
        if self._under_way is not None:
            size, note, task = self._under_way
            if not task.done():
                return
            self._under_way = None
            if (failure := task.result()) is None:
                await connection.execute(_POSTED, (size, note))
                self._pause = 0.0
            else:
                if not self._pause:  # once an outage
                    hint = "checkpoints wait in the database until they are taken; appends go on"
                    log.error("checkpoint.not_posted", why=failure, hint=hint)
                self._pause = min(2 * self._pause or 1.0, SLOWEST.total_seconds())
                self._not_before = now + self._pause
        if now >= self._not_before:
            row = await (await connection.execute(_FOR_URL)).fetchone()
            if row is not None:
                size, note = row
                self._under_way = size, note, asyncio.ensure_future(self._post(note.encode()))

    async def close(self) -> None:
        if self._under_way is not None:
            self._under_way[2].cancel()
            await asyncio.gather(self._under_way[2], return_exceptions=True)


async def read_head(connection: Connection) -> _Head:
    """Where the last leader came to."""
    row = await (await connection.cursor(binary=True).execute(_HEAD)).fetchone()
    if row is None:
        return _Head(GrowingTree(0, {}), BEGINNING)
    size, position, hash_, origin, unsound = row
    edge: dict[int, bytes] = {}
    for level, index in edge_of(size):
        tile = await (await connection.cursor(binary=True).execute(_TILE, (level, index))).fetchone()
        edge[level] = tile[0] if tile else b""
    return _Head(GrowingTree(size, edge), Link(position, hash_), origin, unsound)


async def _say(connection: Connection, head: _Head, unsound: str) -> None:
    """Log what is not as it was recorded, once, and keep it for health."""
    if head.unsound != unsound:
        hint = "nothing is signed any more; `registrar audit verify` says more"
        log.error("checkpoint.unsound", found=unsound, hint=hint)
        link = head.link  # of the beginning, if the first of all is not what was recorded
        await connection.execute(_KEEP_UNSOUND, (head.tree.size, link.position, link.hash, head.origin, unsound))
        head.unsound = unsound


async def _events_of(connection: Connection, after: Position, upto: Position) -> list[Event]:
    found: list[Event] = []
    while more := await events_between(connection, found[-1].position if found else after, upto):
        found += more
        if found[-1].position >= upto:
            break
    return found


def _line(finding: Finding) -> str:
    _, first, last, says = finding
    where = f"position {first} is" if first == last else f"positions {first} to {last} are"
    return f"{where} not what was recorded: {says}"
