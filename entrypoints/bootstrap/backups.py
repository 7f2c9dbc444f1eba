"""Backups of the embedded database: taken, restored, and tried out in a drill."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Final

from application.operator_acts import BACK_UP
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.acts import record_act
from entrypoints.bootstrap.checkpoint_places import checkpoint_directory
from entrypoints.bootstrap.database import check_schema, dsn_to_read, first_connection
from entrypoints.bootstrap.replay import READ_MODELS, Verifier, giving_way
from entrypoints.bootstrap.restored_log import PATIENCE, Arrived, Progress, RestoredLog, look_at, row_of
from infrastructure.audit.erasures import FILE
from infrastructure.backup.archive import make_archive, turn_on
from infrastructure.backup.layout import (
    CHECKPOINTS,
    FORMAT,
    VERSION,
    Backup,
    Description,
    backup_for,
    demand_one_database,
    drop_unfinished,
    finish,
    forget,
    new_directory,
)
from infrastructure.backup.records import note, note_restore, noted
from infrastructure.backup.restoring import give_to_owner, move_into, remove_abandoned, restored, server_user
from infrastructure.backup.taking import size_of, take_base_backup
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.embedded.files import exclusively
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.settings.settings import Settings

_DRILL: Final = {"fsync": "off", "full_page_writes": "off"}
"""A database that is thrown away afterwards."""

_DRILL_LOCK: Final = "drill.lock"

_ELSEWHERE: Final = (
    "REGISTRAR_DATABASE_URL is set: that server is backed up by those who run it (docs/backup.md says how, and "
    "`registrar doctor` looks at its settings); `registrar backup` is for the embedded one."
)


class _DrillUnderWay(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that was taken.

    Attributes:
        archives: does the server archive its log to it from now on? If not, it does from its next start.
        same_disk: is it on the disk that the database is on?
        removed: names of earlier backups that were removed.
    """

    backup: Backup
    archives: bool
    same_disk: bool
    removed: Sequence[str]


@dataclass(frozen=True, slots=True)
class Drill:
    """What a drill has found.

    Attributes:
        differences: rows in which read models differ from a fold of the log, by read model.
        lost: events that the running log has, and the restored one has not; None if there is no running log.
        recovery_point: for how long something was recorded that is not in it.
        recovery_time: from the beginning until the database takes writes.
    """

    arrived: Arrived
    differences: dict[str, int]
    lost: int | None
    recovery_point: timedelta | None
    recovery_time: timedelta
    in_all: timedelta

    @property
    def passed(self) -> bool:
        return not (self.arrived.is_troubled or any(self.differences.values()))


# --- Taking one -------------------------------------------------------------------------------


async def back_up(
    settings: Settings, directory: Path, *, keep: int | None, progress: Progress, reason: str | None = None
) -> Taken:
    """Take a backup of the embedded database, which goes on meanwhile, and have its log archived beside it from then.

    Args:
        reason: the operator's.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, BadBackup, BackupFailed: one line each, fit to show.
    """
    _demand_embedded(settings)
    if not (settings.data_dir / "postgres").is_dir():
        raise CannotStart(f"There is no database in {settings.data_dir}; --data-dir names another directory.")
    async with AsyncExitStack() as stack:
        dsn = await dsn_to_read(settings, stack)
        await check_schema(dsn)
        async with first_connection(dsn) as connection:
            with exclusively(
                _lock_in(directory), or_else=CannotStart(f"Another backup is being taken to {directory}.")
            ):
                await record_act(dsn, BACK_UP, reason, statement_timeout=settings.statement_timeout)
                taken = await _back_up(connection, dsn, settings, directory, keep, progress)
        await asyncio.to_thread(_remove_killed_drill, DataDirectory(settings.data_dir).path)
    return taken


def _remove_killed_drill(data: Path) -> None:
    """Or its server would run, and take the room of a second database, until the next one."""
    with suppress(_DrillUnderWay), exclusively(data / _DRILL_LOCK, or_else=_DrillUnderWay()):
        remove_abandoned(data, "drill")


