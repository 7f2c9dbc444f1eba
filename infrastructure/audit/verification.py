"""Verifies the log: the chain of blocks with their events, its end, and what checkpoints say of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from domain.recorded import Position
from infrastructure.audit.roots import Agreement, Checkpoint, Comparison, leaf_of
from infrastructure.audit.rows import block_from, blocks_between, ends, stretch_behind
from infrastructure.audit.stretches import MOST_KEPT, Stretch, Walked, WalksStretches
from infrastructure.audit.walk import BEGINNING, Ends, Finding, Link, check_ends
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.postgres.helpers import done_by_helpers

T = TypeVar("T")

STRETCH: Final = 20_000
"""Positions in a stretch: little enough that a person sees it move."""

MANY_EVENTS: Final = 60_000
"""From so many events on helpers are worth their start of a second."""

Told = Callable[[Position, Position], None]
"""Called with how many positions are verified, and of how many."""


@dataclass(slots=True)
class Verified:
    """What was found.

    Attributes:
        since: events after this position were read; the blocks up to it only compared with a checkpoint.
        upto: where the log ended.
        found: number of findings.
        findings: the first of them, in the order of their positions; the stretch between two checkpoints, which begins
            where all may still be right, last.
    """

    since: Position
    upto: Position
    events: int = 0
    blocks: int = 0
    found: int = 0
    findings: list[Finding] = field(default_factory=list)
    checkpoints: Agreement = field(default_factory=lambda: Agreement(0, None, None))

    def add(self, findings: Sequence[Finding], found: int | None = None) -> None:
        self.found += len(findings) if found is None else found
        self.findings += findings[: MOST_KEPT - len(self.findings)]


async def verify(
    dsn: str,
    *,
    statement_timeout: timedelta,
    checkpoints: Sequence[Checkpoint] = (),
    since_checkpoint: bool = False,
    told: Told = lambda *_: None,
) -> Verified:
    """Verify the log up to its end as it is now, while it grows.

    Args:
        checkpoints: that were read before now; their signatures are the caller's matter.
        since_checkpoint: only the events after the latest checkpoint that agrees with the blocks; all blocks are
            compared with all checkpoints in any case.

    Raises:
        HelperEnded: somebody has ended a helper process.
        Unavailable: the database is away.
    """
    return await _Verification(dsn, statement_timeout, told).run(checkpoints, since_checkpoint=since_checkpoint)


class _Verification:
    def __init__(self, dsn: str, statement_timeout: timedelta, told: Told) -> None:
        self._connection = ReconnectingConnection(
            dsn, name="audit verify", statement_timeout=statement_timeout, read_only=True
        )
        self._make = partial(WalksStretches, dsn, statement_timeout)
        self._told = told

    async def run(self, checkpoints: Sequence[Checkpoint], *, since_checkpoint: bool) -> Verified:
        try:
            end = await self._ask(ends)
            comparison = Comparison(checkpoints)
            after = BEGINNING
            if since_checkpoint:
                await self._compare_blocks(comparison, end)
                after = await self._from(comparison.result().last)
            result = Verified(after.position, end.block.position)
            await self._walk(result, after, None if since_checkpoint else comparison)
            result.checkpoints = comparison.result()
            await self._look_at_the_end(result, end)
        finally:
            await self._connection.close()
        return result

    async def _walk(self, result: Verified, after: Link, comparison: Comparison | None) -> None:
        stretches = await self._stretches(after, result.upto)
        many = result.upto - after.position >= MANY_EVENTS
        walking = done_by_helpers(stretches, self._make) if many else self._walked_here(stretches)
        async with aclosing(walking):
            async for stretch, walked in walking:
                result.events += walked.events
                result.blocks += len(walked.positions)
                result.add(walked.findings, walked.found)
                if comparison is not None:
                    comparison.grow(walked.tree())
                self._told(stretch.upto - after.position, result.upto - after.position)

    async def _walked_here(self, stretches: Sequence[Stretch]) -> AsyncGenerator[tuple[Stretch, Walked]]:
        walks = await asyncio.to_thread(self._make)
        try:
            for stretch in stretches:
                yield stretch, await asyncio.to_thread(walks, stretch)
        finally:
            await asyncio.to_thread(walks.close)

    async def _stretches(self, after: Link, upto: Position) -> list[Stretch]:
        """From block to block: whether the events agree with them is what is to be found."""
        found = list[Stretch]()
        while after.position < upto:
            end = await self._ask(partial(block_from, position=min(after.position + STRETCH, upto)))
            if end is None:
                break
            found.append(Stretch(after, end.position))
            after = end
        return found

    async def _compare_blocks(self, comparison: Comparison, end: Ends) -> None:
        for stretch in await self._stretches(BEGINNING, end.block.position):
            blocks = await self._ask(partial(blocks_between, after=stretch.after.position, upto=stretch.upto))
            comparison.grow((one.last, leaf_of(one.hash)) for one in blocks)

    async def _from(self, checkpoint: Checkpoint | None) -> Link:
        if checkpoint is None:
            return BEGINNING
        return await self._ask(partial(block_from, position=checkpoint.position)) or BEGINNING

    async def _look_at_the_end(self, result: Verified, end: Ends) -> None:
        behind = await self._ask(partial(stretch_behind, after=end.block.position, upto=end.event))
        if behind is not None:
            result.add([Finding("no block", *behind, "no block contains what stands there")])
        result.add([*check_ends(end), *result.checkpoints.findings])
        result.findings.sort(key=lambda one: (one.kind == "checkpoint", one.first))

    async def _ask(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        return await self._connection.execute_idempotent(read)
