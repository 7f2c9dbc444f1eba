"""Rebuilding and verifying a read model: how fast against a bare loop over the same log, and with how much memory."""

from __future__ import annotations

import statistics

from bench.cluster import Cluster
from bench.fold import Sizes, history
from bench.processes import run_job
from bench.report import Row


def run(cluster: Cluster, *, sizes: Sizes, repetitions: int) -> list[Row]:
    """Of the read model `registrations`, from the first event to the swap, beside the live one at the log's end."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(repetitions):
        for size in sizes:
            with cluster.fresh(copy_of=history(cluster, size)) as dsn:
                for who, module in (
                    ("bare", "folding"), ("ours", "folding"), ("rebuild", "rebuilding"), ("verify", "rebuilding")
                ):  # fmt: skip
                    job = {"who": who, "dsn": dsn, "events": size, "names": "registrations"}
                    found.setdefault(f"{who} {size}", []).append(run_job(f"bench.{module}", job))
    return _rows(found, sizes)


def _rows(found: dict[str, list[dict[str, float]]], sizes: Sizes) -> list[Row]:
    def median(name: str, what: str = "seconds") -> float:
        return statistics.median(one[what] for one in found[name])

    small, large = sizes
    bare, ours, rebuild, verify = (median(f"{who} {large}") for who in ("bare", "ours", "rebuild", "verify"))
    what = f"rebuild of registrations, {large:,} events"
    rows = [
        Row(what, "bare read and decode", f"{rebuild:.1f} s", f"{bare:.1f} s", bare / rebuild, "x", 0.5, True,
            {"every repetition": found}),
        Row(what, "the projector's fold", f"{rebuild:.1f} s", f"{ours:.1f} s", ours / rebuild, "x", 1.0, True),
        Row("verify of the same", "its rebuild", f"{verify:.1f} s", f"{rebuild:.1f} s", verify / rebuild, "x", 1.2, False),
    ]  # fmt: skip
    for who in ("rebuild", "verify"):
        much, little = median(f"{who} {large}", "peak_mib"), median(f"{who} {small}", "peak_mib")
        rows.append(
            Row(f"peak memory of {who}, {large:,} events", f"{small:,} events", f"{much:,.0f} MiB", f"{little:,.0f} MiB",
                much / little, "x", 1.2, False)
        )  # fmt: skip
    return rows
