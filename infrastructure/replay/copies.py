"""A copy of a read model beside the live one: made, filled from the log, and given the indexes of the live one."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import psycopg
from psycopg import sql

from application.crash_points import crash_point
from domain.recorded import Position, Told
from infrastructure.event_store.batch import Batch, Unreadable, stream_of
from infrastructure.event_store.reader import ReadsLog
from infrastructure.followers.leadership import NotLeader
from infrastructure.followers.parked import BEHIND, ParkedStreams, place_of
from infrastructure.followers.positions import position_of, save_position
from infrastructure.followers.projector import Projection, is_event_error, move_on, read_scripts
from infrastructure.postgres.connection import Connection, pipeline
from infrastructure.postgres.schema import execute
from infrastructure.replay.comparison import shapes
from infrastructure.replay.reading import batches
from infrastructure.replay.sessions import replaying
from infrastructure.replay.traffic import Traffic

BATCH_EVENTS: Final = 2_000
"""Maximum number of events per transaction. Most rows are born in the batch in which they change, and are written once;
more events take memory and no less time (our measurement)."""

BATCH_BESIDE_OTHERS: Final = 1_000
"""The same while others append to the log."""

_RELEASE: Final = version("registrar")

MakesProjection = Callable[..., Projection]
"""A read model's class: called without an argument, the live one; with the name of a schema, a copy there."""

_INDEXES = """
    SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
    WHERE c.relnamespace = %s::regnamespace
        AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = i.indexrelid)
    ORDER BY 1
"""


async def schema_exists(connection: Connection, name: str) -> bool:
    row = await (await connection.execute("SELECT to_regnamespace(%s) IS NOT NULL", (name,))).fetchone()
    return row is not None and bool(row[0])


async def nothing_told(_: Position) -> None:
    """For who does not want to know how far a fill is."""


class ToldTwice(Exception):
    """Nothing has refused events that a read model was told before; one line."""


