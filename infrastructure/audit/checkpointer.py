"""The checkpointer: follows the log, verifies what is new, and signs how far it is what was recorded; and reads again
what it has signed.

It only reads what appends write, and locks nothing of it. What does not verify is never signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog

from application.crash_points import crash_point
from domain.recorded import Position
from infrastructure.audit.growing_tree import GrowingTree, edge_of
from infrastructure.audit.known import keys_that_lead
from infrastructure.audit.outbox import Outbox, Post, latest_signed
from infrastructure.audit.paths import MissingTile, Tiles, consistency_proof
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.rereading import Rereading, another_log
from infrastructure.audit.roots import Checkpoint
from infrastructure.audit.rows import block_from, ends
from infrastructure.audit.signers import Chosen, KeyNotHere, Seeds, Signers
from infrastructure.audit.sound import Unsound, sound_stretch
from infrastructure.audit.walk import BEGINNING, Link
from infrastructure.audit.witness import Witnesses
from infrastructure.followers.leadership import LeaderSession, while_touching
from infrastructure.postgres.connection import Connection
from infrastructure.ticks import until_tick

log = structlog.get_logger(__name__)

EVERY: Final = timedelta(seconds=10)
"""Least time between two checkpoints, while there is news, unless there is much of it."""

MANY_EVENTS: Final = 10_000
"""So much news is signed at once."""

LOOK: Final = timedelta(seconds=1)
"""How often is looked whether news is to be signed, and whether something can be published now."""

AT_REST: Final = 3
"""Times `LOOK`, where there was none at the last look. The session is a leader's (`followers.leadership.TOUCH`)."""

REST: Final = 9
"""Rest after a stretch, in times of what it took: a first pass over a long log, or many appends, leave others nine
tenths of a core."""

_HEAD: Final = "SELECT size, position, hash, origin, unsound FROM public.tree_head"
_TILE: Final = "SELECT hashes FROM public.tree_tiles WHERE level = %s AND index = %s"

# One statement: it takes a ninth of the times that this process waits for the server, and wakes up. What is lost is
# done again, so no append has to wait for its flush.
_KEEP_STRETCH: Final = """
    WITH tiles AS (
        INSERT INTO public.tree_tiles (level, index, hashes)
        SELECT * FROM unnest(%(levels)s::integer[], %(indexes)s::bigint[], %(tiles)s::bytea[])
        ON CONFLICT (level, index) DO UPDATE SET hashes = excluded.hashes
    ), digests AS (
        INSERT INTO public.event_digests (first_position, last_position, digests)
        VALUES (%(first)s, %(last)s, %(digests)s) ON CONFLICT (first_position) DO NOTHING
    )
    INSERT INTO public.tree_head (size, position, hash, origin) VALUES (%(size)s, %(last)s, %(hash)s, %(origin)s)
    ON CONFLICT (only_row) DO UPDATE SET size = excluded.size, position = excluded.position, hash = excluded.hash,
        unsound = %(unsound)s
    RETURNING pg_catalog.set_config('synchronous_commit', 'off', true)
"""
_KEEP_UNSOUND: Final = """
    INSERT INTO public.tree_head (size, position, hash, origin, unsound) VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (only_row) DO UPDATE SET unsound = excluded.unsound
"""
_FORGET_UNSOUND: Final = "UPDATE public.tree_head SET unsound = NULL"
_KEEP: Final = """
    INSERT INTO public.checkpoints (size, position, note, signed_at, in_directory, at_url)
    VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (size) DO UPDATE SET position = excluded.position,
        note = excluded.note,
        signed_at = excluded.signed_at, in_directory = excluded.in_directory, at_url = excluded.at_url
"""


