"""Folding a long log into a read model: how fast, and with how much memory."""

from __future__ import annotations

import statistics
from typing import Any

import psycopg

from bench.cluster import Cluster
from bench.processes import run_job
from bench.report import Row
from projections.registrations import Registrations

STOCK_EVENTS = 20_000

Sizes = tuple[int, int]


def history(cluster: Cluster, events: int) -> str:
    """Name of the database with a log of so many events and empty read models; written once, to be copied."""
    name = f"history_{events}"
    if name not in _written:
        dsn = cluster.database(name)
        run_job("bench.history", {"dsn": dsn, "events": events})
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        _written.add(name)
    return name


_written: set[str] = set()


def run(cluster: Cluster, *, sizes: Sizes, repetitions: int) -> list[Row]:
    """Rates count only the events that the read model is made of: about half of the log."""
    found: dict[str, list[dict[str, float]]] = {}

    def measure(name: str, events: int, job: dict[str, Any]) -> None:
        outcome = run_job("bench.folding", job | {"events": events})
        folded = _folded(job["dsn"]) if job["who"] != "stock" else events // 2
        found.setdefault(name, []).append(outcome | {"rate": folded / outcome["seconds"], "folded": folded})

    for _ in range(repetitions):
        for size in sizes:
            with cluster.fresh(copy_of=history(cluster, size)) as dsn:
                measure(f"bare {size}", size, {"who": "bare", "dsn": dsn})
                measure(f"ours {size}", size, {"who": "ours", "dsn": dsn})
        with cluster.fresh(schema=False) as dsn:
            measure("stock", STOCK_EVENTS, {"who": "stock", "dsn": dsn})
    return _rows(found, sizes)


def _rows(found: dict[str, list[dict[str, float]]], sizes: Sizes) -> list[Row]:
    def median(name: str, what: str = "rate") -> float:
        return statistics.median(one[what] for one in found[name])

    stock = median("stock")
    rows = []
    for size in sizes:
        ours, bare = median(f"ours {size}"), median(f"bare {size}")
        what = f"fold of {size:,} events"
        rows += [
            Row(what, "ProjectionRunner", f"{ours:,.0f}/s", f"{stock:,.0f}/s", ours / stock, "x", 20.0, True),
            Row(
                what,
                "bare read and decode",
                f"{ours:,.0f}/s",
                f"{bare:,.0f}/s",
                ours / bare,
                "x",
                0.4,
                True,
                {"every repetition": found},
            ),
        ]
    small, large = (median(f"ours {size}", "peak_mib") for size in sizes)
    rows.append(
        Row(
            f"peak memory, {sizes[1]:,} events",
            f"{sizes[0]:,} events",
            f"{large:,.0f} MiB",
            f"{small:,.0f} MiB",
            large / small,
            "x",
            1.5,
            at_least=False,
        )
    )
    return rows


def _folded(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        query = "SELECT count(*) FROM events WHERE topic = ANY (%s)"
        row = connection.execute(query, (list(Registrations.topics or ()),)).fetchone()
    assert row is not None
    return int(row[0])
