"""Appends while checkpoints are made of the log by a process beside them, against appends without one."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import uvloop

from bench.cluster import Cluster
from bench.history import EVENTS_EACH
from bench.processes import beside, cpu_of_postgres, cpu_seconds, run_job
from bench.report import Row
from entrypoints.cli.garbage_collection import collect_rarely, keep_what_is_there
from infrastructure.audit.checkpointer import Checkpointer
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.witness import Witnesses
from infrastructure.followers.leadership import lead
from infrastructure.postgres.connection import closing, connect

CALLERS = 64
RATE = 200
"""Registrations a second, of issue 12."""

MOST_BEHIND = 15 * RATE * EVENTS_EACH
"""Events without a checkpoint, at any moment: one is made every ten seconds."""


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


def always_on(cluster: Cluster, *, seconds: float) -> list[Row]:
    """What it takes to verify, sign and publish beside registrations that go on."""
    with cluster.fresh() as dsn, tempfile.TemporaryDirectory() as directory:
        with beside("bench.checkpointing", dsn, directory) as process:
            job = {"who": "steady", "dsn": dsn, "rate": RATE, "first": 0}
            run_job("bench.appending", job | {"seconds": 3})
            before, of_server = cpu_seconds(process.pid), _of_its_session(cluster, dsn)
            began = time.perf_counter()
            outcome = run_job("bench.appending", job | {"seconds": seconds, "first": 10**6})
            used = cpu_seconds(process.pid) - before
            of_server = _of_its_session(cluster, dsn) - of_server
            took = time.perf_counter() - began
        behind, checkpoints = asyncio.run(_behind(dsn))
    assert behind <= MOST_BEHIND, f"{behind} events are not signed"
    details = outcome | {"seconds": took, "cpu": used, "cpu of its session": of_server, "checkpoints": checkpoints}
    return [
        Row(
            f"verifying and signing, always on, beside {RATE:g} registrations/s",
            "a core",
            f"{100 * used / took:.1f} %",
            f"its session in the server: {100 * of_server / took:.1f} %",
            100 * used / took,
            "%",
            2.0,
            at_least=False,
            details=details,
        )
    ]


def _of_its_session(cluster: Cluster, dsn: str) -> float:
    return cpu_of_postgres(cluster.server.pid or 0, dsn).get(f"registrar {Checkpointer.name}", 0.0)


async def _behind(dsn: str) -> tuple[int, int]:
    connection = await connect(dsn, name="bench", statement_timeout=timedelta(seconds=10))
    async with closing(connection):
        row = await (
            await connection.execute(
                "SELECT (SELECT position FROM head) - coalesce(max(position), 0), count(*) FROM checkpoints"
            )
        ).fetchone()
    return row or (0, 0)


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
    collect_rarely()  # as the service does
    keep_what_is_there()
    uvloop.run(_make(*sys.argv[1:]))
