"""What an auditor asks, of a long log and of a short one: searches by address, by actor and time, and a registration
explained."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final

import psycopg
from psycopg.sql import SQL

from bench.cluster import Cluster
from bench.fold import Sizes, history
from bench.history import EVENTS_EACH, claim_id, registration_id
from bench.processes import run_job
from bench.report import Row, percentile
from domain.recorded import Actor
from entrypoints.queries.explanations import ExplainQueries
from infrastructure.postgres.pool import QueryPool
from projections.audit import Audit

ASKED: Final = 400
"""Times that each question is asked, each time about something else."""

WINDOW: Final = timedelta(seconds=1)
"""Of a search by actor and time, before and after a moment."""

EVENTS_A_SECOND: Final = 2_000
"""Of the logs that are asked: 200 registrations a second, as in the group's other rows.

They are written at forty thousand to a hundred thousand a second, many times what a service could record, and the short
one within less than the window; so the entries' times are spread. A search up to a time looks at all entries of the
next `projections.audit.SET_BACK`, which are as many as the log is dense, not as it is long.
"""

_LIMITS: Final[Mapping[str, float]] = {
    "search by address": 0.020,
    "search by actor and time": 0.020,
    "explain a registration": 0.050,
}
"""Seconds that 99 of 100 may take."""

_SPREAD: Final = """
    ALTER TABLE read_audit.entries ALTER COLUMN recorded_at TYPE timestamptz
    USING '2026-03-01 12:00+00'::timestamptz + make_interval(secs => position / {} ::float8)
"""

_AT_THE_END: Final = "INSERT INTO followers (name, position) SELECT 'audit', position FROM head ON CONFLICT DO NOTHING"


def run(cluster: Cluster, *, sizes: Sizes) -> list[Row]:
    """Rows of the group `audit`."""
    took = {size: _measure(cluster, size) for size in sizes}
    small, large = sizes
    rows = []
    for what, limit in _LIMITS.items():
        ours, other = took[large][what], took[small][what]
        slowest = percentile(sorted(ours), 0.99)
        rows += [
            Row(f"{what}, {large:,} events", f"{small:,} events", _milliseconds(statistics.median(ours)),
                _milliseconds(statistics.median(other)), statistics.median(ours) / statistics.median(other), "x", 1.2,
                at_least=False),
            Row(f"{what}, {large:,} events, p99", "", _milliseconds(slowest), "", slowest * 1000, "ms", limit * 1000,
                at_least=False),
        ]  # fmt: skip
    return rows


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _measure(cluster: Cluster, size: int) -> dict[str, list[float]]:
    with cluster.fresh(copy_of=history(cluster, size)) as dsn:
        run_job("bench.folding", {"who": "ours", "dsn": dsn, "name": Audit.name})
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(_AT_THE_END)
            connection.execute(SQL(_SPREAD).format(EVENTS_A_SECOND))
            connection.execute("VACUUM ANALYZE")
            times = "SELECT min(recorded_at), max(recorded_at) FROM read_audit.entries"
            row: Any = connection.execute(times).fetchone()
        cluster.settle()
        return asyncio.run(_ask(dsn, size, *row))


async def _ask(dsn: str, size: int, begin: datetime, end: datetime) -> dict[str, list[float]]:
    pool = QueryPool(dsn, statement_timeout=timedelta(seconds=10), read_only=True)
    await pool.open()
    audit, explanations, chance = Audit(), ExplainQueries(pool, None), Random(7)  # noqa: S311 - the same every time

    def anybody() -> int:
        return chance.randrange(size // EVENTS_EACH)

    async def by_address() -> int:
        wanted = [claim_id(anybody())]
        return len((await pool.ask(lambda c: audit.search(c, claim_ids=wanted))).items)

    async def by_actor_and_time() -> int:
        since = begin + (end - begin) * chance.random()
        return len(
            (
                await pool.ask(
                    lambda c: audit.search(c, actor=Actor.MAIL_WORKER, since=since - WINDOW, until=since + WINDOW)
                )
            ).items
        )

    async def explain() -> int:
        return len((await explanations.explanation(registration_id(anybody()))).story.acts)

    asks: dict[str, Callable[[], Awaitable[int]]] = dict(
        zip(_LIMITS, (by_address, by_actor_and_time, explain), strict=True)
    )
    took: dict[str, list[float]] = {what: [] for what in asks}
    for number in range(-20, ASKED):  # the first ones find nothing in memory, whatever the log's length
        for what, ask in asks.items():
            started = time.perf_counter()
            assert await ask()
            if number >= 0:
                took[what].append(time.perf_counter() - started)
    await pool.close()
    return took
