"""Proofs: the events of one registration, and what leads from them to a checkpoint, in a file that verifies by itself.

`examples/registrar_verify.py` describes the file and checks it; it is given to auditors, and shares no code with this.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
from psycopg.rows import class_row

from domain.recorded import Position
from infrastructure.audit.notes import BadNote, checkpoint_in
from infrastructure.audit.paths import MissingTile, Tiles, audit_path, leaf_hash, root_of, tiles_from_blocks
from infrastructure.event_store.chain import BEFORE_ALL, block_hash, event_digest
from infrastructure.event_store.listing import events_at
from infrastructure.event_store.reader import RecordedRow
from infrastructure.postgres.connection import Connection

FORMAT: Final = "registrar proof"
VERSION: Final = 1

# The blocks of these positions, with the block before, and how many there are before that.
_BLOCKS: Final = """
    WITH touched AS (
        SELECT DISTINCT b.first_position, b.last_position, b.hash
        FROM unnest(%(positions)s::bigint[]) AS p (position)
        CROSS JOIN LATERAL (
            SELECT l.* FROM public.blocks AS l WHERE l.last_position >= p.position ORDER BY l.last_position LIMIT 1
        ) AS b
        WHERE b.first_position <= p.position
    ), since AS (
        SELECT t.*, lag(t.first_position, 1, 0) OVER (ORDER BY t.first_position) AS after FROM touched AS t
    )
    SELECT s.first_position, s.last_position, s.hash,
           (SELECT p.hash FROM public.blocks AS p WHERE p.last_position = s.first_position - 1),
           sum((SELECT count(*) FROM public.blocks AS c
                WHERE c.last_position >= s.after AND c.last_position < s.first_position))
               OVER (ORDER BY s.first_position)::bigint
    FROM since AS s ORDER BY s.first_position
"""

_DIGESTS: Final = """
    SELECT e.notification_id, e.recorded_at, public.event_digest(e)
    FROM public.events AS e WHERE e.notification_id BETWEEN %(first)s AND %(last)s ORDER BY e.notification_id
"""

# (Not one of a log to come, which anybody could have written there.)
_CHECKPOINTS: Final = """
    SELECT size, position, note FROM public.checkpoints AS c
    WHERE (%(size)s::bigint IS NULL OR size = %(size)s) AND size < %(below)s
        AND EXISTS (SELECT FROM public.blocks AS b WHERE b.last_position = c.position)
    ORDER BY size DESC LIMIT 10
"""
_ENDLESS: Final = 2**63 - 1


class CannotProve(Exception):
    """There is no such proof; one line, fit to show."""


class CheckpointRow(NamedTuple):
    """A checkpoint as it was published: a signed note over the tree of the first `size` blocks, up to `position`."""

    size: int
    position: Position
    note: str

    @property
    def says_what_it_is(self) -> bool:
        """Is it a checkpoint in form, of the size and the position under which it is kept?"""
        try:
            return checkpoint_in(self.note)[:2] == self[:2]
        except BadNote:
            return False

    @property
    def root(self) -> bytes:
        """Of the tree: the note's third line."""
        return b64decode(self.note.split("\n")[2])


class EventPart(msgspec.Struct, omit_defaults=True):
    """An event, with all that its digest covers; `state` is its own bytes as they are, `state_base64` if no text."""

    stream_id: UUID
    version: int
    type: str
    correlation_id: UUID
    causation_position: Position | None
    actor: str
    trace: str | None
    state: str | None = None
    state_base64: bytes | None = None


class BlockPart(msgspec.Struct):
    """A block; of its events those about others are given by their digests."""

    index: int
    previous_hash: str
    first_position: Position
    recorded_at: str
    inclusion: list[str]
    events: list[str | EventPart]


class ProofFile(msgspec.Struct):
    format: str
    version: int
    registration_id: UUID
    checkpoint: str
    blocks: list[BlockPart]

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


@dataclass(frozen=True, slots=True)
class Proof:
    """
    Attributes:
        events: how many are proved.
        later: how many more there are, which were recorded after the checkpoint.
    """

    file: ProofFile
    checkpoint: CheckpointRow
    events: int
    later: int


async def checkpoint_of(connection: Connection, size: int | None) -> CheckpointRow:
    """The checkpoint of the tree of that size, or the latest one.

    Raises:
        CannotProve: there is none.
    """
    cursor, below = connection.cursor(row_factory=class_row(CheckpointRow)), _ENDLESS
    while rows := await (await cursor.execute(_CHECKPOINTS.encode(), {"size": size, "below": below})).fetchall():
        for row in rows:
            if row.says_what_it_is:
                return row
        below = rows[-1].size
    if size is None:
        raise CannotProve("There is no checkpoint yet, so nothing was signed that a proof could lead to.")
    raise CannotProve(
        f"There is no checkpoint of {size} blocks; `registrar audit checkpoints list` shows those there are."
    )


