"""Verifies the log: the chain of blocks with their events, its end, and what checkpoints say of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from domain.recorded import Position
from infrastructure.audit.roots import Agreement, Checkpoint, Claim, Comparison, leaves_of
from infrastructure.audit.rows import block_from, ends, hashes_between, stretch_behind
from infrastructure.audit.stretches import MOST_KEPT, Stretch, Walked, WalksStretches
from infrastructure.audit.walk import BEGINNING, Ends, Finding, Link, check_ends
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.postgres.helpers import HelperEnded, done_by_helpers

T = TypeVar("T")

STRETCH: Final = 5_000
"""Positions in a stretch: little enough that a person sees it move."""

COMPARED: Final = 50_000
"""Positions whose blocks are compared with checkpoints in one go, in some ten milliseconds."""

MANY_EVENTS: Final = 10_000
"""From so many events on a whole log is read by helpers, so that what they take of memory is the same for a log of any
length."""

MANY_LATER_EVENTS: Final = 80_000
"""From so many events on behind a checkpoint helpers are worth their start: half a second. A hundred thousand
events a second are verified here, two and a half times as many with helpers (2026-11-29)."""

Told = Callable[[Position, Position], None]
"""Called with how many positions are verified, and of how many."""


class CannotVerify(Exception):
    """It cannot be done; one line that says why."""


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
    claims: Iterable[Claim] = (),
    is_signed: Callable[[Claim], bool] = lambda _: True,
    since_checkpoint: bool = False,
    told: Told = lambda *_: None,
) -> Verified:
    """Verify the log up to its end as it is now, while it grows.

    Args:
        claims: notes that were there before now, see `Comparison`; taken in a thread.
        is_signed: by somebody who signs for this log.
        since_checkpoint: only the events after the latest checkpoint that agrees with the blocks; all blocks are
            compared with all checkpoints in any case.

    Raises:
        CannotVerify: a helper process was ended.
        Unavailable: the database is away.
    """
    try:
        comparison = await asyncio.to_thread(Comparison, claims, is_signed)
        return await _Verification(dsn, statement_timeout, told).run(comparison, since_checkpoint=since_checkpoint)
    except HelperEnded as error:
        raise CannotVerify(str(error)) from None


def _grow(comparison: Comparison, positions: Sequence[Position], hashes: Sequence[bytes]) -> None:
    comparison.grow(positions, leaves_of(hashes))


class _Verification:
    def __init__(self, dsn: str, statement_timeout: timedelta, told: Told) -> None:
        self._connection = ReconnectingConnection(
            dsn, name="audit verify", statement_timeout=statement_timeout, read_only=True
        )
        self._make = partial(WalksStretches, dsn, statement_timeout)
        self._told = told

    async def run(self, comparison: Comparison, *, since_checkpoint: bool) -> Verified:
        try:
            end = await self._ask(ends)
            after = BEGINNING
            if since_checkpoint:
                await self._compare_blocks(comparison, end.block.position)
                after = await self._from((await asyncio.to_thread(comparison.result)).last)
            result = Verified(after.position, end.block.position)
            await self._walk(result, after, None if since_checkpoint else comparison)
            result.checkpoints = await asyncio.to_thread(comparison.result)
            await self._look_at_the_end(result, end)
        finally:
            await self._connection.close()
        return result

    async def _walk(self, result: Verified, after: Link, comparison: Comparison | None) -> None:
        stretches = await self._stretches(after, result.upto, STRETCH)
        many = result.upto - after.position >= (MANY_LATER_EVENTS if comparison is None else MANY_EVENTS)
        walking = done_by_helpers(stretches, self._make) if many else self._walked_here(stretches)
        async with aclosing(walking):
            async for stretch, walked in walking:
                result.events += walked.events
                result.blocks += len(walked.positions)
                result.add(walked.findings, walked.found)
                if comparison is not None:
                    await asyncio.to_thread(comparison.grow, *walked.tree())
                self._told(stretch.upto - after.position, result.upto - after.position)

    async def _walked_here(self, stretches: Sequence[Stretch]) -> AsyncGenerator[tuple[Stretch, Walked]]:
        walks = await asyncio.to_thread(self._make)
        try:
            for stretch in stretches:
                yield stretch, await asyncio.to_thread(walks, stretch)
        finally:
            await asyncio.to_thread(walks.close)

    async def _stretches(self, after: Link, upto: Position, length: int) -> list[Stretch]:
        """From block to block: whether the events agree with them is what is to be found."""
        found = list[Stretch]()
        while after.position < upto:
            end = await self._ask(partial(block_from, position=min(after.position + length, upto)))
            if end is None:
                break
            found.append(Stretch(after, end.position))
            after = end
        return found

    async def _compare_blocks(self, comparison: Comparison, end: Position) -> None:
        """All of them, until there is nothing more to compare them with."""
        for stretch in await self._stretches(BEGINNING, end, COMPARED):
            if comparison.is_done:
                break
            blocks = partial(hashes_between, after=stretch.after.position, upto=stretch.upto)
            await asyncio.to_thread(_grow, comparison, *await self._ask(blocks))

    async def _from(self, checkpoint: Checkpoint | None) -> Link:
        if checkpoint is None:
            return BEGINNING
        return await self._ask(partial(block_from, position=checkpoint.position)) or BEGINNING

    async def _look_at_the_end(self, result: Verified, end: Ends) -> None:
        behind = await self._ask(partial(stretch_behind, after=end.block.position, upto=end.event))
        if behind is not None:
            result.add([Finding("no block", *behind, "no block contains what stands there")])
        of_all = [*check_ends(end), *result.checkpoints.findings]
        result.found += len(of_all)
        result.findings[MOST_KEPT - len(of_all) :] = of_all  # listed however many others there are
        result.findings.sort(key=lambda one: (one.kind == "checkpoint", one.first))

    async def _ask(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        return await self._connection.execute_idempotent(read)
