"""Which release decides for the mail saga, and since when: what a release gate looks back to."""

from __future__ import annotations

from domain.recorded import Position
from infrastructure.postgres.connection import Connection

_NOTE = """
    INSERT INTO public.saga_releases (release, since)
    SELECT %(release)s, %(since)s
    WHERE %(release)s IS DISTINCT FROM (SELECT r.release FROM public.saga_releases AS r ORDER BY r.id DESC LIMIT 1)
"""

_SINCE = "SELECT release, since FROM public.saga_releases ORDER BY id DESC LIMIT 1"


async def note_release(connection: Connection, release: str, since: Position) -> None:
    """This release decides on what comes after a position, unless it was the one that did so before."""
    await connection.execute(_NOTE, {"release": release, "since": since})


async def deciding_release(connection: Connection) -> tuple[str, Position] | None:
    """The release that decided last, and the position after which it began; None if none has been noted."""
    row = await (await connection.execute(_SINCE)).fetchone()
    return None if row is None else (row[0], row[1])