async def _back_up(
    connection: Connection, dsn: str, settings: Settings, directory: Path, keep: int | None, progress: Progress
) -> Taken:
    began_at, position, hash_at, server, identifier = await row_of(
        connection,
        "SELECT clock_timestamp(), position, encode(hash, 'hex'), current_setting('server_version'),"
        " (SELECT system_identifier::text FROM pg_control_system()) FROM public.head",
    )
    demand_one_database(directory, identifier)
    drop_unfinished(directory)
    path = new_directory(directory, began_at)
    data = DataDirectory(settings.data_dir).path
    make_archive(path / "wal", server_user(data))
    archives = await turn_on(connection, path / "wal")
    await take_base_backup(dsn, path / "base", lambda done, of: progress("Backing up", done, of))
    if (published := checkpoints_of(settings)).is_dir():
        await asyncio.to_thread(_copy_checkpoints, published, path / CHECKPOINTS)
    (ended_at,) = await row_of(connection, "SELECT clock_timestamp()")
    size = size_of(path / "base")
    description = Description(
        FORMAT, VERSION, version("registrar"), server, identifier, began_at, ended_at, position, hash_at, size
    )
    finish(path, description)
    await note(connection, "backup", path, position)
    removed = forget(directory, keep=keep) if keep is not None else []
    same_disk = path.stat().st_dev == data.stat().st_dev
    return Taken(Backup(path, description), archives, same_disk, removed)


def checkpoints_of(settings: Settings) -> Path:
    """Where signed checkpoints of the embedded database are published to."""
    directory = checkpoint_directory(settings)
    assert directory is not None  # noqa: S101 - an embedded one has a place for them
    return directory.path


def _copy_checkpoints(published: Path, to: Path) -> None:
    """The checkpointer may publish meanwhile: a file that it is about to rename is gone before it is copied.

    The journal of erasures comes last, and whole: it is not there before everything is.
    """
    shutil.copytree(published, to, ignore=shutil.ignore_patterns("*.new", FILE), dirs_exist_ok=True)
    if (published / FILE).exists():
        new = to / f"{FILE}.new"
        shutil.copy(published / FILE, new)
        new.rename(to / FILE)


def _demand_embedded(settings: Settings) -> None:
    if settings.database_url is not None:
        raise CannotStart(_ELSEWHERE)