async def prove(
    connection: Connection, registration_id: UUID, positions: Sequence[Position], checkpoint: CheckpointRow
) -> Proof:
    """Make the proof of these events, which are about the registration, and check it.

    Raises:
        CannotProve: all of them were recorded later than the checkpoint, or they are not as they were recorded.
    """
    covered = [position for position in positions if position <= checkpoint.position]
    if not covered:
        raise CannotProve(
            f"The events of this registration are not covered by the checkpoint yet: it ends at position "
            f"{checkpoint.position}, they begin at {min(positions)}; try again with a later one."
        )
    rows = {row.position: row for row in await events_at(connection, covered)}
    blocks = [await _read(connection, found, rows) for found in await _blocks_of(connection, covered)]
    if sum(isinstance(entry, EventPart) for part, _ in blocks for entry in part.events) != len(covered):
        raise CannotProve(_altered(covered[0], covered[-1]))
    # Tiles are derived: where they do not lead to the root, the blocks may all the same.
    indexes = [part.index for part, _ in blocks]
    if not await _lead(Tiles.of(connection), blocks, checkpoint) and not await _lead(
        await tiles_from_blocks(connection, checkpoint.size, indexes), blocks, checkpoint
    ):
        raise CannotProve(
            f"The log is not the one that the checkpoint of {checkpoint.size} blocks was made of; "
            "`registrar audit verify` says where it was changed."
        )
    parts = [part for part, _ in blocks]
    file = ProofFile(FORMAT, VERSION, registration_id, checkpoint.note, parts)
    return Proof(file, checkpoint, len(covered), len(positions) - len(covered))


async def _lead(tiles: Tiles, blocks: Sequence[tuple[BlockPart, bytes]], checkpoint: CheckpointRow) -> bool:
    """Give each block its audit path; does every one lead to the root that was signed?"""
    for part, leaf in blocks:
        try:
            path = await audit_path(tiles, part.index, checkpoint.size) if part.index < checkpoint.size else []
        except MissingTile:
            return False
        if root_of(leaf, part.index, checkpoint.size, path) != checkpoint.root:
            return False
        part.inclusion = [one.hex() for one in path]
    return True


class _Block(NamedTuple):
    first: Position
    last: Position
    hash: bytes
    previous: bytes | None
    place: int


async def _blocks_of(connection: Connection, positions: Sequence[Position]) -> list[_Block]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_BLOCKS.encode(), {"positions": list(positions)})
    return [_Block(*row) for row in await cursor.fetchall()]


async def _read(connection: Connection, block: _Block, rows: Mapping[Position, RecordedRow]) -> tuple[BlockPart, bytes]:
    """A block as it stands in the log, without its audit path, and its leaf of the tree."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(_DIGESTS.encode(), {"first": block.first, "last": block.last})
    found: list[tuple[Position, datetime, bytes]] = await cursor.fetchall()
    previous = BEFORE_ALL if block.first == 1 else block.previous
    if len({time for _, time, _ in found}) != 1 or previous is None:
        raise CannotProve(_altered(block.first, block.last))
    recorded_at = found[0][1]
    digests = [_digest(rows[position]) if position in rows else digest for position, _, digest in found]
    computed = block_hash(previous, block.first, recorded_at, digests)
    if computed != block.hash:
        raise CannotProve(_altered(block.first, block.last))
    part = BlockPart(
        index=block.place,
        previous_hash=previous.hex(),
        first_position=block.first,
        recorded_at=recorded_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        inclusion=[],
        events=[
            _part(rows[position]) if position in rows else digest.hex()
            for (position, _, _), digest in zip(found, digests, strict=True)
        ],
    )
    return part, leaf_hash(computed)


def _altered(first: Position, last: Position) -> str:
    where = f"position {first}" if first == last else f"positions {first} to {last}"
    return f"What stands at {where} is not what was recorded; `registrar audit verify` says more."


def _digest(row: RecordedRow) -> bytes:
    return event_digest(
        row.stream_id,
        row.version,
        row.topic,
        row.state,
        row.correlation_id,
        row.causation_position,
        row.actor,
        row.trace,
    )


def _part(row: RecordedRow) -> EventPart:
    part = EventPart(
        stream_id=row.stream_id,
        version=row.version,
        type=row.topic,
        correlation_id=row.correlation_id,
        causation_position=row.causation_position,
        actor=row.actor,
        trace=row.trace,
    )
    try:
        part.state = row.state.decode()
    except UnicodeDecodeError:
        part.state_base64 = row.state
    return part
