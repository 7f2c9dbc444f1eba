"""An export or import of a log, in a process of its own, so that its memory can be told."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import uvloop

from bench.folding import peak_mib
from entrypoints.cli.garbage_collection import collect_rarely, keep_what_is_there
from infrastructure.archive.exporting import exported
from infrastructure.archive.files import lines_of, written
from infrastructure.archive.importing import begin_import, end_import, import_events
from infrastructure.archive.reading import ExportedLog
from infrastructure.postgres.connection import closing, connect
from infrastructure.postgres.pool import QueryPool


async def export_to(dsn: str, file: Path) -> None:
    """As `events export` does."""
    async with QueryPool(dsn, statement_timeout=timedelta(seconds=10), read_only=True) as pool:
        with written(file) as output:
            async for piece in exported(pool, release="bench", with_keys=False, on_events=lambda *_: None):
                output.write(piece)


async def import_from(dsn: str, file: Path) -> None:
    """As `events import` does."""
    connection = await connect(dsn, name="import", statement_timeout=timedelta(minutes=10))
    async with closing(connection):
        with file.open("rb") as opened:
            log = ExportedLog(lines_of(opened))
            await begin_import(connection)
            await import_events(connection, log, on_events=lambda _: None)
            await end_import(connection, log, master_key=None)


def main() -> None:
    """Arguments in and outcome out as JSON."""
    job = json.loads(sys.argv[1])
    collect_rarely()  # as the command does
    keep_what_is_there()
    work = {"export": export_to, "import": import_from}[job["who"]]
    started = time.perf_counter()
    uvloop.run(work(job["dsn"], Path(job["file"])))
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
