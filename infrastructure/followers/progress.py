"""The position of every follower of the log, how far behind it is, and whether it is what the log says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from psycopg.rows import tuple_row

from domain.recorded import Position
from infrastructure.followers.versions import version_of
from infrastructure.postgres.connection import Connection

LAGGING = timedelta(minutes=1)
"""A follower that lags, or a next step that is overdue, by more than this needs attention."""

_FOLLOWERS = """
    SELECT h.position, n.name, coalesce(f.position, 0), h.position - coalesce(f.position, 0),
           greatest(0, extract(epoch FROM clock_timestamp() - e.recorded_at))::double precision,
           coalesce(p.streams, 0), f.updated_at, v.verified_at, v.differences,
           CASE WHEN r.step IN ('filling', 'indexed') THEN r.step END, w.name IS NOT NULL
    FROM head AS h
    CROSS JOIN unnest(%s::text[]) AS n (name)
    LEFT JOIN followers AS f ON f.name = n.name
    LEFT JOIN events AS e ON e.notification_id = coalesce(f.position, 0) + 1
    LEFT JOIN (
        SELECT follower, count(DISTINCT stream_id) AS streams FROM parked_events GROUP BY follower
    ) AS p ON p.follower = n.name
    LEFT JOIN verifications AS v ON v.read_model = n.name
    LEFT JOIN rebuilds AS r ON r.read_model = n.name
    LEFT JOIN followers AS w ON n.name = 'relay' AND w.name = 'relay__waiting'
    ORDER BY n.name
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a follower has come.

    Attributes:
        lag_seconds: age of the first event that it has not applied.
        updated_at: when it last moved; None if it never ran.
        verified_at: when a read model was last compared with the log, all of it; None: never.
        mismatches: how many differences that has found.
        rebuild: how far a rebuild is that is under way, or waits for a decision.
        paced: mails wait for their turn, because more are asked for than the service may send in all.
    """

    name: str
    position: Position
    lag_events: int
    lag_seconds: float
    parked_streams: int
    updated_at: datetime | None
    verified_at: datetime | None = None
    mismatches: int | None = None
    rebuild: Literal["filling", "indexed"] | None = None
    paced: bool = False

    @property
    def version(self) -> int:
        """Of the read model that it keeps; 1 if it keeps none."""
        found = version_of(self.name)
        return 1 if found is None else found.number

    @property
    def status(self) -> Literal["up", "degraded"]:
        """ "degraded" while streams are parked, the lag is more than a minute, it never ran, or it is not what the log
        says. Mails that wait for their turn are no lag."""
        troubled = (
            self.parked_streams
            or self.mismatches
            or self.updated_at is None
            or (self.lag_seconds > LAGGING.total_seconds() and not self.paced)
        )
        return "degraded" if troubled else "up"


@dataclass(frozen=True, slots=True)
class AllProgress:
    """Every follower's progress, and the end of the log that they follow."""

    head: Position
    items: list[Progress]


async def progress_of(connection: Connection, names: Sequence[str]) -> AllProgress:
    """Every follower's position and lag, even of one that never ran. There must be at least one name.

    Positions have no gaps, so the next event is found by its number.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    await cursor.execute(_FOLLOWERS, (list(names),))
    rows = await cursor.fetchall()
    return AllProgress(
        rows[0][0],
        [Progress(name, position, lag, seconds or 0.0, *more) for _, name, position, lag, seconds, *more in rows],
    )
