"""A base backup of a running server, by the pg_basebackup of the embedded PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from infrastructure.embedded.postgres import programs_of_postgres
from infrastructure.embedded.programs import last_useful_line, run_as

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much, in KiB."""

_KIB: Final = re.compile(r"^\s*(\d+)/(\d+) kB")


class BackupFailed(Exception):
    """It could not be taken; one line with PostgreSQL's own reason."""


async def take_base_backup(dsn: str, to: Path, progress: Progress) -> None:
    """Write base.tar.gz, pg_wal.tar.gz and backup_manifest into a new directory; they are whole, and on disk, when this
    returns.

    The server goes on meanwhile. Memory is bounded: pg_basebackup passes on what it gets.

    Raises:
        BackupFailed: with the reason; what was written is of no use.
    """
    options = ["--format=tar", "--compress=client-gzip:1", "--wal-method=stream", "--checkpoint=fast", "--progress"]
    options += ["--manifest-checksums=SHA256", "--no-password", f"--pgdata={to}", f"--dbname={dsn}"]
    process = await asyncio.create_subprocess_exec(
        programs_of_postgres() / "pg_basebackup",
        *options,
        **run_as(None),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None  # noqa: S101 - asked for above
    said = ""
    try:
        async for line in process.stderr:
            text = line.decode("utf-8", "replace")
            if found := _KIB.match(text):
                progress(int(found[1]), int(found[2]))
            else:
                said = (said + text)[-10_000:]
        code = await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    if code != 0:
        raise BackupFailed(f"PostgreSQL cannot be backed up: {last_useful_line(said)}")


def size_of(directory: Path) -> int:
    """Bytes of the files in a directory, not those below it."""
    with os.scandir(directory) as found:
        return sum(one.stat().st_size for one in found if one.is_file())