def _lock_in(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / "backup.lock"


# --- Restoring one ----------------------------------------------------------------------------


def journal_for(settings: Settings, checkpoints: Path | None) -> Path:
    """Where a restore with these arguments finds the journal of erasures, if it is there.

    Raises:
        CannotStart: the database is an external one.
    """
    _demand_embedded(settings)
    return (checkpoints or checkpoints_of(settings)) / FILE


async def restore(
    settings: Settings,
    directory: Path,
    *,
    to: datetime | None,
    checkpoints: Path | None,
    progress: Progress,
    without_journal: bool = False,
) -> Arrived:
    """Bring a backup back into a data directory that holds no database.

    Args:
        checkpoints: a directory with checkpoints, and the journal of erasures, that is taken along; None: none is.
        without_journal: nothing has to be known of erasures since.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, BadBackup, NoRoom, CannotVerify: one line each, fit to
            show; no database is there then.
    """
    _demand_embedded(settings)
    backup = backup_for(directory, to)
    data = DataDirectory(settings.data_dir)
    with data.locked():
        if (data.path / "postgres").exists():
            raise CannotStart(
                f"There is a database in {data.path}, and nothing is restored over one; "
                "name another directory with --data-dir, or move that one away."
            )
        _demand_place(checkpoints, checkpoints_of(settings))
        async with restored(
            backup, data.path, purpose="restore", to=to, progress=lambda done, of: progress("Restoring", done, of)
        ) as server:
            published = (checkpoints or checkpoints_of(settings), backup.path / CHECKPOINTS)
            arrived = await look_at(server.dsn, settings, backup, published, to is None, progress)
            async with first_connection(server.dsn) as connection:
                await note_restore(connection, arrived.log.position, settled=without_journal)
            await asyncio.to_thread(server.stop)
            if checkpoints is not None:
                await asyncio.to_thread(_bring, checkpoints, checkpoints_of(settings), data.path)
            move_into(server, data.path)
    return arrived


def _demand_place(checkpoints: Path | None, home: Path) -> None:
    """
    Raises:
        CannotStart: those that are to be brought would take the place of others, which may know of more erasures.
    """
    if checkpoints is not None and home.is_dir() and any(home.iterdir()) and not home.samefile(checkpoints):
        raise CannotStart(
            f"There are checkpoints in {home}, perhaps newer ones; leave --checkpoints out, or move them away."
        )


def _bring(checkpoints: Path, home: Path, data: Path) -> None:
    if not (home.is_dir() and home.samefile(checkpoints)):
        _copy_checkpoints(checkpoints, home)
        give_to_owner(home, data)


# --- Trying one out ---------------------------------------------------------------------------


async def drill(settings: Settings, directory: Path | None, progress: Progress) -> Drill:
    """Restore the latest backup beside the running database, fold its log, and throw it away again.

    Args:
        directory: of the backups; None: of the last one that was taken.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, BadBackup, NoRoom, CannotVerify: one line each, fit to
            show; the drill has failed.
    """
    _demand_embedded(settings)
    data = DataDirectory(settings.data_dir)
    running = None
    began = time.monotonic()
    with exclusively(data.path / _DRILL_LOCK, or_else=CannotStart("Another drill is under way on this database.")):
        async with AsyncExitStack() as stack:
            if (data.path / "postgres").exists():
                running = await dsn_to_read(settings, stack)
            directory = directory or await _last_directory(running)
            backup = backup_for(directory, None)
            server = await stack.enter_async_context(
                restored(
                    backup,
                    data.path,
                    purpose="drill",
                    progress=lambda done, of: progress("Restoring", done, of),
                    settings=_DRILL,
                )
            )
            recovered = time.monotonic()
            stack.enter_context(giving_way())
            published = (checkpoints_of(settings), backup.path / CHECKPOINTS)
            arrived = await look_at(server.dsn, settings, backup, published, True, progress)
            differences = await _differences(server.dsn, progress)
            lost, point = await _behind(running, arrived.log) if running else (None, None)
            in_all = timedelta(seconds=time.monotonic() - began)
            found = Drill(arrived, differences, lost, point, timedelta(seconds=recovered - began), in_all)
            if found.passed and running is not None:
                async with first_connection(running) as connection:
                    await note(connection, "drill", backup.path, arrived.log.position)
    return found


async def _last_directory(running: str | None) -> Path:
    if running is not None:
        async with first_connection(running) as connection:
            if (last := (await noted(connection)).get("backup")) is not None:
                return last.directory.parent
    raise CannotStart("No backup of this database is known; name the directory: `registrar backup --drill DIR`.")


async def _differences(dsn: str, progress: Progress) -> dict[str, int]:
    """Each read model against a fold of the restored log, as `projections verify` does it."""
    line = ReconnectingConnection(dsn, name="drill log", statement_timeout=PATIENCE, read_only=True)
    try:
        verifier = Verifier(dsn, LogReader(line, EventCodec()))
        found = await verifier.verify_all(
            list(READ_MODELS), lambda doing: progress("Folding", doing.reached, doing.upto)
        )
        return {name: one.count for name, one in zip(READ_MODELS, found, strict=True)}
    finally:
        await line.close()


async def _behind(running: str, log: RestoredLog) -> tuple[int, timedelta]:
    """How many events the running log has beyond a restored one, and for how long it has recorded them."""
    async with first_connection(running) as connection:
        head, first, last = await row_of(
            connection,
            "SELECT h.position, (SELECT recorded_at FROM events WHERE notification_id = %s),"
            " (SELECT recorded_at FROM events WHERE notification_id = h.position) FROM head AS h",
            log.position + 1,
        )
    return head - log.position, last - first if first is not None and last is not None else timedelta(0)
