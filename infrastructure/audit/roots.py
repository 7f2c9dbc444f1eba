"""What checkpoints say of the log: roots of the tree over its blocks (RFC 6962), and where they stop to agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

from domain.recorded import Position
from infrastructure.audit.walk import Finding


class Checkpoint(NamedTuple):
    """What was once signed, outside the database.

    Attributes:
        size: number of blocks.
        position: that of the last event in them.
    """

    size: int
    position: Position
    root: bytes


class Frontier:
    """The tree over the blocks so far: only the roots of its full subtrees, the largest first.

    Attributes:
        size: number of blocks.
    """

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        roots, size = self._roots, self.size
        while size & 1:
            leaf = sha256(b"\1" + roots.pop() + leaf).digest()
            size >>= 1
        roots.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        if not self._roots:
            return sha256(b"").digest()
        *larger, root = self._roots
        for one in reversed(larger):
            root = sha256(b"\1" + one + root).digest()
        return root


def leaf_of(block_hash: bytes) -> bytes:
    return sha256(b"\0" + block_hash).digest()


@dataclass(frozen=True, slots=True)
class Agreement:
    """Up to where the log is what checkpoints say.

    Attributes:
        compared: number of checkpoints.
        last: the last one that agrees before any that does not; None if there is none.
        disagrees: the first one that does not agree.
    """

    compared: int
    last: Checkpoint | None
    disagrees: Checkpoint | None
    findings: Sequence[Finding] = ()


class Comparison:
    """Compares the tree with checkpoints as it grows."""

    _NOTHING: Final = Checkpoint(0, 0, b"")

    def __init__(self, checkpoints: Iterable[Checkpoint]) -> None:
        self._waiting = sorted(set(checkpoints), reverse=True)
        self._compared = len(self._waiting)
        self._tree = Frontier()
        self._end: Position = 0
        self._last: Checkpoint | None = None
        self._disagrees: Checkpoint | None = None
        self._why = ""

    def grow(self, blocks: Iterable[tuple[Position, bytes]]) -> None:
        """Add blocks: the last position and the leaf hash of each."""
        if not self._compared:
            return
        tree = self._tree
        for position, leaf in blocks:
            tree.add(leaf)
            self._end = position
            while self._waiting and self._waiting[-1].size <= tree.size:
                self._compare(self._waiting.pop())

    def _compare(self, checkpoint: Checkpoint) -> None:
        if self._disagrees is not None:
            return
        if checkpoint.root != self._tree.root():
            self._disagrees, self._why = checkpoint, "the checkpoint of {} has another root"
        elif checkpoint.position != self._end:
            self._disagrees, self._why = (
                checkpoint,
                f"the checkpoint of {{}} was signed for a log of {self._end} events",
            )
        else:
            self._last = checkpoint

    def result(self) -> Agreement:
        """Once the whole log has been added."""
        last, disagrees = self._last, self._disagrees
        agreed = "none before it agrees" if last is None else f"the last one that agrees is that of {last.position}"
        if disagrees is not None:
            says = f"{self._why.format(disagrees.position)}, {agreed}"
            first = (last or self._NOTHING).position + 1
            found = [Finding("checkpoint", first, max(first, disagrees.position), says)]
        elif self._waiting:
            disagrees = self._waiting[-1]
            says = f"the log has been cut off: the checkpoint of {disagrees.position} has more blocks, {agreed}"
            found = [Finding("cut", self._end + 1, max(self._end + 1, disagrees.position), says)]
        else:
            found = []
        return Agreement(self._compared, last, disagrees, found)
