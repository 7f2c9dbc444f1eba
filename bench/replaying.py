"""What a command of replay does, in a process of its own, so that its memory can be told."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from hashlib import sha256
from multiprocessing import active_children
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.folding import peak_mib
from domain.policy import Policy
from entrypoints.cli.garbage_collection import collect_hardly_ever, keep_what_is_there
from infrastructure.archive.exporting import exported
from infrastructure.archive.files import lines_of, written
from infrastructure.archive.importing import begin_import, end_import, import_events
from infrastructure.archive.reading import ExportedLog
from infrastructure.audit.roots import Claim
from infrastructure.audit.verification import verify as verify_log
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.postgres.connection import ReconnectingConnection, closing, connect
from infrastructure.postgres.pool import QueryPool
from infrastructure.replay.copies import MakesProjection
from infrastructure.replay.progress import Doing
from infrastructure.replay.rebuild import RebuildAct, Rebuilds
from infrastructure.replay.verification import verify_all
from infrastructure.replay.what_if import WhatIf
from projections import PROJECTIONS
from tests.support.tampering import checkpoint_at

Job = dict[str, str]


async def of_read_models(job: Job) -> dict[str, Any]:
    """Rebuild or verify the named read models in one pass of the log, or roll them back.

    Answers the moments (of the machine's clock) at which each step began.
    """
    line = ReconnectingConnection(job["dsn"], name="replay", statement_timeout=timedelta(minutes=1), read_only=True)
    log = LogReader(line, EventCodec())
    steps: dict[str, float] = {}

    def watch(doing: Doing) -> None:
        steps.setdefault(f"{doing.read_model} {doing.what}", time.time())

    async def record(_: RebuildAct) -> None:
        """The log has nothing to do with the speed."""

    makes: list[MakesProjection] = [make for make in PROJECTIONS if make.name in job["names"].split()]
    rebuilds = Rebuilds(job["dsn"], log=log, record=record, watch=watch)
    match job["who"]:
        case "rebuild":
            assert all(one.swapped for one in await rebuilds.rebuild_all(makes))
        case "verify":
            assert not any(one.count for one in await verify_all(job["dsn"], makes, log=log, watch=watch))
        case _:
            for make in makes:
                await rebuilds.roll_back(make)
    await line.close()
    return {"steps": steps}


async def what_if(job: Job) -> dict[str, Any]:
    """As `events replay --dry-run` does."""
    asked = WhatIf(job["dsn"], statement_timeout=timedelta(seconds=10))
    registrations, helpers = 0, dict[int, float]()
    async for reviewed in asked.review(Policy(), since=0, until=None):
        assert not reviewed.differences
        registrations += reviewed.registrations
        helpers |= {one.pid: peak_mib(one.pid) for one in active_children() if one.pid and one.is_alive()}
    await asked.close()
    return {"registrations": registrations, "peak_mib of helpers": sum(helpers.values())}


async def export(job: Job) -> dict[str, Any]:
    """As `events export` does."""
    async with QueryPool(job["dsn"], statement_timeout=timedelta(seconds=10), read_only=True) as pool:
        with written(Path(job["file"])) as output:
            async for piece in exported(pool, release="bench", with_keys=False, on_events=lambda *_: None):
                output.write(piece)
    return {}


async def import_(job: Job) -> dict[str, Any]:
    """As `events import` does."""
    connection = await connect(job["dsn"], name="import", statement_timeout=timedelta(minutes=10))
    async with closing(connection):
        with open(job["file"], "rb") as opened:  # noqa: ASYNC230, PTH123 - nothing else runs here
            log = ExportedLog(lines_of(opened))
            await begin_import(connection)
            await import_events(connection, log, on_events=lambda _: None)
            await end_import(connection, log, master_key=None)
    return {}


async def audit_verify(job: Job) -> dict[str, Any]:
    """As `audit verify` does."""
    helpers = dict[int, float]()

    def told(*_: int) -> None:
        helpers.update({one.pid: peak_mib(one.pid) for one in active_children() if one.pid and one.is_alive()})

    found = await verify_log(job["dsn"], statement_timeout=timedelta(minutes=1), told=told)
    assert not found.found
    return {"events": found.events, "peak_mib of helpers": sum(helpers.values())}


async def audit_verify_since_checkpoint(job: Job) -> dict[str, Any]:
    """As `audit verify --since-checkpoint` does, when a hundredth of the log is later."""
    connection = await connect(job["dsn"], name="bench", statement_timeout=timedelta(minutes=10), read_only=True)
    async with closing(connection):
        checkpoint = await checkpoint_at(connection, 0.99)
    began = time.perf_counter()
    found = await verify_log(
        job["dsn"], statement_timeout=timedelta(minutes=1), claims=[Claim(checkpoint)], since_checkpoint=True
    )
    assert not found.found
    return {"verification": time.perf_counter() - began}


async def copy_and_hash(job: Job) -> dict[str, Any]:
    """The least that anybody has to do who looks at every byte of the log: COPY, and SHA-256 of each row."""
    events = 0
    connection = await connect(job["dsn"], name="bench", statement_timeout=timedelta(minutes=10), read_only=True)
    async with closing(connection), connection.cursor() as cursor, cursor.copy(_ROWS) as copy:
        async for row in copy:
            sha256(row).digest()
            events += 1
    return {"events": events - 1}  # the file's head comes with the first, its end alone


_ROWS: Final = "COPY (SELECT * FROM public.events ORDER BY notification_id) TO STDOUT (FORMAT binary)"


WORKS: dict[str, Callable[[Job], Awaitable[dict[str, Any]]]] = {
    "rebuild": of_read_models,
    "verify": of_read_models,
    "roll back": of_read_models,
    "what-if": what_if,
    "export": export,
    "import": import_,
    "audit verify": audit_verify,
    "audit verify since checkpoint": audit_verify_since_checkpoint,
    "copy and hash": copy_and_hash,
}


async def timed(job: Job) -> dict[str, Any]:
    """What the work answers, with its seconds and the peak of its memory, helpers included."""
    started = time.perf_counter()
    answer = await WORKS[job["who"]](job)
    peak = peak_mib() + answer.get("peak_mib of helpers", 0)
    return answer | {"seconds": time.perf_counter() - started, "peak_mib": peak}


def main() -> None:
    """Arguments in and outcome out as JSON."""
    collect_hardly_ever()  # as the commands do
    keep_what_is_there()
    print(json.dumps(uvloop.run(timed(json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
