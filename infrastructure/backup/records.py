"""What the database knows of its backups: the last one, the last drill that was passed, and restores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from domain.recorded import Position
from infrastructure.postgres.connection import Connection

Kind = Literal["backup", "drill"]


@dataclass(frozen=True, slots=True)
class Noted:
    """The last of its kind.

    Attributes:
        age: in seconds, by the database's clock.
    """

    directory: Path
    position: Position
    done_at: datetime
    age: float


async def note(connection: Connection, kind: Kind, directory: Path, position: Position) -> None:
    """Note that a backup was taken, or a drill passed."""
    await connection.execute(
        "INSERT INTO public.backups (kind, directory, position) VALUES (%s, %s, %s) ON CONFLICT (kind) DO UPDATE"
        " SET directory = excluded.directory, position = excluded.position, done_at = clock_timestamp()",
        (kind, str(directory), position),
    )


async def noted(connection: Connection) -> dict[Kind, Noted]:
    """The last of each kind, if there is one."""
    cursor = await connection.execute(
        "SELECT kind, directory, position, done_at,"
        " greatest(0, extract(epoch FROM clock_timestamp() - done_at))::double precision FROM public.backups"
    )
    return {kind: Noted(Path(path), *more) for kind, path, *more in await cursor.fetchall()}


async def note_restore(connection: Connection, position: Position, *, settled: bool) -> None:
    """Note that this database has come out of a backup and ends at a position, so that erasures since are repeated.

    Without effect on a database of a release before that table.

    Args:
        settled: nothing has to be known of erasures since.
    """
    row = await (await connection.execute("SELECT to_regclass('public.restores') IS NULL")).fetchone()
    if row is not None and not row[0]:
        await connection.execute(
            "INSERT INTO public.restores (position, settled_at) VALUES (%s, CASE WHEN %s THEN clock_timestamp() END)",
            (position, settled),
        )
