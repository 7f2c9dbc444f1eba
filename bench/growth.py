"""A log that has grown: appends and the read model's lag beside twenty thousand and two million events."""

from __future__ import annotations

import statistics
from typing import Any

import psycopg

from bench.cluster import Cluster, name_of
from bench.fold import Sizes, history
from bench.processes import run_job
from bench.report import Row

LOOKS = 500


def run(cluster: Cluster, *, sizes: Sizes, repetitions: int) -> list[Row]:
    """Each repetition on a copy of its own, with the read model at the end of the log."""
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    folded = {size: _folded_copy(cluster, size) for size in sizes}
    for _ in range(repetitions):
        for size in sizes:
            with cluster.fresh(copy_of=name_of(folded[size])) as dsn:
                job = {"what": "measure", "dsn": dsn, "first": 100_000_000, "looks": LOOKS}
                found[size].append(run_job("bench.lagging", job))
    for dsn in folded.values():
        cluster.drop(dsn)
    return _rows(found, sizes)


def _folded_copy(cluster: Cluster, size: int) -> str:
    dsn = cluster.database(copy_of=history(cluster, size))
    run_job("bench.lagging", {"what": "fold", "dsn": dsn})
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
    return dsn


def _rows(found: dict[int, list[dict[str, Any]]], sizes: Sizes) -> list[Row]:
    def median(size: int, what: str) -> float:
        return float(statistics.median(one[what] for one in found[size]))

    small, large = sizes
    against = f"{small:,} events in the log"
    slow, fast = median(large, "rate"), median(small, "rate")
    lag, before = median(large, "lag p50") * 1000, median(small, "lag p50") * 1000
    details = {"every repetition, seconds": {str(size): runs for size, runs in found.items()}}
    return [
        Row(
            f"appends at 64 callers, {large:,} events in the log",
            against,
            f"{slow:,.0f}/s",
            f"{fast:,.0f}/s",
            fast / slow,
            "x",
            1.2,
            at_least=False,
            details=details,
        ),
        Row(
            f"read model's lag, p50, {large:,} events in the log",
            against,
            f"{lag:.2f} ms",
            f"{before:.2f} ms",
            lag / before,
            "x",
            1.2,
            at_least=False,
        ),
    ]
