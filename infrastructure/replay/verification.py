"""Verifies live read models: each compared with a fresh fold of the log, row by row, at one position."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog
from infrastructure.postgres.connection import Connection
from infrastructure.replay.alignment import agreed
from infrastructure.replay.claim import claimed
from infrastructure.replay.comparison import Differences, live_position
from infrastructure.replay.copies import Copy, Filling, MakesProjection, fill_together
from infrastructure.replay.progress import Doing, Watch, nobody_watches
from infrastructure.replay.sessions import replaying
from infrastructure.replay.swap import CannotReplay
from infrastructure.replay.verified import note_verified


@dataclass(frozen=True, slots=True)
class _Check:
    """A read model, and where it is."""

    make: MakesProjection
    name: str
    schema: str
    upto: Position
    parked: set[Position]

    def copy(self) -> Copy:
        return Copy(self.make, "check")

    def filling(self, session: Connection, upto: Position) -> Filling:
        """Of a copy that this object and no other has filled."""
        return Filling(self.copy(), session, upto, without=self.parked, twice=True)


async def verify(dsn: str, make: MakesProjection, *, log: ReadsLog, watch: Watch = nobody_watches) -> Differences:
    """`verify_all` of one."""
    [found] = await verify_all(dsn, [make], log=log, watch=watch)
    return found


async def verify_all(
    dsn: str, makes: Sequence[MakesProjection], *, log: ReadsLog, watch: Watch = nobody_watches
) -> list[Differences]:
    """Compare read models with what the log says, leaving out the events that they have parked. The log is read once
    for all of them.

    It is folded in two halves, each by sessions and objects of their own. The first batch of each is told twice, the
    second time as by a projector that another one has overtaken: the database has to refuse its position, and undo what
    the fold did. A fold that keeps something between two batches shows as a difference.

    Raises:
        ToldTwice: nothing has refused a batch the second time.
        CannotReplay: it cannot be done; one line.
        Unavailable, psycopg.Error: the database is away.
    """
    async with claimed(dsn, name="verify") as connection, AsyncExitStack() as stack:
        checks = [await _check(connection, make) for make in makes]
        for one in checks:
            await stack.enter_async_context(one.copy().only_within(dsn, connection))
        async with _sessions(dsn, checks) as sessions:
            halves = [one.filling(session, one.upto // 2) for one, session in zip(checks, sessions, strict=True)]
            for half in halves:
                async with half.connection.transaction():
                    await half.copy.make(half.connection)
            await _fold(log, halves, watch)
        async with _sessions(dsn, checks) as sessions:
            wholes = [one.filling(session, one.upto) for one, session in zip(checks, sessions, strict=True)]
            await _fold(log, wholes, watch)
            return [await _compared(dsn, log, *pair, watch) for pair in zip(checks, wholes, strict=True)]


async def _check(connection: Connection, make: MakesProjection) -> _Check:
    live = make()
    parked = await parked_positions(connection, live.name)
    return _Check(make, live.name, live.schema, await live_position(connection, live.name), parked)


@asynccontextmanager
async def _sessions(dsn: str, checks: Sequence[_Check]) -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(replaying(dsn, name=f"verify {one.name}")) for one in checks]


async def _fold(log: ReadsLog, fillings: Sequence[Filling], watch: Watch) -> None:
    names, upto = ", ".join(one.copy.of for one in fillings), max(one.upto for one in fillings)

    async def told(reached: Position) -> None:
        watch(Doing(names, "filling", reached, upto))

    await fill_together(log, fillings, told=told)


async def _compared(dsn: str, log: ReadsLog, check: _Check, filling: Filling, watch: Watch) -> Differences:
    connection = filling.connection
    watch(Doing(check.name, "comparing"))
    found = await agreed(dsn, connection, log, filling.copy, check.name, check.schema, without=check.parked)
    if found.count and check.parked != await parked_positions(connection, check.name):
        raise CannotReplay(f"The parked streams of {check.name} have changed meanwhile; verify it again.")
    await note_verified(connection, check.name, found)
    return found


async def parked_positions(connection: Connection, name: str) -> set[Position]:
    """Of the events that a follower has put aside."""
    cursor = await connection.execute("SELECT position FROM public.parked_events WHERE follower = %s", (name,))
    return {position for (position,) in await cursor.fetchall()}
