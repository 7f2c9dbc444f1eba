"""Keeps read models in step with the log: a batch and its position in one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import psycopg
import structlog
from psycopg import sql

from application.crash_points import crash_point
from domain.recorded import Position, Recorded, Told
from infrastructure.event_store.batch import Unreadable, stream_of
from infrastructure.event_store.reader import ReadsLog
from infrastructure.followers.follow import Chore, Linger, follow, keep_leadership
from infrastructure.followers.leadership import NotLeader
from infrastructure.followers.parked import ATTEMPTS_BEFORE_PARKING, BEHIND, ParkedStreams, place_of
from infrastructure.followers.positions import position_of, save_position
from infrastructure.postgres.connection import AWAY, Connection, pipeline
from infrastructure.postgres.notifications import Notifications
from infrastructure.postgres.schema import Script, numbered

log = structlog.get_logger(__name__)

BATCH_EVENTS = 1000
"""Maximum number of events per transaction: 40 times the throughput of one event each (docs/library-notes.md)."""

REST_FACTOR = 4
"""A projector at the end of the log writes for a quarter of the time at most: on a busy machine batches grow, and fewer
of them write the same rows."""

MAX_REST = timedelta(seconds=1)
"""However long a batch took: one that a stopped database held up says nothing about the next, and a leader whose
session is silent for long is deposed (`LEASE_MARGIN`)."""

LEFT_FOR = timedelta(milliseconds=50)
"""How long a read model that clients wait for leaves what no request recorded: the outcome of a mail, and what the saga
notes. So it has one batch for most registrations, and time for the next one as soon as that is recorded."""

_POSITION_MOVED = "RGLST"
"""SQLSTATE of `move_on_v2` for a follower that another process has moved."""


class Projection(Protocol):
    """A read model's tables and fold (`projections/`).

    Attributes:
        schema: where the tables are, for writing and reading; a copy beside the live one has another.
        tables: SQL scripts that create them, or change them in later releases, in order; each runs once
            (`postgres.schema`).
        metadata: whether the fold looks at more of a `Recorded` than of a `Placed`; if not, it is told either.
    """

    name: str
    schema: str
    topics: tuple[str, ...] | None
    tables: tuple[str, ...]
    metadata: bool

    async def apply(self, connection: Connection, events: Sequence[Any]) -> None: ...


def read_scripts(projection: Projection) -> tuple[Script, ...]:
    """The scripts that create the tables of a read model."""
    return numbered(projection.schema, projection.tables, schema=projection.schema)


class Projector:
    """Keeps one read model in step with the log: a batch and its position in one transaction."""

    def __init__(
        self,
        projection: Projection,
        *,
        store: ReadsLog,
        notifications: Notifications,
        pace: timedelta = timedelta(0),
        announced: bool = False,
    ) -> None:
        """
        Args:
            pace: minimum time between the starts of two batches (see also `REST_FACTOR`): few large transactions are
                cheaper than many small ones. An event after a quiet time is applied at once.
            announced: clients of other processes wait for this read model to show what they have just requested: its
                progress is announced to them, and what nobody requested is left for a while (`LEFT_FOR`).
        """
        self.name = projection.name
        self._projection = projection
        self._store = store
        self._notifications = notifications
        self._pace = pace
        self._announced = announced
        self._parked = ParkedStreams(projection.name, store)

    async def work(self, connection: Connection) -> None:
        """Follow until cancelled; see `LeaderTask`."""
        schema = sql.Identifier(self._projection.schema)
        await connection.execute(sql.SQL("SET search_path = {}, public").format(schema))
        # A read model can be rebuilt: losing its last moments in a crash of the server costs nothing.
        await connection.execute("SET synchronous_commit = off")
        position = await position_of(connection, self.name)
        await self._parked.load(connection, position)
        await follow(
            position,
            read=self._read,
            act=partial(self._advance, connection),
            wake=self._notifications,
            rest=partial(rest_after, pace=self._pace),
            linger=Linger(LEFT_FOR, _was_requested) if self._announced else None,
            read_ahead_of=BATCH_EVENTS,
            chores=[
                Chore(partial(self._retry_parked, connection)),
                keep_leadership(connection),
            ],
        )

    async def _read(self, position: Position) -> tuple[Sequence[_Entry], Position]:
        wanted = self._projection
        stretch = await self._store.stretch(position, BATCH_EVENTS, wanted.topics, metadata=wanted.metadata)
        return stretch.decoded().events, stretch.upto

    async def _advance(
        self, connection: Connection, entries: Sequence[_Entry], position: Position, seen: Position
    ) -> None:
        for attempt in range(ATTEMPTS_BEFORE_PARKING):
            try:
                await self._move_on(connection, entries, position, seen)
                self._notifications.note_position(self.name, seen)
                return
            except Exception as error:
                if not is_event_error(error):
                    raise
                if await position_of(connection, self.name) != position:  # these events are in the tables by now
                    raise NotLeader(self.name) from None
                log.warning(
                    "follower.batch_failed", follower=self.name, attempt=attempt + 1, error=type(error).__name__
                )
        await self._advance_one_by_one(connection, entries, position, seen)

    async def _move_on(
        self, connection: Connection, entries: Sequence[_Entry], position: Position, seen: Position
    ) -> None:
        async def apply() -> None:
            await self._apply(connection, entries)
            crash_point("projector.mid")

        await move_on(connection, self.name, position, seen, apply, announced=self._announced)

    async def _apply(self, connection: Connection, entries: Sequence[_Entry]) -> None:
        events = []
        some_are_parked = len(self._parked) > 0
        for entry in entries:
            if some_are_parked and stream_of(entry) in self._parked:
                await self._parked.add(connection, stream_of(entry), entry.position, BEHIND)
            elif isinstance(entry, Unreadable):
                raise entry.error
            else:
                events.append(entry)
        if events:
            await self._projection.apply(connection, events)

    async def _retry_parked(self, connection: Connection) -> timedelta | None:
        """Apply the events of a parked stream, all of them or none; the next stream follows after the next batch."""
        parked = await self._parked.next_to_try(connection, may_be_others=True)
        if parked is None:
            return self._parked.look_in
        position = parked.positions[0]
        try:
            async with connection.transaction():
                # A swap under way is waited for, another one waits: the tables may contain these events by then.
                await position_of(connection, self.name)
                for position in await self._parked.positions(connection, parked.stream_id):
                    rows, _ = await self._store.read(position - 1, 1)
                    await self._projection.apply(connection, [self._store.decode(row) for row in rows])
                await self._parked.remove(connection, parked.stream_id)
        except Exception as error:
            if not is_event_error(error):
                raise
            await self._parked.failed(connection, parked.stream_id, position, error)
        else:
            self._parked.forget(parked.stream_id)
        return timedelta(0)

    async def _advance_one_by_one(
        self, connection: Connection, entries: Sequence[_Entry], position: Position, seen: Position
    ) -> None:
        """Find what cannot be applied and park its stream, while the others go on."""
        for entry in entries:
            async with connection.transaction():
                await _apply_or_park(connection, entry, self._parked, partial(self._apply, connection, [entry]))
                await save_position(connection, self.name, position, entry.position)
            position = entry.position
        await self._move_on(connection, (), position, seen)
        self._notifications.note_position(self.name, seen)


async def move_on(
    connection: Connection,
    name: str,
    since: Position,
    upto: Position,
    apply: Callable[[], Awaitable[None]],
    *,
    announced: bool = False,
) -> None:
    """Apply events and save the position in one transaction, sent without waiting for each statement.

    Raises:
        NotLeader: the follower is not at `since`; nothing was applied.
    """
    try:
        async with pipeline(connection), connection.transaction():
            await apply()
            await connection.execute("SELECT move_on_v2(%s, %s, %s, %s)", (name, since, upto, announced))
    except psycopg.Error as error:
        if error.sqlstate == _POSITION_MOVED:
            raise NotLeader(name) from None
        raise


def _was_requested(entry: _Entry) -> bool:
    """Was it recorded by a request, whose client knows its position, and not because of an earlier event?"""
    return not isinstance(entry, Recorded) or entry.causation_position is None


def rest_after(took: timedelta, pace: timedelta) -> timedelta:
    """How long to rest after a batch that took that long, with at least `pace` between the starts of two."""
    return max(timedelta(0), pace - took, min((REST_FACTOR - 1) * took, MAX_REST))


_Entry = Told | Unreadable


def is_event_error(error: Exception) -> bool:
    """Is it this event that cannot be applied, or would any other fail as well (a missing table, a database that is
    away or read-only)? Only the former is parked: the latter would park every stream."""
    if isinstance(error, (NotLeader, *AWAY)):
        return False
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate[:2] in {"21", "22", "23"}  # cardinality, data, integrity
    return True


async def _apply_or_park(
    connection: Connection, entry: _Entry, parked: ParkedStreams, apply: Callable[[], Awaitable[Any]]
) -> None:
    try:
        async with connection.transaction():
            await apply()
    except Exception as error:
        if not is_event_error(error):
            raise
        log.error(  # noqa: TRY400 - the trace could carry values
            "follower.parked",
            stream_id=str(stream_of(entry)),
            position=entry.position,
            topic=entry.topic,
            error=type(error).__name__,
            hint="the stream waits in parked_events; the others go on",
        )
        await parked.add(connection, stream_of(entry), entry.position, type(error).__name__, place_of(error))
