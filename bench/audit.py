"""Verifying a long log: against the least that anybody has to do who looks at every byte of it."""

from __future__ import annotations

import statistics
from typing import Any

from bench.cluster import Cluster
from bench.fold import Sizes, history
from bench.processes import run_job
from bench.report import Row

MOST_SECONDS = 15.0
"""For two million events on two cores."""


def run(cluster: Cluster, *, sizes: Sizes, repetitions: int) -> list[Row]:
    """
    Args:
        sizes: events of a short log and of a long one.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(repetitions):
        for size in sizes:
            with cluster.fresh(copy_of=history(cluster, size)) as dsn:
                for who in ("copy and hash", "audit verify"):
                    outcome = run_job("bench.replaying", {"who": who, "dsn": dsn})
                    assert outcome["events"] == size, outcome
                    found.setdefault(f"{who} {size}", []).append(outcome)
    short, long = sizes
    with cluster.fresh(copy_of=history(cluster, long)) as dsn:
        blocks = run_job("bench.short_blocks", {"dsn": dsn})["blocks"]
        cluster.settle()
        found["since"] = [
            run_job("bench.replaying", {"who": "audit verify since checkpoint", "dsn": dsn}) for _ in range(repetitions)
        ]

    def median(name: str, what: str = "seconds") -> float:
        return float(statistics.median(one[what] for one in found[name]))

    ours, bare = median(f"audit verify {long}"), median(f"copy and hash {long}")
    small, large = (median(f"audit verify {size}", "peak_mib") for size in sizes)
    what = f"audit verify, whole, of {long:,} events"
    return [
        Row(what, "bare COPY and SHA-256", f"{ours:.1f} s", f"{bare:.1f} s", bare / ours, "x", 0.6, True, found),
        Row(what, "its bound", f"{ours:.1f} s", "", ours, "s", MOST_SECONDS, at_least=False),
        Row(
            f"audit verify --since-checkpoint, a hundredth of {long:,} events in {blocks:,} blocks later",
            "its bound",
            f"{median('since', 'verification'):.2f} s",
            "",
            median("since", "verification"),
            "s",
            1.0,
            at_least=False,
        ),
        Row(
            f"peak memory of audit verify, {long:,} events",
            f"{short:,} events",
            f"{large:,.0f} MiB",
            f"{small:,.0f} MiB",
            large / small,
            "x",
            1.2,
            at_least=False,
        ),
    ]
