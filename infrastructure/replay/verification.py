"""Verifies a live read model: compared with a fresh fold of the log, row by row, at one position."""

from __future__ import annotations

from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog
from infrastructure.postgres.connection import Connection
from infrastructure.replay.alignment import agreed
from infrastructure.replay.claim import claimed
from infrastructure.replay.comparison import Differences, live_position
from infrastructure.replay.copies import Copy, MakesProjection
from infrastructure.replay.progress import Doing, Watch, nobody_watches
from infrastructure.replay.sessions import replaying
from infrastructure.replay.swap import CannotReplay
from infrastructure.replay.verified import note_verified


async def verify(dsn: str, make: MakesProjection, *, log: ReadsLog, watch: Watch = nobody_watches) -> Differences:
    """Compare a read model with what the log says, leaving out the events that it has parked.

    The log is folded in two halves, each by a session and an object of its own, and every event is told twice: a fold
    that keeps something between two batches, or takes an event twice, shows as a difference.

    Raises:
        ToldTwice: the fold took events twice.
        CannotReplay: it cannot be done; one line.
        Unavailable, psycopg.Error: the database is away.
    """
    live = make()
    async with claimed(dsn, name=f"verify {live.name}") as connection:
        parked = await parked_positions(connection, live.name)
        upto = await live_position(connection, live.name)

        async def told(reached: Position) -> None:
            watch(Doing(live.name, "filling", reached, upto))

        first, second = Copy(make, "check"), Copy(make, "check")
        async with second.only_within(dsn, connection):
            async with connection.transaction():
                await first.make(connection)
            await first.fill(connection, log, upto // 2, without=parked, told=told, twice=True)
            async with replaying(dsn, name=f"verify {live.name}") as other:
                await second.fill(other, log, upto, without=parked, told=told, twice=True)
                watch(Doing(live.name, "comparing"))
                found = await agreed(dsn, other, log, second, live.name, live.schema, without=parked)
        if found.count and parked != await parked_positions(connection, live.name):
            raise CannotReplay(f"The parked streams of {live.name} have changed meanwhile; verify it again.")
        await note_verified(connection, live.name, found)
        return found


async def parked_positions(connection: Connection, name: str) -> set[Position]:
    """Of the events that a follower has put aside."""
    cursor = await connection.execute("SELECT position FROM public.parked_events WHERE follower = %s", (name,))
    return {position for (position,) in await cursor.fetchall()}
