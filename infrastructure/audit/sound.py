"""A stretch of the log that is what was recorded, or the reason why it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from domain.recorded import Position
from infrastructure.audit.roots import leaves_of
from infrastructure.audit.rows import block_from, blocks_between, events_between
from infrastructure.audit.walk import Block, Finding, Link, walk
from infrastructure.postgres.connection import Connection

STRETCH: Final = 1_000
"""Positions verified in one go, in some milliseconds; afterwards this process does other things."""


class Unsound(Exception):
    """The log is not what was recorded; one line, fit to show."""


class SoundStretch(NamedTuple):
    """Blocks that were verified.

    Attributes:
        blocks: at least one.
        end: the last of them.
        digests: those of the events in them, one behind the other.
    """

    blocks: Sequence[Block]
    end: Link
    digests: bytes

    def leaves(self) -> list[bytes]:
        """What stands for each block in the tree."""
        return leaves_of(block.hash for block in self.blocks)


async def sound_stretch(connection: Connection, after: Link, upto: Position) -> SoundStretch:
    """The blocks behind `after`, up to a position or at most `STRETCH` of them; one block, if that is longer.

    Raises:
        Unsound: they are not what was recorded.
    """
    upto = min(after.position + STRETCH, upto)
    blocks = await blocks_between(connection, after.position, upto) or await _long_block(connection, after, upto)
    end = Link(blocks[-1].last, blocks[-1].hash)
    events = await _events_of(connection, after.position, end.position)
    steps = list(walk(after, blocks, events))
    for step in steps:
        if step.findings:
            raise Unsound(_line(step.findings[0]))
    return SoundStretch(blocks, end, b"".join(digest for step in steps for digest in step.digests))


async def _long_block(connection: Connection, after: Link, upto: Position) -> Sequence[Block]:
    """The one in which a whole stretch stands.

    Raises:
        Unsound: there is none.
    """
    last = await block_from(connection, upto)
    if last is None:
        raise Unsound(f"no block contains position {upto}")
    return await blocks_between(connection, after.position, last.position)


async def _events_of(connection: Connection, after: Position, upto: Position) -> list[tuple[Position, int, bytes]]:
    found = await events_between(connection, after, upto)
    while found and found[-1][0] < upto and (more := await events_between(connection, found[-1][0], upto)):
        found += more
    return found


def _line(finding: Finding) -> str:
    _, first, last, says = finding
    where = f"position {first} is" if first == last else f"positions {first} to {last} are"
    return f"{where} not what was recorded: {says}"
