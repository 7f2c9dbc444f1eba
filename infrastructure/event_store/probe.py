"""Does the database accept appends?"""

from __future__ import annotations

from typing import Final

from infrastructure.postgres.connection import Connection

_LOCKS_OF_AN_APPEND: Final = """
    DO $$ BEGIN
        LOCK TABLE events, blocks IN ROW EXCLUSIVE MODE;
        PERFORM FROM head FOR UPDATE;
    END $$
"""


async def take_locks_of_an_append(connection: Connection) -> None:
    """Take the locks of an append, and commit: fails wherever an append would, also on a standby or a full disk."""
    await connection.execute(_LOCKS_OF_AN_APPEND)
