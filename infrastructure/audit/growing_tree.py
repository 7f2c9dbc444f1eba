"""The tree over the blocks as it grows, in tiles (https://c2sp.org/tlog-tiles): only its right edge is in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from hashlib import sha256
from typing import Final

from infrastructure.audit.roots import Frontier

FULL: Final = 256
"""Hashes of a tile; each one of level L is the root of 256 ** L leaves."""


def edge_of(size: int) -> list[tuple[int, int]]:
    """Level and index of each tile that is begun and not full yet, in a tree of so many leaves."""
    edge, level = [], 0
    while size > 0:
        if size % FULL:
            edge.append((level, size // FULL))
        size, level = size // FULL, level + 1
    return edge


class GrowingTree:
    """
    Attributes:
        size: number of leaves.
    """

    def __init__(self, size: int, edge: Mapping[int, bytes]) -> None:
        """
        Args:
            edge: what is in the tiles of `edge_of(size)`, by level; more than belongs to that size does not matter.
        """
        self.size = size
        self._tiles: dict[int, list[bytes]] = {}
        for level, _ in edge_of(size):
            count = size // FULL**level % FULL
            self._tiles[level] = [edge[level][32 * at : 32 * at + 32] for at in range(count)]
        self._changed: dict[tuple[int, int], bytes] = {}

    def add(self, leaves: Sequence[bytes]) -> None:
        at = 0
        while at < len(leaves):
            some = leaves[at : at + FULL - self.size % FULL]
            at, self.size = at + len(some), self.size + len(some)
            self._add(0, self.size - 1, some)

    def _add(self, level: int, last: int, hashes: Sequence[bytes]) -> None:
        """Add some to the last tile of a level, as many as it has room for."""
        tile = self._tiles.setdefault(level, [])
        tile += hashes
        if len(tile) == FULL:
            self._changed[level, last // FULL] = b"".join(tile)
            self._tiles[level] = []
            self._add(level + 1, last // FULL, [_root_of(tile)])

    def root(self) -> bytes:
        if not self.size:
            return sha256(b"").digest()
        # The smaller subtrees are to the right: those of a level, with all that is smaller as one more.
        parts = [self._tiles[level] for level in sorted(self._tiles) if self._tiles[level]]
        return reduce(lambda smaller, tile: _root_of([*tile, smaller]), parts[1:], _root_of(parts[0]))

    def take_changed(self) -> dict[tuple[int, int], bytes]:
        """The tiles, by level and index, that are new or longer since the last call."""
        changed, self._changed = self._changed, {}
        for level, index in edge_of(self.size):
            changed[level, index] = b"".join(self._tiles[level])
        return changed


def _root_of(hashes: list[bytes]) -> bytes:
    tree = Frontier()
    tree.add_all(hashes)
    return tree.root()