@dataclass(slots=True)
class Head:
    """Up to where all is verified and in the tree.

    Attributes:
        origin: empty before the first block.
        has_to_lead_to: was signed, and the tree has to come to it first.
    """

    tree: GrowingTree
    link: Link
    origin: str = ""
    unsound: str | None = None
    has_to_lead_to: Checkpoint | None = None

    def add(self, leaves: Sequence[bytes]) -> None:
        """Let the tree grow.

        Raises:
            Unsound: it has come to the size of the checkpoint, and is another one; it begins anew.
        """
        signed, before = self.has_to_lead_to, 0
        if signed is not None and signed.size <= self.tree.size + len(leaves):
            before = signed.size - self.tree.size
            self.tree.add(leaves[:before])
            if self.tree.root() != signed.root:
                self.tree, self.link = GrowingTree(0, {}), BEGINNING
                raise Unsound(another_log(signed.position))
            self.has_to_lead_to = None
        self.tree.add(leaves[before:])


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
        read_again: timedelta | None = None,
        every: timedelta = EVERY,
        look: timedelta = LOOK,
    ) -> None:
        """
        Args:
            seeds: of the keys that this process has.
            directory, post: where checkpoints are published.
            read_again: from one reading of what was signed to the next; None: once signed, nothing is read again.
        """
        self._signers = Signers(seeds)
        self._not_here: str | None = None
        self._directory = directory
        self._post = post
        self._witnesses = witnesses
        self._read_again = read_again
        self._every = every.total_seconds()
        self._look = look

    async def work(self, session: LeaderSession) -> None:
        """Verify, sign and publish until cancelled; see `LeaderTask`."""
        async with session.turn() as connection:  # all the time: it has the session to itself
            await self._work(connection)

    async def _work(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        head, last = await self._begin(connection)
        signed, signed_position = (last.size, last.position) if last is not None else (0, 0)
        due = loop.time()
        outbox = Outbox(self._directory, self._post)
        in_doubt = head.unsound is not None and head.tree.size > 0  # it may be what the last leader had signed
        rereading = Rereading(self._read_again, again=self._every, in_doubt=in_doubt)
        try:
            while True:
                end = (await ends(connection)).block.position
                is_sound = await _is_still_sound(connection, head, rereading, end)
                news = end - signed_position
                changing = await self._signers.is_changing(connection)
                much = news >= MANY_EVENTS and head.unsound is None  # what is unsound stays so for long
                if is_sound and (much or ((news or changing) and loop.time() >= due)):
                    await self._follow(connection, head)
                    if await self._sign(connection, head, signed, changing=changing):
                        signed, signed_position = head.tree.size, head.link.position
                        outbox.add(signed)
                    due = loop.time() + self._every
                if head.origin:
                    await outbox.go_on(connection, partial(self._signers.verifiers, connection, head.origin))
                await asyncio.sleep(self._until_next_look(is_at_rest=not news and not changing))
        finally:
            await outbox.close()

    def _until_next_look(self, *, is_at_rest: bool) -> float:
        return until_tick(AT_REST * self._look).total_seconds() if is_at_rest else self._look.total_seconds()

    async def _begin(self, connection: Connection) -> tuple[Head, Checkpoint | None]:
        """Where the last leader came to, and the last checkpoint.

        What stands in the tables of the tree is believed only as far as it leads to what was signed: else the whole log
        is read again, and has to.
        """
        head = await read_head(connection)
        first = await block_from(connection, 1)
        if first is None:
            return head, None
        head.origin = head.origin or _origin(first.hash)
        keys = await self._signers.verifiers(connection, head.origin)
        with suppress(OSError):  # of the directory; our own keys are known all the same
            keys = await keys_that_lead(connection, self._directory, keys)
        last = await latest_signed(connection, keys)
        stands = await block_from(connection, head.link.position) if head.tree.size else None
        is_moved = stands is not None and stands != head.link
        if is_moved or not await _is_whole(Tiles.of(connection), head.tree, last):
            hint = "the whole log is verified again, and nothing is signed meanwhile"
            log.warning("checkpoint.tree_lost", size=head.tree.size, hint=hint)
            head = Head(GrowingTree(0, {}), BEGINNING, head.origin, head.unsound)
        if last is not None and head.tree.size < last.size:
            head.has_to_lead_to = last
        return head, last

    async def _follow(self, connection: Connection, head: Head) -> None:
        """Verify up to the end of the log as it is now, or as far as it is what was recorded."""
        loop = asyncio.get_running_loop()
        end = (await ends(connection)).block.position
        try:
            while head.link.position < end:
                begun = loop.time()
                await self._stretch(connection, head, end)
                if head.link.position < end:
                    await while_touching(connection, asyncio.sleep(REST * (loop.time() - begun)))
        except Unsound as error:
            await _say(connection, head, str(error))

    async def _stretch(self, connection: Connection, head: Head, upto: Position) -> None:
        """Verify some blocks, and add them to the tree.

        Raises:
            Unsound: they are not what was recorded; nothing of them is added.
        """
        after = head.link
        stretch = await sound_stretch(connection, after, upto)
        head.add(stretch.leaves())
        head.origin = head.origin or _origin(stretch.blocks[0].hash)
        head.link = stretch.end
        if head.has_to_lead_to is None:  # else what was found may be further on
            head.unsound = None
        tiles = head.tree.take_changed()
        kept = {
            "levels": [level for level, _ in tiles],
            "indexes": [index for _, index in tiles],
            "tiles": list(tiles.values()),
            "first": after.position + 1,
            "last": head.link.position,
            "digests": stretch.digests,
            "size": head.tree.size,
            "hash": head.link.hash,
            "origin": head.origin,
            "unsound": head.unsound,
        }
        await connection.execute(_KEEP_STRETCH, kept)

    async def _sign(self, connection: Connection, head: Head, signed: int, *, changing: bool) -> bool:
        """Sign the tree if it has grown, or by a new key what was signed by the old one; True if that was done."""
        has_grown = head.tree.size > signed
        if not has_grown and (not changing or not head.tree.size or head.unsound is not None):
            return False
        try:
            chosen = await self._signers.choose(connection, head.origin)
        except KeyNotHere as error:
            if str(error) != self._not_here:
                hint = (
                    "nothing is signed by this process; put that key back (REGISTRAR_CHECKPOINT_KEY, or "
                    "checkpoint.key in the data directory)"
                )
                log.error("checkpoint.not_signed", why=str(error), hint=hint)  # noqa: TRY400 - no bug
            self._not_here = str(error)
            return False
        self._not_here = None
        if not has_grown and chosen.first_of is None:
            return False
        await self._keep(connection, head, chosen)
        return True

    async def _keep(self, connection: Connection, head: Head, chosen: Chosen) -> None:
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


async def read_head(connection: Connection) -> Head:
    """Where the last leader came to."""
    row = await (await connection.cursor(binary=True).execute(_HEAD)).fetchone()
    if row is None:
        return Head(GrowingTree(0, {}), BEGINNING)
    size, position, hash_, origin, unsound = row
    if size < 0:
        return Head(GrowingTree(0, {}), BEGINNING, origin, unsound)
    edge: dict[int, bytes] = {}
    for level, index in edge_of(size):
        tile = await (await connection.cursor(binary=True).execute(_TILE, (level, index))).fetchone()
        edge[level] = tile[0] if tile else b""
    return Head(GrowingTree(size, edge), Link(position, hash_), origin, unsound)


def _origin(first: bytes) -> str:
    """The log's name, after the hash of its first block."""
    return f"registrar/{first.hex()[:16]}"


async def _is_whole(tiles: Tiles, tree: GrowingTree, last: Checkpoint | None) -> bool:
    """Do the tiles make the tree, and the tree that was signed?"""
    try:
        if await tiles.root(0, tree.size) != tree.root():
            return False
        return last is None or last.size > tree.size or await tiles.root(0, last.size) == last.root
    except MissingTile:
        return False


async def _is_still_sound(connection: Connection, head: Head, rereading: Rereading, end: Position) -> bool:
    """Is what was verified still so, as far as is known? Goes on with reading it again."""
    verified = max(head.link.position, head.has_to_lead_to.position if head.has_to_lead_to is not None else 0)
    if end < verified:
        await _say(connection, head, f"the log was cut off: it was verified up to {verified}, and ends at {end}")
        rereading.in_doubt = True
        return False
    if head.has_to_lead_to is not None:  # all of it is being read
        return True
    doubted = rereading.in_doubt
    try:
        await rereading.go_on(connection, head.tree, head.link)
    except Unsound as error:
        await _say(connection, head, str(error))
    if doubted and not rereading.in_doubt and head.link.position == end:  # else it may be in what follows
        await connection.execute(_FORGET_UNSOUND)
        head.unsound = None
    return not rereading.in_doubt


async def _say(connection: Connection, head: Head, unsound: str) -> None:
    """Log what is not as it was recorded, once, and keep it for health."""
    if head.unsound != unsound:
        hint = "nothing is signed any more; `registrar audit verify` says more"
        log.error("checkpoint.unsound", found=unsound, hint=hint)
        link = head.link  # of the beginning, if the first of all is not what was recorded
        await connection.execute(_KEEP_UNSOUND, (head.tree.size, link.position, link.hash, head.origin, unsound))
        head.unsound = unsound
