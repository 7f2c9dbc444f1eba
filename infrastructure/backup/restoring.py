"""A backup, brought back as a server of its own: unpacked, recovered to the end of the archive or to a moment."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from infrastructure.backup.archive import SETTINGS, restore_command
from infrastructure.backup.layout import Backup, BadBackup, NoRoom, archives_from
from infrastructure.backup.unpacking import Progress, unpack, unpacked_size
from infrastructure.embedded.files import sync
from infrastructure.embedded.postgres import DatabaseDidNotStart, EmbeddedPostgres
from infrastructure.embedded.system_user import let_traverse, system_user

RECOVERY_DEADLINE: Final = 24 * 3600.0
"""Seconds; to replay the log of a busy week may take hours, and to give up helps nobody."""

SPARE: Final = 2 << 30
"""Bytes that stay free beside what is unpacked: for the log that is replayed, and for the live database, which may be
on the same disk, and stops when that is full."""

_LEFT_BEHIND: Final = "{}.new."
_TOO_EARLY: Final = re.compile(r"recovery stop point is before consistent recovery point")
_TOO_LATE: Final = re.compile(r"recovery ended before configured recovery target was reached")
_UNREADABLE: Final = re.compile(r'could not restore file "(\w+)" from archive')


@asynccontextmanager
async def restored(
    backup: Backup,
    within: Path,
    *,
    purpose: str,
    to: datetime | None = None,
    progress: Progress = lambda _done, _of: None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[EmbeddedPostgres]:
    """A running server with what the backup and the archive hold, in a new directory of its own that is removed at the
    end of the block; what an earlier one for the same purpose has left is removed first.

    It listens on its socket only, archives nothing, and takes writes.

    Args:
        within: where that directory is made.
        purpose: the beginning of its name; one process at a time per purpose.
        to: up to the last commit of this moment; None: to the end of the archive.
        settings: of the server, on top of ours.

    Raises:
        BadBackup: backup or archive are not as they were written, or do not reach that moment.
        NoRoom: it does not fit, or would leave less than `SPARE` free; nothing was written.
        DatabaseDidNotStart: the embedded PostgreSQL is not installed, or does not stop.
        OSError: it cannot be written.
    """
    await asyncio.to_thread(remove_abandoned, within, purpose)
    owner = server_user(within)
    archives = [one for one in archives_from(backup) if one.is_dir()]
    copied = sum(file.stat().st_size for one in archives if _is_anothers(one, owner) for file in _segments_of(one))
    _demand_room(within, unpacked_size(backup.path / "base") + copied)
    scratch = Path(tempfile.mkdtemp(prefix=_LEFT_BEHIND.format(purpose), dir=within))
    server: EmbeddedPostgres | None = None
    try:
        await asyncio.to_thread(unpack, backup.path / "base", scratch / "postgres", owner, progress)
        await asyncio.to_thread(_make_ready, scratch / "postgres", owner)
        archives = await asyncio.to_thread(_readable, archives, scratch, owner)
        extra = {"restore_command": restore_command(archives), "hot_standby": "off", **(settings or {})}
        if to is not None:
            moment = to.astimezone(UTC).isoformat(sep=" ")
            extra |= {"recovery_target_time": moment, "recovery_target_action": "promote"}
        server = EmbeddedPostgres(scratch, extra, start_deadline=RECOVERY_DEADLINE)
        try:
            await asyncio.to_thread(server.start)
        except DatabaseDidNotStart as error:
            raise _explained(error, scratch / "postgres.log", to) from None
        yield server
    finally:
        if server is not None:
            await asyncio.to_thread(server.stop)
        await asyncio.to_thread(_remove, scratch)


def server_user(directory: Path) -> tuple[int, int] | None:
    """User and group that a server with its data in that directory runs as, None for our own: root works for the owner
    of the database that is there, or of the directory."""
    if os.geteuid() != 0:
        return None
    for path in (directory / "postgres", directory):
        if path.exists() and (found := path.stat()).st_uid != 0:
            return found.st_uid, found.st_gid
    return system_user("registrar")


def move_into(server: EmbeddedPostgres, directory: Path) -> None:
    """Put the data of a stopped server where `registrar up` looks for it; atomic, and on disk when this returns."""
    (server.directory / "postgres").rename(directory / "postgres")
    sync(directory)


def give_to_owner(tree: Path, of: Path) -> None:
    """Have a tree belong to the owner of a directory: root may work in another user's."""
    if os.geteuid() == 0:
        found = of.stat()
        for one in (tree, *tree.rglob("*")):
            os.chown(one, found.st_uid, found.st_gid, follow_symlinks=False)


