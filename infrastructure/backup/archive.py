"""The archive of the write-ahead log: switched on for a running server, and read when it is restored.

The server runs a line of shell for each segment, as its own user. The archive must not stop the service: while it is
away, segments wait, `MAY_WAIT` of them at most, and beyond that they are dropped. That leaves a gap in the archive:
from there on only a new backup helps, and `backup --drill` says so.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from infrastructure.embedded.system_user import let_traverse
from infrastructure.postgres.connection import Connection

MAY_WAIT: Final = 64
"""Segments of 16 MiB: 1 GiB, for which `doctor` wants room."""

AT_LEAST_EVERY: Final = "1min"
"""A segment is archived, however little was recorded meanwhile: what a lost disk costs."""

SETTINGS: Final = ("archive_command", "archive_timeout")
"""What `turn_on` sets; a restored database must not have it."""


def archive_command(archive: Path, *, may_wait: int = MAY_WAIT) -> str:
    """The shell's line that archives a segment: whole or not at all, and on disk."""
    to = shlex.quote(str(archive)).replace("%", "%%")
    return (
        f"if test -d {to} && gzip -1 <%p >{to}/.%f && sync {to}/.%f && mv -f {to}/.%f {to}/%f.gz && sync {to}; then exit 0; fi; "
        f"test $(ls pg_wal/archive_status | grep -c '[.]ready$') -gt {may_wait}"
    )


def restore_command(archives: Sequence[Path]) -> str:
    """The shell's line that fetches a segment. One that is there and cannot be read ends the recovery (126), where one
    that is missing ends the log."""
    to = " ".join(shlex.quote(str(one)).replace("%", "%%") for one in archives)
    return (
        f'for d in {to}; do if test -f "$d"/%f.gz; then gzip -dc <"$d"/%f.gz >%p || exit 126; exit 0; fi; done; exit 1'
    )


def make_archive(archive: Path, owner: tuple[int, int] | None) -> None:
    """A directory that the server's user may write to, and nobody else.

    Args:
        owner: user and group of the server, None for our own.
    """
    archive.mkdir(mode=0o700)
    if owner is not None:
        os.chown(archive, *owner)
        let_traverse(archive, owner)


async def turn_on(connection: Connection, archive: Path) -> bool:
    """Have a running server archive to a directory from now on; is it able to, before its next start?

    Raises:
        psycopg.Error: this role may not, or the database is away.
    """
    for name, value in zip(SETTINGS, (archive_command(archive), AT_LEAST_EVERY), strict=True):
        statement = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
        await connection.execute(statement)
    await connection.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(10):
        # (The server does not tell when it has read its settings.)
        while await _shown(connection, "archive_command") != archive_command(archive):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return await _shown(connection, "archive_mode") != "off"


async def _shown(connection: Connection, name: str) -> str:
    row = await (await connection.execute("SELECT current_setting(%s)", (name,))).fetchone()
    return "" if row is None else str(row[0])


@dataclass(frozen=True, slots=True)
class Archiving:
    """How a server archives.

    Attributes:
        fails_since: of the last failure, if nothing was archived after it.
    """

    mode: str
    level: str
    command: str
    library: str
    fails_since: datetime | None

    @property
    def to_nowhere(self) -> bool:
        """Is each segment dropped, or kept for ever?"""
        return not self.library and self.command.strip() in {"", ":", "true", "/bin/true", "(disabled)"}


async def archiving(connection: Connection) -> Archiving:
    """
    Raises:
        psycopg.Error: the database is away.
    """
    try:
        library = await _shown(connection, "archive_library")
    except psycopg.errors.UndefinedObject:  # before PostgreSQL 15
        library = ""
    row = await (
        await connection.execute(
            "SELECT last_failed_time FROM pg_stat_archiver WHERE last_failed_time > coalesce(last_archived_time,"
            " '-infinity')"
        )
    ).fetchone()
    mode, level, command = [await _shown(connection, name) for name in ("archive_mode", "wal_level", "archive_command")]
    return Archiving(mode, level, command, library, None if row is None else row[0])
