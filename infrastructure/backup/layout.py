"""Where backups are, and what each says about itself.

DIR/2026-11-28T16-20-11Z/       one backup, and the write-ahead log from there on
    base/base.tar.gz            the database, as pg_basebackup writes it
    base/pg_wal.tar.gz          what it needs of the write-ahead log to be consistent
    base/backup_manifest        PostgreSQL's: each file of the database with its SHA-256
    checkpoints/                a copy of the signed checkpoints
    wal/                        segments that were archived since, until the next backup
    backup.json                 ours; written last: a backup without it is not whole, and is never restored
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from domain.recorded import Position
from infrastructure.embedded.files import sync, write

DESCRIPTION: Final = "backup.json"
CHECKPOINTS: Final = "checkpoints"
FORMAT: Final = "registrar backup"
VERSION: Final = 1

_STAMP: Final = "%Y-%m-%dT%H-%M-%SZ"
_NAME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ")
_SEGMENT: Final = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})\.gz")
_SEGMENTS_OF_A_LOG: Final = 256
"""With segments of 16 MiB, which `initdb` makes."""


class BadBackup(Exception):
    """There is no backup to use, or it is not as it was written; one line that says why and what to do."""


class NoRoom(Exception):
    """There is too little free space to bring a backup back; one line that says where and how much there must be."""


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A backup, as it describes itself.

    Attributes:
        release: of Registrar, that took it.
        postgresql: version of the server.
        began_at, ended_at: by the database's clock. What was recorded up to `ended_at` may be in it, not all of it
            must be: the rest is in the archive.
        position, hash: the head of the log when the backup began: a restored log must contain that.
        size: of its files, in bytes.
    """

    format: str
    version: int
    release: str
    postgresql: str
    system_identifier: str
    began_at: datetime
    ended_at: datetime
    position: Position
    hash: str
    size: int


@dataclass(frozen=True, slots=True)
class Backup:
    """A whole backup in its directory."""

    path: Path
    description: Description


def new_directory(directory: Path, now: datetime) -> Path:
    """Make the directory of a backup that begins now.

    Raises:
        BadBackup: one is there that was begun in the same second, or later: by their names the last one is told.
        OSError: it cannot be made.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory.resolve() / now.strftime(_STAMP)
    newest = max(_paths(directory), default=None)
    if newest is not None and newest.name >= path.name:
        raise BadBackup(
            f"{newest} was begun in this second, or after it; try again, and if that does not help, look whether the "
            "clock of the database is right, or name another directory."
        )
    path.mkdir(mode=0o700)
    sync(path.parent)
    return path


def finish(path: Path, description: Description) -> None:
    """Declare a backup whole; everything else in it must be on disk."""
    write(path / DESCRIPTION, msgspec.json.format(msgspec.json.encode(description), indent=2).decode() + "\n")


def whole_backups(directory: Path) -> list[Backup]:
    """Every whole backup, the oldest first.

    Raises:
        BadBackup: one of them was written by a release that writes another form.
    """
    return [Backup(path, _described(path)) for path in _paths(directory) if (path / DESCRIPTION).exists()]


def demand_one_database(directory: Path, system_identifier: str) -> None:
    """
    Raises:
        BadBackup: there are backups of another database; one of the two would be taken for the other.
    """
    for one in whole_backups(directory):
        if one.description.system_identifier != system_identifier:
            raise BadBackup(
                f"{one.path} is a backup of another database; each has its own directory, name another one."
            )


def _described(path: Path) -> Description:
    try:
        found = msgspec.json.decode((path / DESCRIPTION).read_bytes(), type=Description)
    except (msgspec.MsgspecError, ValueError):
        raise BadBackup(f"{path / DESCRIPTION} is not as Registrar writes it; move that backup away.") from None
    if (found.format, found.version) != (FORMAT, VERSION):
        raise BadBackup(f"Registrar {found.release} wrote {path}, in a form that this release does not know.")
    return found


def backup_for(directory: Path, to: datetime | None) -> Backup:
    """The latest whole backup, or the latest that was at its end at a moment.

    Raises:
        BadBackup: there is none.
    """
    found = whole_backups(directory)
    if not found:
        raise BadBackup(f"There is no whole backup in {directory}; `registrar backup {directory}` takes one.")
    before = [one for one in found if to is None or one.description.ended_at <= to]
    if not before:
        first = found[0].description.ended_at
        raise BadBackup(f"The oldest backup in {directory} ends at {first:%Y-%m-%dT%H:%M:%SZ}, after that moment.")
    return before[-1]


def archives_from(backup: Backup) -> list[Path]:
    """Where the write-ahead log is that follows a backup: with it, and with every later one, whole or not."""
    return [path / "wal" for path in _paths(backup.path.parent) if path.name >= backup.path.name]


def gap_in(archives: list[Path]) -> str | None:
    """The first segment that is missing between two that are there; None if there is none.

    Of a timeline's own: where another begins, its first segment has the number of the last one before.
    """
    segments: dict[str, set[int]] = {}
    for archive in archives:
        for path in archive.iterdir() if archive.is_dir() else ():
            if found := _SEGMENT.fullmatch(path.name):
                timeline, log, segment = found.groups()
                segments.setdefault(timeline, set()).add(int(log, 16) * _SEGMENTS_OF_A_LOG + int(segment, 16))
    for timeline, numbers in sorted(segments.items()):
        for number in range(min(numbers), max(numbers)):
            if number not in numbers:
                return f"{timeline}{number // _SEGMENTS_OF_A_LOG:08X}{number % _SEGMENTS_OF_A_LOG:08X}"
    return None


def forget(directory: Path, *, keep: int) -> list[str]:
    """Remove all but the last `keep` whole backups, and what was begun before those; returns the names."""
    kept = [one.path.name for one in whole_backups(directory)][-keep:]
    removed = [path for path in _paths(directory) if kept and path.name < kept[0]]
    for path in removed:
        (path / DESCRIPTION).unlink(missing_ok=True)  # first: from now on it is no whole backup
        shutil.rmtree(path)
    return [path.name for path in removed]


def drop_unfinished(directory: Path) -> None:
    """Remove what an interrupted backup has left, but for the log that was archived there since."""
    for path in _paths(directory):
        if not (path / DESCRIPTION).exists():
            for child in path.iterdir():
                if child.name != "wal":
                    shutil.rmtree(child) if child.is_dir() else child.unlink()


def _paths(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from sorted(path for path in directory.resolve().iterdir() if _NAME.fullmatch(path.name))
