"""How the checkpoints stand: whether the log is what was recorded, how much of it is signed, and what waits to be
published."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from psycopg.rows import class_row

from domain.recorded import Position
from infrastructure.postgres.connection import Connection

GAP: Final = timedelta(minutes=1)
"""Events without a checkpoint, or one that is not published, for longer than this need attention."""

# Whoever alters the log can write what he likes here, too: `infinity` or `-infinity`, of which no age can be computed,
# and checkpoints of a log to come, which nobody has verified: they count for nothing.
_STANDING: Final = """
    WITH signed AS (
        SELECT coalesce(max(c.position), 0) AS position
        FROM public.checkpoints AS c JOIN public.tree_head AS t ON c.size <= t.size AND c.position <= t.position
    )
    SELECT signed.position,
           greatest(0, coalesce(extract(epoch FROM clock_timestamp() - (
               SELECT recorded_at FROM public.events
               WHERE notification_id > signed.position AND isfinite(recorded_at) ORDER BY notification_id LIMIT 1
           )), 0))::double precision AS age_seconds,
           waiting.count AS unpublished,
           greatest(0, coalesce(extract(epoch FROM clock_timestamp() - waiting.since), 0))::double precision
               AS unpublished_seconds,
           (SELECT unsound FROM public.tree_head) AS unsound
    FROM signed, (
        SELECT count(*) AS count, min(signed_at) FILTER (WHERE isfinite(signed_at)) AS since
        FROM public.checkpoints WHERE NOT (in_directory AND at_url)
    ) AS waiting
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """
    Attributes:
        position: up to which the latest checkpoint covers the log; 0 if there is none.
        age_seconds: of the first event that no checkpoint covers; 0 if all are covered.
        unpublished: how many checkpoints wait to be published.
        unpublished_seconds: how long the first of them has waited; 0 if none waits.
        unsound: what is not as it was recorded; None if nothing was found.
    """

    position: Position
    age_seconds: float
    unpublished: int
    unpublished_seconds: float
    unsound: str | None

    @property
    def has_gap(self) -> bool:
        """Has something not been signed, or not been published, for more than a minute?"""
        return max(self.age_seconds, self.unpublished_seconds) > GAP.total_seconds()

    @property
    def status(self) -> Literal["up", "degraded"]:
        return "degraded" if self.unsound is not None or self.has_gap else "up"


async def standing_of(connection: Connection) -> Standing:
    cursor = connection.cursor(row_factory=class_row(Standing))
    await cursor.execute(_STANDING)
    found = await cursor.fetchone()
    assert found is not None  # noqa: S101 - of one row of values
    return found
