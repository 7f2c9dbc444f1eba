"""What the benchmark says: a row per promise, a table on the terminal, a file for docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True, slots=True)
class Row:
    """One promise and what became of it.

    Attributes:
        ours, other: what was measured of each side, as text with its unit.
        figure: what is compared with the target.
        unit: of figure and target; "x" for a ratio.
        target: None where the row is for comparison only.
        at_least: is the target a floor (rates) or a ceiling (times)?
        details: every repetition, percentiles, the generator's lateness, seconds of CPU.
    """

    what: str
    against: str
    ours: str
    other: str
    figure: float
    unit: str
    target: float | None
    at_least: bool
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.figure >= self.target if self.at_least else self.figure <= self.target


def median_by_side(sides: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Measure every side in turn, over and over, so that what disturbs the machine disturbs all of them."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, measure in sides.items():
            found[name].append(measure())
    return found


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in found.items()}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the sorted values do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine(postgres_version: str) -> dict[str, Any]:
    """Where it was measured."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else platform.processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postgresql": postgres_version,
    }


def show(rows: Sequence[Row]) -> None:
    """The table on the terminal."""
    table = Table(title="Registrar, side by side", show_lines=False)
    for column in ("what", "ours", "against", "theirs", "reached", "target", ""):
        table.add_column(column, justify="right" if column in {"ours", "theirs", "reached", "target"} else "left")
    for row in rows:
        bound = "≥" if row.at_least else "≤"
        table.add_row(
            row.what,
            row.ours,
            row.against,
            row.other,
            f"{row.figure:,.2f} {row.unit}",
            "" if row.target is None else f"{bound} {row.target:g} {row.unit}",
            {True: "[green]met[/]", False: "[red bold]MISSED[/]", None: ""}[row.met],
        )
    Console(width=None if Console().is_terminal else 180).print(table)


def write(group: str, rows: Sequence[Row], about: dict[str, Any], busy: float, into: Path) -> None:
    """Put a group's rows into the file, beside those of the other groups.

    Args:
        busy: percent of the cores that other work took just before.
    """
    found: dict[str, Any] = json.loads(into.read_text(encoding="utf-8")) if into.exists() else {}
    groups = found.get("groups", {}) if found.get("machine") == about else {}
    groups[group] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "percent of the cores busy with other work just before": busy,
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }
    content = {"date": groups[group]["date"], "machine": about, "groups": groups}
    into.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
