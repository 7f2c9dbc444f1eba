"""A rebuild or a verification of read models, in a process of its own, so that its memory can be told."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

import uvloop

from bench.folding import peak_mib
from entrypoints.cli.garbage_collection import collect_hardly_ever, keep_what_is_there
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.replay.progress import Doing
from infrastructure.replay.rebuild import RebuildAct, Rebuilds
from infrastructure.replay.verification import verify
from projections import PROJECTIONS


async def main(job: dict[str, str]) -> dict[str, object]:
    """Rebuild or verify the named read models, one after the other; answers seconds, of each and of their steps."""
    line = ReconnectingConnection(job["dsn"], name="replay", statement_timeout=timedelta(minutes=1), read_only=True)
    log = LogReader(line, EventCodec())
    steps: dict[str, float] = {}

    def watch(doing: Doing) -> None:
        steps.setdefault(f"{doing.read_model} {doing.what}", time.perf_counter())

    async def record(_: RebuildAct) -> None:
        """The log has nothing to do with the speed."""

    started = time.perf_counter()
    took = {}
    for make in PROJECTIONS:
        if make.name not in job["names"].split():
            continue
        began = time.perf_counter()
        if job["who"] == "verify":
            assert (await verify(job["dsn"], make, log=log, watch=watch)).count == 0
        else:
            assert (await Rebuilds(job["dsn"], log=log, record=record, watch=watch).rebuild(make)).swapped
        took[make.name] = time.perf_counter() - began
    seconds = time.perf_counter() - started
    await line.close()
    return {
        "seconds": seconds,
        "each": took,
        "steps": {name: at - started for name, at in steps.items()},
        "peak_mib": peak_mib(),
    }


if __name__ == "__main__":
    collect_hardly_ever()  # as the command does
    keep_what_is_there()
    print(json.dumps(uvloop.run(main(json.loads(sys.argv[1])))))
