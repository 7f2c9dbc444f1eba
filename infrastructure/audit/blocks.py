"""The blocks of the hash chain, by the events in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from domain.recorded import Position
from infrastructure.event_store.chain import BEFORE_ALL
from infrastructure.postgres.connection import Connection

# By their index, one position after the other, however the planner sees it (OFFSET 0).
_BLOCKS: Final = """
    SELECT wanted.position, b.last_position, p.hash
    FROM unnest(%s::bigint[]) AS wanted (position)
    CROSS JOIN LATERAL (
        SELECT first_position, last_position FROM public.blocks
        WHERE last_position >= wanted.position ORDER BY last_position LIMIT 1
    ) AS b
    LEFT JOIN LATERAL (
        SELECT hash FROM public.blocks WHERE last_position = b.first_position - 1 OFFSET 0
    ) AS p ON true
"""


@dataclass(frozen=True, slots=True)
class Block:
    """Where an event is in the chain.

    Attributes:
        last: the last position of its block, by which the block is known.
        previous_hash: of the block before, in hexadecimal.
    """

    last: Position
    previous_hash: str


async def blocks_of(connection: Connection, positions: Sequence[Position]) -> dict[Position, Block]:
    """The block of each of these positions; none for one that the chain does not cover."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(_BLOCKS.encode(), (list(positions),))
    return {
        position: Block(last, (BEFORE_ALL if hash_before is None else hash_before).hex())
        for position, last, hash_before in await cursor.fetchall()
    }
