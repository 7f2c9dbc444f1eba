"""How far each follower has come, saved with what it did."""

from __future__ import annotations

from domain.recorded import Position
from infrastructure.followers.leadership import LostLeadership
from infrastructure.postgres.connection import Connection


async def position_of(connection: Connection, name: str) -> Position:
    """Where the follower is; its row is made if it is new."""
    await connection.execute("INSERT INTO followers (name) VALUES (%s) ON CONFLICT DO NOTHING", (name,))
    row = await (await connection.execute("SELECT position FROM followers WHERE name = %s", (name,))).fetchone()
    assert row is not None  # noqa: S101 - inserted above
    position: Position = row[0]
    return position


async def save_position(connection: Connection, name: str, since: Position, to: Position) -> None:
    """Move the follower on.

    Raises:
        LostLeadership: it is not where we left it.
    """
    if (await connection.execute(_MOVE, (to, name, since))).rowcount != 1:
        raise LostLeadership(name)


_MOVE = "UPDATE followers SET position = %s, updated_at = clock_timestamp() WHERE name = %s AND position = %s"
