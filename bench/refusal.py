"""What a refusal at the door costs: beside the build of 2026-11-25, and beside no work at all."""

# ruff: noqa: S603 - git, called with a list of arguments
from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from bench.processes import ROOT, Process, cpu_seconds, load_apart, refusing
from bench.report import Row, median_by_side, medians

BEFORE = "620e81d"
"""The build that the goal is set by: a refusal there took 23 µs of CPU amid the overload of a service."""

CONNECTIONS = 64

_tags = (f"refuse{n}" for n in count())


def run(*, seconds: float, repetitions: int) -> list[Row]:
    """Rows of CPU for a refusal, in microseconds. In a checkout without its history, only one."""
    with ExitStack() as stack:
        servers = {"ours": stack.enter_context(refusing(ROOT)), "bare": stack.enter_context(refusing(ROOT, "--bare"))}
        if (tree := stack.enter_context(_checkout(BEFORE))) is not None:
            servers["before"] = stack.enter_context(refusing(tree))
        sides = {name: partial(_cost, server, seconds) for name, server in servers.items()}
        found = median_by_side({**sides}, repetitions)
    middle = medians(found)
    return [
        Row(
            "a refusal at the door, CPU",
            against,
            f"{middle['ours']:.1f} µs",
            f"{middle[side]:.1f} µs",
            middle["ours"] / middle[side],
            "x",
            target,
            at_least=False,
            details={"every repetition": found},
        )
        for side, against, target in (
            ("before", f"the build of 2026-11-25 ({BEFORE})", 0.4),
            ("bare", "reading and writing these bytes", None),
        )
        if side in middle
    ]


def _cost(server: Process, seconds: float) -> float:
    """Microseconds of CPU for one refusal, with the load on another core."""
    used = cpu_seconds(server.pid)
    outcome = load_apart(server, what="register", tag=next(_tags), connections=CONNECTIONS, seconds=seconds)
    assert set(outcome["statuses"]) == {"503"}, outcome["statuses"]
    refused: float = outcome["statuses"]["503"] * (seconds + 1.0) / seconds  # it works for a second before it counts
    return (cpu_seconds(server.pid) - used) / refused * 1e6


@contextmanager
def _checkout(commit: str) -> Iterator[Path | None]:
    """A work tree of a commit, None where there is no such history."""
    with tempfile.TemporaryDirectory(prefix="registrar-bench-") as directory:
        tree = Path(directory) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        done = subprocess.run([*git, "add", "--detach", str(tree), commit], capture_output=True, check=False)
        try:
            yield tree if done.returncode == 0 else None
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True, check=False)
