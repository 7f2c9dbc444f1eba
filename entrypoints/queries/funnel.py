"""How many registrations reached each stage, and how long it took them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Literal

from application.ports import Clock
from infrastructure.postgres.pool import QueryPool
from projections.funnel import Bucket, Flow, Funnel


class FunnelQueries:
    """
    Raises (all of them):
        Unavailable, one of `AWAY`: see `infrastructure.postgres.pool.QueryPool.ask`.
    """

    def __init__(self, pool: QueryPool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._funnel = Funnel()

    async def buckets(self, *, since: datetime | None, bucket: Literal["hour", "day"]) -> list[Bucket]:
        """From `since` on; by default the last day in hours, the last 30 days in days."""
        start = since or self._clock() - (timedelta(days=1) if bucket == "hour" else timedelta(days=30))
        return await self._pool.ask(lambda connection: self._funnel.funnel(connection, start, bucket))


def as_told(bucket: Bucket) -> dict[str, Any]:
    """A bucket as JSON knows it: the histogram's last class has no upper end, and JSON no such key."""
    return {
        "start": bucket.start,
        "registrations": _flow(bucket.registrations),
        "duplicates": _flow(bucket.duplicates),
    }


def _flow(flow: Flow) -> dict[str, Any]:
    durations = {
        step: asdict(took)
        | {"histogram": {"+Inf" if top is None else f"{top:g}": count for top, count in took.histogram.items()}}
        for step, took in flow.durations.items()
    }
    return {"stages": flow.stages, "durations": durations}
