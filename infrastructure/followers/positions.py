"""How far each follower has come, saved together with what it did."""

from __future__ import annotations

from domain.recorded import Position
from infrastructure.followers.leadership import NotLeader
from infrastructure.postgres.connection import Connection


async def position_of(connection: Connection, name: str) -> Position:
    """Return the follower's position; a new follower's row is inserted. A swap of read models that is under way is
    waited for: what else the follower reads next is of the same side of it."""
    await connection.execute("INSERT INTO followers (name) VALUES (%s) ON CONFLICT DO NOTHING", (name,))
    row = await (
        await connection.execute("SELECT position FROM followers WHERE name = %s FOR UPDATE", (name,))
    ).fetchone()
    assert row is not None  # noqa: S101 - inserted above
    position: Position = row[0]
    return position


async def save_position(connection: Connection, name: str, since: Position, to: Position) -> None:
    """Advance the follower's position.

    Raises:
        NotLeader: another process has moved it.
    """
    if (await connection.execute(_MOVE, (to, name, since))).rowcount != 1:
        raise NotLeader(name)


_MOVE = "UPDATE followers SET position = %s, updated_at = clock_timestamp() WHERE name = %s AND position = %s"
