"""Audit paths and consistency proofs (RFC 6962, 2.1) from the tiles that the checkpointer keeps of the tree.

A tile of level L has up to 256 hashes, each of them the root of 256 to the power of L leaves (https://c2sp.org/tlog-tiles).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from itertools import count
from typing import Any, Final

from infrastructure.audit.roots import subtree_roots
from infrastructure.postgres.connection import Connection

_TILE: Final = "SELECT hashes FROM public.tree_tiles WHERE level = %(level)s AND index = %(index)s"
_BLOCKS: Final = """
    SELECT last_position, hash FROM public.blocks WHERE last_position > %(after)s ORDER BY last_position LIMIT %(limit)s
"""
_HASHES: Final = 256
_BATCH: Final = 5_000
"""Blocks in one query."""

ReadTile = Callable[[int, int], Awaitable[bytes]]
"""The hashes of the tile of a level and an index, one behind the other; empty if there is none."""


class MissingTile(Exception):
    """A tile of the tree is not there, or shorter than it was; one line, fit to show."""


class Tiles:
    """The tiles of one tree, each read once. It may grow meanwhile: what there was of a tile stays."""

    def __init__(self, read: ReadTile) -> None:
        self._read = read
        self._known: dict[tuple[int, int], bytes] = {}

    @classmethod
    def of(cls, connection: Connection) -> Tiles:
        """Those in the database."""
        return cls(partial(_read, connection))

    async def hash_at(self, level: int, index: int) -> bytes:
        """The hash of the `index`th subtree of 256 ** `level` leaves.

        Raises:
            MissingTile: there is no such hash.
        """
        tile, place = divmod(index, _HASHES)
        if (level, tile) not in self._known:
            self._known[level, tile] = await self._read(level, tile)
        found = self._known[level, tile][32 * place : 32 * place + 32]
        if len(found) < 32:
            raise MissingTile(f"tile {tile} of level {level} of the tree has no hash {place}")
        return found

    async def root(self, first: int, end: int) -> bytes:
        """The root of the tree of the leaves from `first` up to, but not including, `end`."""
        size = end - first
        if size == 0:
            return sha256(b"").digest()
        level = 0
        while size > 1 and size % _HASHES == 0 and first % _HASHES == 0:
            size, first, level = size // _HASHES, first // _HASHES, level + 1
        if size == 1:
            return await self.hash_at(level, first)
        # (Not aligned: in terms of leaves again.)
        first, size = first * _HASHES**level, size * _HASHES**level
        split = split_of(size)
        return node_hash(await self.root(first, first + split), await self.root(first + split, end))


async def _read(connection: Connection, level: int, index: int) -> bytes:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_TILE.encode(), {"level": level, "index": index})
    row: Any = await cursor.fetchone()
    return b"" if row is None else bytes(row[0])


async def tiles_from_blocks(connection: Connection, size: int, indexes: Iterable[int]) -> Tiles:
    """The tiles of the tree of the first `size` blocks, computed from the blocks themselves: a look at each of them.

    Args:
        indexes: of the leaves whose audit paths are wanted.
    """
    growing = GrowingTiles(size, indexes)
    after = 0
    while growing.size < size:
        cursor = connection.cursor(binary=True)
        await cursor.execute(_BLOCKS.encode(), {"after": after, "limit": min(_BATCH, size - growing.size)})
        blocks: Any = await cursor.fetchall()
        if not blocks:
            break
        for after, block in blocks:  # noqa: B007 - the next query goes on behind it
            growing.add(leaf_hash(block))
    return Tiles(growing.read)


class GrowingTiles:
    """The tiles of a tree of whose leaves one comes after the other; of the leaves only some tiles are kept.

    Attributes:
        size: how many leaves have come.
    """

    def __init__(self, size: int, indexes: Iterable[int]) -> None:
        """
        Args:
            size: how many there will be.
            indexes: of those whose audit paths are wanted.
        """
        self.size = 0
        self._wanted = {index // _HASHES for index in (*indexes, size)}
        self._kept: dict[int, bytearray] = {}
        self._latest = bytearray()
        self._above: list[bytearray] = []  # all hashes of level 1, of level 2, …

    def add(self, leaf: bytes) -> None:
        tile = self.size // _HASHES
        self._latest += leaf
        self.size += 1
        if tile in self._wanted:
            self._kept[tile] = self._latest
        if self.size % _HASHES == 0:
            self._raise(self._latest)
            self._latest = bytearray()

    def _raise(self, full: bytearray) -> None:
        """Add the root of a tile that has become full to the level above, and so on."""
        for level in count():
            if level == len(self._above):
                self._above.append(bytearray())
            self._above[level] += _root_of_full(full)
            if len(self._above[level]) % (32 * _HASHES):
                return
            full = self._above[level][-32 * _HASHES :]

    async def read(self, level: int, index: int) -> bytes:
        """See `ReadTile`."""
        if level == 0:
            return bytes(self._kept.get(index, b""))
        hashes = self._above[level - 1] if level <= len(self._above) else b""
        return bytes(hashes[32 * _HASHES * index : 32 * _HASHES * (index + 1)])


def _root_of_full(tile: bytearray) -> bytes:
    (root,) = subtree_roots([bytes(tile[place : place + 32]) for place in range(0, len(tile), 32)])
    return root


async def audit_path(tiles: Tiles, index: int, size: int) -> list[bytes]:
    """The proof that the leaf at this index is in the tree of the first `size` leaves: from the leaf to the root."""
    path: list[bytes] = []
    first, end = 0, size
    while end - first > 1:
        split = first + split_of(end - first)
        if index < split:
            path.append(await tiles.root(split, end))
            end = split
        else:
            path.append(await tiles.root(first, split))
            first = split
    return path[::-1]


async def consistency_proof(tiles: Tiles, old: int, size: int) -> list[bytes]:
    """The proof that the tree of the first `size` leaves continues that of the first `old`; of 0 or all it is empty."""
    if not 0 < old < size:
        return []
    proof: list[bytes] = []
    first, end, begun = 0, size, True
    while old != end:
        split = first + split_of(end - first)
        if old <= split:
            proof.append(await tiles.root(split, end))
            end = split
        else:
            proof.append(await tiles.root(first, split))
            first, begun = split, False
    if not begun:
        proof.append(await tiles.root(first, end))
    return proof[::-1]


def root_of(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """Where an audit path leads; None if it is not as long as it must be (RFC 9162, 2.1.3.2)."""
    last = size - 1
    for neighbour in path:
        if last == 0:
            return None
        if index % 2 == 1 or index == last:
            leaf = node_hash(neighbour, leaf)
            while index % 2 == 0 and index > 0:
                index, last = index // 2, last // 2
        else:
            leaf = node_hash(leaf, neighbour)
        index, last = index // 2, last // 2
    return leaf if last == 0 else None


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def split_of(size: int) -> int:
    """The largest power of two below the size."""
    return 1 << (size - 1).bit_length() - 1
