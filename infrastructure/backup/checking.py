"""A restored log, checked: its hash chain from the first event to the head, and the newest checkpoint against it."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from domain.recorded import Position
from infrastructure.event_store.chain import BEFORE_ALL, block_hash, event_digest
from infrastructure.event_store.reader import COLUMNS, RecordedRow
from infrastructure.postgres.connection import Connection

_EVENTS_AT_A_TIME: Final = 5000

_BLOCKS: Final = """
    SELECT last_position, first_position, hash FROM public.blocks
    WHERE last_position > %(after)s AND last_position <= greatest(%(after)s + %(events)s, (
        SELECT min(last_position) FROM public.blocks WHERE last_position > %(after)s))
    ORDER BY last_position
"""
_EVENTS: Final = f"""
    SELECT {COLUMNS} FROM public.events
    WHERE notification_id > %(after)s AND notification_id <= %(upto)s ORDER BY notification_id
"""  # noqa: S608 - a constant


class BrokenChain(Exception):
    """What was restored is not what was recorded; one line that names the first bad position."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a signed note (C2SP tlog-checkpoint) says; its signature is not looked at here.

    Attributes:
        size: blocks that it covers.
        root: of the RFC 6962 tree over their hashes.
        position: of the last event that it covers.
    """

    size: int
    root: bytes
    position: Position


@dataclass(frozen=True, slots=True)
class Restored:
    """A log whose chain verifies.

    Attributes:
        recorded_at: of its last event; None if there is none.
        root: of the tree over the first blocks, as many as were asked for; None if there are fewer.
    """

    position: Position
    hash: bytes
    recorded_at: datetime | None
    root: bytes | None


def newest_checkpoint(*directories: Path) -> Checkpoint | None:
    """The one that covers most, of those that were published to these directories."""
    found = [_parsed(path.read_text()) for one in directories if (path := one / "checkpoint").is_file()]
    return max((one for one in found if one is not None), key=lambda one: one.size, default=None)


def _parsed(note: str) -> Checkpoint | None:
    lines = note.partition("\n\n")[0].splitlines()
    try:
        position = next(int(line.removeprefix("position ")) for line in lines[3:] if line.startswith("position "))
        return Checkpoint(int(lines[1]), b64decode(lines[2], validate=True), position)
    except (IndexError, ValueError, StopIteration):
        return None


async def check_log(
    connection: Connection,
    progress: Callable[[Position, Position], None],
    *,
    holds: tuple[Position, bytes],
    tree_size: int = 0,
) -> Restored:
    """Recompute the chain, some thousand events at a time.

    Args:
        holds: a position at which a block has ended, and its hash: the head when the backup was begun.
        tree_size: of the tree whose root is wanted, in blocks.

    Raises:
        BrokenChain: names the first bad position.
        psycopg.Error: the database is away.
    """
    head, hash_of_head = await _head(connection)
    at: Position = 0
    hash_at, time, before, tree = BEFORE_ALL, None, holds == (0, BEFORE_ALL), _Tree(tree_size)
    while blocks := await _rows(connection, _BLOCKS, after=at, events=_EVENTS_AT_A_TIME):
        events = await _rows(connection, _EVENTS, after=at, upto=blocks[-1][0])
        rows = iter([RecordedRow(*one) for one in events])
        for last, first, stated in blocks:
            some = [row for _, row in zip(range(last - at), rows, strict=False)]
            if first != at + 1 or [row.position for row in some] != list(range(first, last + 1)):
                raise BrokenChain(f"events are missing behind position {at}")
            hash_at, time, at = _hash_of(hash_at, some), some[-1].recorded_at, last
            if hash_at != stated or any(row.recorded_at != time for row in some):
                raise BrokenChain(f"the block of the positions {first} to {last} is not as it was recorded")
            before = before or holds == (last, hash_at)
            tree.add(hash_at)
        progress(at, head)
    if (at, hash_at) != (head, hash_of_head) or not before:
        raise BrokenChain(f"it ends at position {at}, and is not the log that was backed up at position {holds[0]}")
    return Restored(at, hash_at, time, tree.root)


def _hash_of(previous: bytes, rows: Sequence[RecordedRow]) -> bytes:
    digests = [event_digest(*row[:4], *row[6:]) for row in rows]
    return block_hash(previous, rows[0].position, rows[0].recorded_at, digests)


async def _head(connection: Connection) -> tuple[Position, bytes]:
    [(position, hash_of_head)] = await _rows(connection, "SELECT position, hash FROM public.head")
    return position, hash_of_head


async def _rows(connection: Connection, query: str, **parameters: object) -> list[Any]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(query.encode(), parameters or None)
    return await cursor.fetchall()


class _Tree:
    """The root over the first leaves (RFC 6962), kept as the roots of its perfect subtrees."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._added = 0
        self._whole: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        if self._added == self._size:
            return
        self._added += 1
        self._whole.append(sha256(b"\0" + leaf).digest())
        merges = self._added
        while merges % 2 == 0:
            right, left = self._whole.pop(), self._whole.pop()
            self._whole.append(sha256(b"\1" + left + right).digest())
            merges //= 2

    @property
    def root(self) -> bytes | None:
        if self._added < self._size or not self._size:
            return None
        root = self._whole[-1]
        for left in reversed(self._whole[:-1]):
            root = sha256(b"\1" + left + root).digest()
        return root
