"""Rebuilds and verifications of read models: how far they are, and what they have found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import QueryPool
from infrastructure.replay.comparison import Difference
from infrastructure.replay.copies import MakesProjection
from infrastructure.replay.states import PassState, RebuildState, pass_state, rebuild_state
from infrastructure.replay.verified import Verified, differences_after, last_verification
from projections import PROJECTIONS
from projections.paging import Page, before, page

_READ_MODELS: Final[dict[str, MakesProjection]] = {projection.name: projection for projection in PROJECTIONS}


@dataclass(frozen=True, slots=True)
class Verification:
    """
    Attributes:
        last: the last full one; None: what serves has not been verified.
        under_way: in the background; None: there is none.
        found: a page of what the last one has found.
    """

    last: Verified | None
    under_way: PassState | None
    found: Page[Difference]


@dataclass(frozen=True, slots=True)
class FoundByRebuild:
    """
    Attributes:
        found: a page of what it has found, should it have come to compare; personal values are masked.
        compared: how many differences that are in all; None: it has not come to compare.
    """

    state: RebuildState
    compared: int | None
    found: Page[Difference]


class ReplayQueries:
    """
    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(self, pool: QueryPool) -> None:
        self._pool = pool

    async def rebuild(self, name: str, *, cursor: str | None, limit: int) -> FoundByRebuild | None:
        """The latest rebuild of a read model; None: it was never rebuilt."""

        async def select(connection: Connection) -> FoundByRebuild | None:
            state = await rebuild_state(connection, _READ_MODELS[name])
            if state is None:
                return None
            last = await last_verification(connection, name)
            # A rebuild that compares is a full verification.
            if state.step == "filling" or last is None or last.verified_at < state.begun_at:
                return FoundByRebuild(state, None, Page([], None))
            return FoundByRebuild(state, last.differences, await _found(connection, name, cursor, limit))

        return await self._pool.ask(select)

    async def verification(self, name: str, *, cursor: str | None, limit: int) -> Verification:
        """What is known about whether a read model is what the log says."""

        async def select(connection: Connection) -> Verification:
            return Verification(
                await last_verification(connection, name),
                await pass_state(connection, _READ_MODELS[name]),
                await _found(connection, name, cursor, limit),
            )

        return await self._pool.ask(select)


async def _found(connection: Connection, name: str, cursor: str | None, limit: int) -> Page[Difference]:
    after = 0 if cursor is None else before(cursor)
    found = page(await differences_after(connection, name, after, limit=limit + 1), limit, lambda one: one[0])
    return Page([difference for _, difference in found.items], found.next_cursor)