class Copy:
    """A read model in a schema of its own. Its position and its parked streams are kept as those of a follower.

    Attributes:
        name: as a follower: "registrations__next".
        of: the live read model's name.
        topics: of the events that it is made of; None: of all.
        metadata: see `Projection`.
    """

    def __init__(self, make: MakesProjection, kind: str) -> None:
        """
        Args:
            kind: what the names of schema and follower end with.
        """
        live = make()
        self.of = live.name
        self.name = f"{live.name}__{kind}"
        self.schema = f"{live.schema}__{kind}"
        self._projection = make(self.schema)
        topics = self._projection.topics
        self.topics = None if topics is None else frozenset(topics)
        self.metadata = self._projection.metadata

    # --- Its tables ---------------------------------------------------------------------------

    async def exists(self, connection: Connection) -> bool:
        return await schema_exists(connection, self.schema)

    async def make(self, connection: Connection) -> list[str]:
        """Make its empty tables, within the caller's transaction; returns the statements that make the indexes which it
        does without until it is filled."""
        await self.drop(connection)
        for script in read_scripts(self._projection):
            await execute(connection, script)
        found = await (await connection.execute(_INDEXES, (self.schema,))).fetchall()
        for name, _ in found:
            await connection.execute(sql.SQL("DROP INDEX {}").format(sql.SQL(name)))
        await connection.execute("INSERT INTO public.followers (name) VALUES (%s)", (self.name,))
        return [definition for _, definition in found]

    async def drop(self, connection: Connection) -> None:
        """Remove all of it, if there is anything."""
        async with connection.transaction():
            await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self.schema)))
            await connection.execute("DELETE FROM public.followers WHERE name = %s", (self.name,))
            await connection.execute("DELETE FROM public.parked_events WHERE follower = %s", (self.name,))

    async def drop_if_unused(self, connection: Connection) -> None:
        """`drop` it, or leave that to the next command that needs its name: somebody may still read it."""
        with suppress(psycopg.Error):
            await self.drop(connection)

    @asynccontextmanager
    async def only_within(self, dsn: str, connection: Connection, *, keep: bool = False) -> AsyncIterator[None]:
        """Nothing of it is there after the block, whatever ends that, but a kill or the database going away: then the
        next one of its name begins by dropping it.

        Args:
            keep: it stays if the block is not ended by an error.
        """
        try:
            yield
            if not keep:
                await self.drop(connection)
        except BaseException:
            with suppress(psycopg.Error, OSError):
                async with replaying(dsn, name=f"drop {self.name}") as other:
                    await connection.close()  # it may be in the middle of a statement, and holds locks
                    await self.drop(other)
            raise

    async def analyze(self, connection: Connection) -> None:
        """Have the planner know the tables before anybody asks them."""
        for table in await shapes(connection, self.schema):
            await connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(self.schema, table)))

    def fold(self) -> str:
        """A digest of what makes and fills it, as far as one release and one module differ from others."""
        parts = [_RELEASE, inspect.getsource(sys.modules[type(self._projection).__module__])]
        parts += [script.text for script in read_scripts(self._projection)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    # --- Its rows -----------------------------------------------------------------------------

    async def position(self, connection: Connection) -> Position:
        return await position_of(connection, self.name)

    async def fill(
        self,
        connection: Connection,
        log: ReadsLog,
        upto: Position,
        *,
        limit: int = BATCH_EVENTS,
        without: Collection[Position] = (),
        told: Callable[[Position], Awaitable[None]] = nothing_told,
        twice: bool = False,
    ) -> None:
        """`fill_together` of it alone."""
        await fill_together(log, [Filling(self, connection, upto, without, twice)], limit=limit, told=told)

    async def begin(self, connection: Connection, log: ReadsLog) -> Position:
        """Make a session ready to write it; returns where it is."""
        into = sql.SQL("SET search_path = {}, public").format(sql.Identifier(self.schema))
        await connection.execute(into)
        since = await self.position(connection)
        self._told_again = False
        self._parked = ParkedStreams(self.name, log)
        await self._parked.load(connection, since)
        return since

    async def take(self, connection: Connection, batch: Batch, *, twice: bool) -> None:
        """Apply a batch that begins where it is; see `Filling`."""
        await self._advance(connection, batch)
        if twice and batch.events and not self._told_again:
            await self._tell_again(connection, batch)
            self._told_again = True

    async def _advance(self, connection: Connection, batch: Batch) -> None:
        """Apply a batch; of what cannot be applied, park the streams."""
        try:
            await self._tell(connection, batch)
        except Exception as error:
            if not is_event_error(error):
                raise
            if len(batch.events) == 1:
                await self._park(connection, batch, error)
            else:  # in halves, until it is alone
                middle = len(batch.events) // 2
                upto = batch.events[middle - 1].position
                await self._advance(connection, Batch(batch.events[:middle], batch.since, upto, batch.sound))
                await self._advance(connection, Batch(batch.events[middle:], upto, batch.upto, batch.sound))

    async def _tell(self, connection: Connection, batch: Batch) -> None:
        """Move on from where the batch begins, and apply its events, in one transaction.

        Raises:
            NotLeader: it is not there; these events were told before.
        """
        async with connection.transaction():
            await save_position(connection, self.name, batch.since, batch.upto)
            events = await self._not_parked(connection, batch)
            if events:
                async with pipeline(connection):
                    await self._projection.apply(connection, events)
            crash_point("rebuild.mid_batch")

    async def _not_parked(self, connection: Connection, batch: Batch) -> Sequence[Told]:
        if batch.sound and not len(self._parked):
            return batch.readable()
        events: list[Told] = []
        for one in batch.events:
            stream_id = stream_of(one)
            if stream_id in self._parked:
                await self._parked.add(connection, stream_id, one.position, BEHIND)
            elif isinstance(one, Unreadable):
                raise one.error
            else:
                events.append(one)
        return events

    async def _park(self, connection: Connection, batch: Batch, error: Exception) -> None:
        [one] = batch.events
        async with connection.transaction():
            await save_position(connection, self.name, batch.since, batch.upto)
            await self._parked.add(connection, stream_of(one), one.position, type(error).__name__, place_of(error))

    async def _tell_again(self, connection: Connection, batch: Batch) -> None:
        """As a projector tells events that another one has applied: it is refused, or the fold cannot take them."""

        async def apply() -> None:
            events = await self._not_parked(connection, batch)
            if events:
                await self._projection.apply(connection, events)

        try:
            async with connection.transaction(force_rollback=True):
                await move_on(connection, self.name, batch.since, batch.upto, apply)
        except Exception as error:
            if not (isinstance(error, NotLeader) or is_event_error(error)):
                raise
        else:
            raise ToldTwice(
                f"{self.of} would take events twice: the database has not refused those after {batch.since} when they "
                "were told again; is its function move_on_v2 that of this release?"
            )


# --- Several in one pass ------------------------------------------------------------------------


@dataclass(slots=True)
class Filling:
    """A copy, and what it is to be told.

    Attributes:
        connection: the session that writes it.
        upto: the position up to which it is told.
        without: positions of events to leave out.
        twice: tell it the first batch once more, as a projector does, which must have no effect. Not each batch: that
            takes half as long again (our measurement), and it is the same guard that refuses them.
    """

    copy: Copy
    connection: Connection
    upto: Position
    without: Collection[Position] = ()
    twice: bool = False

    def part_of(self, batch: Batch, since: Position, *, whole: bool) -> Batch:
        """What of a batch concerns this copy, which is at `since`.

        Args:
            whole: no topic is in it that others alone are made of.
        """
        upto = min(batch.upto, self.upto)
        events = batch.events
        if since > batch.since or upto < batch.upto or self.without:
            without = self.without
            events = [one for one in events if since < one.position <= upto and one.position not in without]
        if not whole and (topics := self.copy.topics) is not None:
            events = [one for one in events if one.topic in topics]
        return Batch(events, max(batch.since, since), upto, batch.sound)


async def fill_together(
    log: ReadsLog,
    fillings: Sequence[Filling],
    *,
    limit: int = BATCH_EVENTS,
    told: Callable[[Position], Awaitable[None]] = nothing_told,
) -> None:
    """Apply the events to each of some copies, from where it is and up to a position: the log is read once, and each
    copy has a session and transactions of its own.

    All copies are written at the same time, unless others append to the log meanwhile: then one after the other, and
    in smaller transactions, so that no more than one processor of the server is taken, and not for long. What is a
    batch in all is written at once, as readers or a projector may wait for it.

    Args:
        limit: maximum number of events in a transaction.
        told: called after each batch with the position reached.

    Raises:
        ToldTwice: what was told twice would have had an effect twice; it had none.
        Unavailable, UnreadableLog, psycopg.Error: they stay where they are.
    """
    at = {one.copy.name: await one.copy.begin(one.connection, log) for one in fillings}
    topics = _all_topics([one.copy for one in fillings])

    async def take(one: Filling, batch: Batch) -> None:
        since = at[one.copy.name]
        if since < min(batch.upto, one.upto):
            part = one.part_of(batch, since, whole=len(fillings) == 1)
            await one.copy.take(one.connection, part, twice=one.twice)
            at[one.copy.name] = part.upto

    since, upto = min(at.values()), max(one.upto for one in fillings)
    traffic = Traffic()
    metadata = any(one.copy.metadata for one in fillings)
    async for batch in batches(log, since, upto, topics=topics, limit=limit, metadata=metadata):
        if upto - since > limit and await traffic.is_much(fillings[0].connection):
            for part in batch.in_parts(BATCH_BESIDE_OTHERS):
                for one in fillings:
                    await take(one, part)
        else:
            outcomes = await asyncio.gather(*(take(one, batch) for one in fillings), return_exceptions=True)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
        crash_point("rebuild.after_batch")
        await told(batch.upto)


def _all_topics(copies: Sequence[Copy]) -> Sequence[str] | None:
    topics: dict[str, None] = {}
    for copy in copies:
        if copy.topics is None:
            return None
        topics |= dict.fromkeys(copy.topics)
    return list(topics)
