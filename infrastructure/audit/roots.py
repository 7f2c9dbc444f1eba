"""What checkpoints say of the log: roots of the tree over its blocks (RFC 6962), and where they stop to agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


FULL: Final = 256
"""Leaves of a subtree that is computed at once."""


def subtree_roots(leaves: Sequence[bytes], each: int = FULL) -> Sequence[bytes]:
    """The roots of consecutive full subtrees.

    Args:
        each: leaves of one, a power of two; all are a multiple of it.
    """
    while each > 1:
        one_by_one = iter(leaves)
        leaves = [sha256(b"\1" + left + right).digest() for left, right in zip(one_by_one, one_by_one, strict=True)]
        each //= 2
    return leaves


class Frontier:
    """The tree over the blocks so far: only the roots of its full subtrees, the largest first.

    Attributes:
        size: number of blocks.
    """

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        self._add(leaf, 1)

    def add_all(self, leaves: Sequence[bytes]) -> None:
        """As `add` of each, in a third of the time."""
        at = 0
        while at < len(leaves):
            if self.size % FULL or len(leaves) - at < FULL:
                self._add(leaves[at], 1)
                at += 1
                continue
            whole = (len(leaves) - at) // FULL * FULL
            for root in subtree_roots(leaves[at : at + whole]):
                self._add(root, FULL)
            at += whole

    def _add(self, root: bytes, leaves: int) -> None:
        """Add a subtree of a power of two leaves, of which those before it are a multiple."""
        roots, subtrees = self._roots, self.size // leaves
        while subtrees & 1:
            root = sha256(b"\1" + roots.pop() + root).digest()
            subtrees >>= 1
        roots.append(root)
        self.size += leaves

    def root(self) -> bytes:
        if not self._roots:
            return sha256(b"").digest()
        *larger, root = self._roots
        for one in reversed(larger):
            root = sha256(b"\1" + one + root).digest()
        return root


def leaf_of(block_hash: bytes) -> bytes:
    return sha256(b"\0" + block_hash).digest()


def leaves_of(block_hashes: Iterable[bytes]) -> list[bytes]:
    return [sha256(b"\0" + one).digest() for one in block_hashes]


class Claim(NamedTuple):
    """A note that calls itself a checkpoint; whether somebody has signed it is another question.

    Attributes:
        note: the whole of it.
    """

    checkpoint: Checkpoint
    note: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Up to where the log is what checkpoints say.

    Attributes:
        compared: number of checkpoints.
        last: the last one that agrees before any that does not; None if there is none.
        disagrees: the first one that does not agree.
        unsigned: number of notes that could be told to be none.
    """

    compared: int
    last: Checkpoint | None
    disagrees: Checkpoint | None
    findings: Sequence[Finding] = ()
    unsigned: int = 0


class Comparison:
    """Compares the tree with checkpoints as it grows.

    A year has millions of checkpoints, and to look at a signature takes longer than at a block. It is looked at where
    it matters: of a note that does not agree, and of the last one that does, which speaks for all before it.
    """

    MOST_UNSETTLED: Final = 1_000
    """Notes in memory that agree and whose signatures nobody has looked at."""

    _NOTHING: Final = Checkpoint(0, 0, b"")

    def __init__(self, claims: Iterable[Claim], is_signed: Callable[[Claim], bool] = lambda _: True) -> None:
        """
        Args:
            claims: the smallest tree first; taken as they are needed.
            is_signed: by somebody who signs for this log.
        """
        self._claims = iter(claims)
        self._is_signed = is_signed
        self._next = next(self._claims, None)
        self._tree = Frontier()
        self._end: Position = 0
        self._unsettled = list[Claim]()
        self._compared = 0
        self._unsigned = 0
        self._last: Checkpoint | None = None
        self._disagrees: Checkpoint | None = None
        self._why = ""

    @property
    def is_done(self) -> bool:
        """More blocks change nothing: there is no checkpoint left, or one has not agreed."""
        return self._next is None

    def grow(self, positions: Sequence[Position], leaves: Sequence[bytes]) -> None:
        """Add blocks: the last position and the leaf hash of each."""
        at = 0
        while self._next is not None and at < len(leaves):
            first, at = at, at + max(1, self._next.checkpoint.size - self._tree.size)
            self._tree.add_all(leaves[first:at])
            self._end = positions[min(at, len(leaves)) - 1]
            while self._next is not None and self._next.checkpoint.size <= self._tree.size:
                self._compare(self._take(self._next))

    def _take(self, claim: Claim) -> Claim:
        """Go on to the next one: the same note may come from two places."""
        while self._next == claim:
            self._next = next(self._claims, None)
        return claim

    def _compare(self, claim: Claim) -> None:
        size, position, root = claim.checkpoint
        if size == self._tree.size and root == self._tree.root() and position == self._end:
            self._unsettled.append(claim)
            if len(self._unsettled) == self.MOST_UNSETTLED:
                self._settle()
        elif not self._is_signed(claim):
            self._unsigned += 1
        else:
            self._disagree(claim.checkpoint)
            if root != self._tree.root():
                self._why = "the checkpoint of {} has another root"
            else:
                self._why = f"the checkpoint of {{}} was signed for a log of {self._end} events"

    def _disagree(self, checkpoint: Checkpoint) -> None:
        self._disagrees = checkpoint
        self._compared += 1
        self._next = None  # nothing that comes later says more

    def _settle(self) -> None:
        """The last of those that agree speaks for those before it, if it is signed."""
        unsettled, self._unsettled = self._unsettled, []
        while unsettled:
            if self._is_signed(unsettled[-1]):
                self._last = unsettled[-1].checkpoint
                self._compared += len({one.checkpoint for one in unsettled})  # two keys may have signed the same one
                return
            unsettled.pop()
            self._unsigned += 1

    def result(self) -> Agreement:
        """Once the whole log has been added."""
        while self._next is not None:  # of more blocks than there are
            claim = self._take(self._next)
            if self._is_signed(claim):
                self._disagree(claim.checkpoint)
            else:
                self._unsigned += 1
        self._settle()
        last, disagrees = self._last, self._disagrees
        found = [] if disagrees is None else [self._finding(last, disagrees)]
        return Agreement(self._compared, last, disagrees, found, self._unsigned)

    def _finding(self, last: Checkpoint | None, disagrees: Checkpoint) -> Finding:
        agreed = "none before it agrees" if last is None else f"the last one that agrees is that of {last.position}"
        if self._why:
            first = (last or self._NOTHING).position + 1
            says = f"{self._why.format(disagrees.position)}, {agreed}"
            return Finding("checkpoint", first, max(first, disagrees.position), says)
        says = f"the log has been cut off: the checkpoint of {disagrees.position} has more blocks, {agreed}"
        return Finding("cut", self._end + 1, max(self._end + 1, disagrees.position), says)
