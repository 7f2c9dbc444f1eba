"""How far rebuilds and verifications are, as the database knows it, wherever they run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row

from domain.recorded import Position
from infrastructure.postgres.connection import Connection
from infrastructure.replay.copies import Copy, MakesProjection

_REBUILD = """
    SELECT r.read_model, r.rebuild_id, r.step, r.begun_at, r.position, r.differences, r.decision,
        coalesce(copy.position, 0) AS reached, coalesce(live.position, 0) AS upto,
        EXISTS (
            SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'registrar rebuild ' || r.read_model
        ) AS runs
    FROM public.rebuilds AS r
    LEFT JOIN public.followers AS live ON live.name = r.read_model
    LEFT JOIN public.followers AS copy ON copy.name = %(copy)s
    WHERE r.read_model = %(name)s
"""

_UNDER_WAY = """
    SELECT p.begun_at, coalesce(copy.position, 0) AS reached, coalesce(live.position, 0) AS upto,
        p.row_count AS rows, p.differences
    FROM public.verification_passes AS p
    LEFT JOIN public.followers AS live ON live.name = p.read_model
    LEFT JOIN public.followers AS copy ON copy.name = %(copy)s
    WHERE p.read_model = %(name)s
"""


@dataclass(frozen=True, slots=True)
class RebuildState:
    """The latest rebuild of a read model.

    Attributes:
        step: "filling" or "indexed" while it is under way, or waits for a decision about differences.
        runs: whether some process is at it now.
        reached, upto: positions of the copy and of the live read model; `reached` is 0 where there is no copy.
        position: at which it was swapped in, or undone; 0 before.
        differences, decision: what was found when it was swapped in, and why it was all the same.
    """

    read_model: str
    rebuild_id: UUID
    step: Literal["filling", "indexed", "swapped", "rolled-back", "aborted"]
    begun_at: datetime
    position: Position
    differences: int
    decision: str
    reached: Position
    upto: Position
    runs: bool


@dataclass(frozen=True, slots=True)
class PassState:
    """A verification in the background.

    Attributes:
        reached, upto: positions of its copy and of the live read model.
        rows: compared by now.
        differences: found by now.
    """

    begun_at: datetime
    reached: Position
    upto: Position
    rows: int
    differences: int


async def rebuild_state(connection: Connection, make: MakesProjection) -> RebuildState | None:
    """None: it was never rebuilt."""
    copy = Copy(make, "next")
    cursor = connection.cursor(row_factory=class_row(RebuildState))
    await cursor.execute(_REBUILD, {"name": copy.of, "copy": copy.name})
    return await cursor.fetchone()


async def pass_state(connection: Connection, make: MakesProjection) -> PassState | None:
    """None: there is none under way."""
    copy = Copy(make, "verify")
    cursor = connection.cursor(row_factory=class_row(PassState))
    await cursor.execute(_UNDER_WAY, {"name": copy.of, "copy": copy.name})
    return await cursor.fetchone()
