"""What `up` does while nobody asks it for anything; beside an earlier build where there is one."""

from __future__ import annotations

import re
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
from psycopg.conninfo import make_conninfo

from bench.processes import Process, cpu_seconds, of_build
from bench.report import Row
from tests.support.rabbitmq import free_ports

SETTLING = 100.0
"""Seconds after the start: the first verification of all read models is over by then, as much else."""

_STATEMENT = re.compile(rb"^.*LOG:  (?:statement|execute [^:]*):", re.MULTILINE)

_TARGET = 0.4


@dataclass(frozen=True, slots=True)
class _Counted:
    """Since a process began, or between two moments."""

    statements: float
    wakes: float
    cpu: float

    def since(self, before: _Counted, seconds: float) -> _Counted:
        """A second, of what came after."""
        return _Counted(
            (self.statements - before.statements) / seconds,
            (self.wakes - before.wakes) / seconds,
            (self.cpu - before.cpu) / seconds,
        )


def run(*, before: Path | None, settling: float, seconds: float) -> list[Row]:
    """Rows of statements, and of how often a thread of the process wakes up; both builds at the same time."""
    trees = {"ours": None} if before is None else {"ours": None, "before": before.resolve()}
    with ExitStack() as stack:
        homes = {side: _up(stack, tree) for side, tree in trees.items()}
        time.sleep(settling)
        for _, directory in homes.values():
            _log_statements(directory)
        time.sleep(1)  # each session reads its settings anew when it is next used
        counted = {side: _count(*home) for side, home in homes.items()}
        begun = time.perf_counter()
        time.sleep(seconds)
        took = time.perf_counter() - begun
        found = {side: _count(*home).since(counted[side], took) for side, home in homes.items()}
    return [
        _row("statements a second at rest of `up`", [one.statements for one in found.values()], "/s"),
        _row("wake-ups a second at rest of `up`", [one.wakes for one in found.values()], "/s"),
        _row("CPU a second at rest of `up`", [1000 * one.cpu for one in found.values()], " ms", target=None),
    ]


def _row(what: str, figures: list[float], unit: str, target: float | None = _TARGET) -> Row:
    ours, before = figures[0], figures[-1]
    if len(figures) == 1:
        return Row(what, "", f"{ours:.1f}{unit}", "", ours, unit.strip(), None, at_least=False)
    told = (f"{ours:.1f}{unit}", f"{before:.1f}{unit}")
    return Row(what, "the earlier build", *told, ours / before, "x", target, at_least=False)


def _up(stack: ExitStack, tree: Path | None) -> tuple[Process, Path]:
    (port,) = free_ports(1)
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registrar-bench-")))
    words = ("up", "--port", str(port), "--data-dir", str(directory))
    return stack.enter_context(of_build(tree, *words, ready="Registrar", settings={})), directory


def _log_statements(directory: Path) -> None:
    lines = (directory / "postgres" / "postmaster.pid").read_text().splitlines()
    where = make_conninfo(host=lines[4], port=lines[3], user="registrar", dbname="registrar")
    with psycopg.connect(where, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET log_statement = 'all'")
        connection.execute("SELECT pg_reload_conf()")


def _count(process: Process, directory: Path) -> _Counted:
    statements = len(_STATEMENT.findall((directory / "postgres.log").read_bytes()))
    wakes = 0
    for thread in psutil.Process(process.pid).threads():
        status = Path(f"/proc/{process.pid}/task/{thread.id}/status").read_text()
        wakes += int(status.partition("\nvoluntary_ctxt_switches:")[2].split(maxsplit=1)[0])
    return _Counted(statements, wakes, cpu_seconds(process.pid))
