"""A log out of a file: checked, or imported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from io import BufferedReader
from typing import TypeVar

import psycopg

from domain.recorded import Position
from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.database import create_schema, first_connection, open_database
from infrastructure.archive.files import BadFile, lines_of
from infrastructure.archive.importing import CannotImport, begin_import, check_root_secret, end_import, import_events
from infrastructure.archive.reading import ExportedLog
from infrastructure.event_store.codec import event_classes
from infrastructure.postgres.addresses import first_line
from infrastructure.postgres.connection import closing, connect
from infrastructure.settings.settings import Settings

T = TypeVar("T")

_PATIENCE = timedelta(minutes=10)
"""How long one statement of an import may take: a count of all events, at the end."""

Progress = Callable[[Position, Position], None]
"""Called with the position that is reached, and that of the end."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """What a file holds, all of it verified.

    Attributes:
        release: of Registrar, that wrote it.
        hash: of the last block, in hexadecimal.
        keys: how many personal keys are in it; of an import, how many were taken.
        unknown_types: of its events, that this release does not know.
        resumed_at: where an import went on that was interrupted; None for one without interruption.
    """

    release: str
    events: Position
    hash: str
    keys: int
    unknown_types: tuple[str, ...] = ()
    resumed_at: Position | None = None


async def check_file(file: BufferedReader, progress: Progress) -> LogFile:
    """Verify a file by itself, without a database.

    Raises:
        BadFile: it is not as it was exported; one line, fit to show.
    """

    def check() -> LogFile:
        log = ExportedLog(lines_of(file))
        for block in log.blocks():
            progress(block.last, log.head.position)
        return _described(log, sum(1 for _ in log.personal_keys()))

    return await asyncio.to_thread(check)


async def import_file(
    settings: Settings, file: BufferedReader, *, with_keys: bool | None, progress: Progress
) -> LogFile:
    """Write a file's log into an empty store, which is made if there is none; or go on with that.

    Args:
        with_keys: take its personal keys, or leave them; None: there are none.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, WrongMasterKey: one line each; nothing is written.
        BadFile: it is not as it was exported; what is written of it is verified, and the same import of a sound copy
            goes on behind it.
        psycopg.Error: of the database; as above.
    """
    log = await asyncio.to_thread(ExportedLog, lines_of(file))
    if with_keys is None and log.head.root_secret is not None:
        raise CannotStart("This file holds personal keys; say --with-keys to take them, --without-keys to leave them.")
    if with_keys and log.head.root_secret is None:
        raise CannotStart("This file holds no personal keys; they are exported with --with-keys only.")
    async with AsyncExitStack() as stack:
        database = await open_database(settings, stack)
        master_key = database.master_keys if with_keys else None
        async with first_connection(database.dsn) as connection:
            await create_schema(connection)
            if master_key is not None:
                await _stated(check_root_secret(connection, log, master_key))
        connection = await connect(database.dsn, name="import", statement_timeout=_PATIENCE)
        await stack.enter_async_context(closing(connection))
        since = await _stated(begin_import(connection))
        await _stated(import_events(connection, log, on_events=lambda position: progress(position, log.head.position)))
        keys = await _stated(end_import(connection, log, master_key=master_key))
    return _described(log, keys, resumed_at=since or None)


async def _stated(work: Awaitable[T]) -> T:
    """The same, with what is in the way in one line.

    Raises:
        CannotStart, BadFile: that line.
    """
    try:
        return await work
    except CannotImport as error:
        raise CannotStart(str(error)) from None
    except psycopg.errors.DiskFull as error:
        raise CannotStart(
            f"The database's disk is full ({first_line(error)}); make room, then import again: it goes on."
        ) from None
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        raise BadFile(f"its events do not fit together ({first_line(error)})") from None


def _described(log: ExportedLog, keys: int, *, resumed_at: Position | None = None) -> LogFile:
    unknown = tuple(sorted(log.types - event_classes().keys()))
    return LogFile(log.head.release, log.position, log.hash.hex(), keys, unknown, resumed_at)
