"""Walks along stretches of the log, each from one block to another, wherever it is called: in a helper, or a thread."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Final, NamedTuple, TypeVar

from domain.recorded import Position
from infrastructure.audit.roots import leaves_of
from infrastructure.audit.rows import CHUNK_EVENTS, blocks_between, digests_remembered, events_between
from infrastructure.audit.walk import Block, Finding, Link, walk
from infrastructure.postgres.connection import Connection, ReconnectingConnection

T = TypeVar("T")

MOST_KEPT: Final = 1000
"""Findings of a stretch; all are counted."""


class Stretch(NamedTuple):
    """Consecutive blocks.

    Attributes:
        after: the block before them.
        upto: where the last one ends.
    """

    after: Link
    upto: Position


class Walked(NamedTuple):
    """What came of a stretch.

    Attributes:
        found: number of findings.
        findings: the first of them.
        positions: where each block ends.
        leaves: leaf hash of each block, one behind the other.
    """

    events: int
    found: int
    findings: Sequence[Finding]
    positions: array[int]
    leaves: bytes

    def tree(self) -> tuple[Sequence[Position], Sequence[bytes]]:
        """Its blocks as `infrastructure.audit.roots.Comparison` takes them."""
        return self.positions, [self.leaves[at : at + 32] for at in range(0, len(self.leaves), 32)]


class WalksStretches:
    """Walks along one stretch after the other, with a loop and a session of its own."""

    def __init__(self, dsn: str, statement_timeout: timedelta) -> None:
        self._runner = asyncio.Runner()
        self._connection = ReconnectingConnection(
            dsn, name="audit verify", statement_timeout=statement_timeout, read_only=True
        )

    def __call__(self, stretch: Stretch) -> Walked:
        """
        Raises:
            Unavailable: the database is away.
        """
        blocks = self._ask(partial(blocks_between, after=stretch.after.position, upto=stretch.upto))
        events = self._events(stretch)
        found, findings, seen = 0, list[Finding](), 0
        for step in walk(stretch.after, blocks, events, remembered=self._remembered):
            seen += len(step.digests)
            if step.findings:
                found += len(step.findings)
                findings += step.findings[: MOST_KEPT - len(findings)]
        positions = array("q", [one.last for one in blocks])
        return Walked(seen, found, findings, positions, b"".join(leaves_of(one.hash for one in blocks)))

    def _events(self, stretch: Stretch) -> Iterator[tuple[Position, int, bytes]]:
        after: Position | None = stretch.after.position or None  # what stands before the first position is found, too
        while True:
            events = self._ask(partial(events_between, after=after, upto=stretch.upto))
            if len(events) < CHUNK_EVENTS:
                yield from events
                return
            # One position may stand on both sides of the end of a chunk, if a superuser has dropped the index.
            after = events[-1][0] - 1
            whole = [one for one in events if one[0] <= after]
            if not whole:
                whole, after = events, events[-1][0]
            yield from whole

    def _remembered(self, block: Block) -> list[bytes] | None:
        return self._ask(partial(digests_remembered, block=block))

    def _ask(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        return self._runner.run(self._connection.execute_idempotent(read))

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()
