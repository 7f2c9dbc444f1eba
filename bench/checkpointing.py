"""Appends while checkpoints are made of the log by a process beside them, against appends without one."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import uvloop

from bench.cluster import Cluster
from bench.processes import beside, run_job
from bench.report import Row
from infrastructure.audit.checkpointer import Checkpointer
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.witness import Witnesses
from infrastructure.followers.leadership import lead

CALLERS = 64


def run(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    """As many appends as can be, with and without, in alternation and in turns who is first."""
    numbers = count(0, 10_000_000)
    found: dict[str, list[dict[str, Any]]] = {"on": [], "off": []}
    for repetition in range(repetitions):
        for which in ("on", "off") if repetition % 2 else ("off", "on"):
            with ExitStack() as stack:
                dsn = stack.enter_context(cluster.fresh())
                if which == "on":
                    directory = stack.enter_context(tempfile.TemporaryDirectory())
                    stack.enter_context(beside("bench.checkpointing", dsn, directory))
                job = {"who": "ours", "dsn": dsn, "callers": CALLERS, "seconds": seconds, "first": next(numbers)}
                outcome = run_job("bench.appending", job)
                if which == "on":
                    outcome["checkpoints"] = (Path(directory) / "checkpoint").exists()
                found[which].append(outcome)
    on, off = (statistics.median(one["rate"] for one in found[which]) for which in ("on", "off"))
    what = f"append, {CALLERS} callers, checkpoints on"
    return [Row(what, "off", f"{on:,.0f}/s", f"{off:,.0f}/s", on / off, "x", 0.99, True, found)]


async def _make(dsn: str, directory: str) -> None:
    checkpointer = Checkpointer(
        seeds=lambda: [bytes(32)],
        directory=CheckpointDirectory(Path(directory)),
        post=None,
        witnesses=Witnesses(()),
    )
    leading = asyncio.create_task(lead(checkpointer, dsn))
    print("checkpointing", flush=True)
    await leading


if __name__ == "__main__":
    uvloop.run(_make(*sys.argv[1:]))