def _demand_room(within: Path, size: int) -> None:
    free = shutil.disk_usage(within).free
    if free < size + SPARE:
        raise NoRoom(
            f"The backup takes {size / 2**30:.1f} GiB, and {SPARE / 2**30:.0f} GiB must stay free beside it, but only "
            f"{free / 2**30:.1f} GiB are free in {within}; make room there."
        )


def remove_abandoned(within: Path, purpose: str) -> None:
    """What killed ones have left, servers that still run included. The caller sees to it that no other is at work."""
    for abandoned in within.glob(_LEFT_BEHIND.format(purpose) + "*"):
        _remove(abandoned)


def _remove(scratch: Path) -> None:
    """Also stops a server that a killed process has left there."""
    if (scratch / "postgres").exists():
        left = EmbeddedPostgres(scratch)
        if left.pid is not None:
            left.start()  # joins it, so that it can be stopped
            left.stop()
    shutil.rmtree(scratch, ignore_errors=True)


def _make_ready(data: Path, owner: tuple[int, int] | None) -> None:
    """For a recovery, and for a life of its own after it: it must not archive to where it came from."""
    for name in ("standby.signal", "backup_label.old", "postmaster.pid", "postmaster.opts"):
        (data / name).unlink(missing_ok=True)
    for lock in data.glob(".s.PGSQL.*"):
        lock.unlink()
    of_system = data / "postgresql.auto.conf"
    kept = [line for line in of_system.read_text().splitlines() if not line.startswith(SETTINGS)]
    of_system.write_text("\n".join([*kept, ""]))
    signal = data / "recovery.signal"
    signal.touch(mode=0o600)
    if owner is not None:
        os.chown(signal, *owner)


def _is_anothers(archive: Path, owner: tuple[int, int] | None) -> bool:
    return owner is not None and archive.stat().st_uid != owner[0]


def _segments_of(archive: Path) -> Iterator[Path]:
    """The whole ones: what is being archived has another name."""
    return archive.glob("*.gz")


def _readable(archives: list[Path], scratch: Path, owner: tuple[int, int] | None) -> list[Path]:
    """Where the server can fetch the segments as its own user. Those of another one, or of another machine, are copied
    for it: a live server may be archiving there, and could not go on if they were given away."""
    if owner is None:
        return archives
    found = []
    for archive in archives:
        readable = archive
        if _is_anothers(archive, owner):
            readable = scratch / "wal" / archive.parent.name
            readable.mkdir(mode=0o700, parents=True)
            for segment in _segments_of(archive):
                shutil.copy(segment, readable)
            for one in (readable.parent, readable, *readable.iterdir()):
                os.chown(one, *owner)
        let_traverse(readable, owner)
        found.append(readable)
    return found


def _explained(error: DatabaseDidNotStart, output: Path, to: datetime | None) -> BadBackup:
    said = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    if found := _UNREADABLE.search(said):
        return BadBackup(f"The archived segment {found[1]} cannot be read; restore to a moment before it, with --to.")
    if _TOO_LATE.search(said):
        return BadBackup(
            f"The archive ends before {to:%Y-%m-%dT%H:%M:%SZ}, or nothing was recorded after that. What was recorded "
            "within the last minute may get there yet: try again then. Without --to everything in it is restored."
        )
    if _TOO_EARLY.search(said):
        return BadBackup(f"The backup is not consistent at {to:%Y-%m-%dT%H:%M:%SZ} yet; name a later moment.")
    return BadBackup(f"The restored server does not start: {error}")
