"""The event store: group commit into one PostgreSQL log, and reading back from it.

Positions are 1, 2, 3, … in commit order without gaps: a reader that saw N has seen everything up to N. The SQL side,
with the hash chain and what is committed together, is `log.sql`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from struct import Struct
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import structlog
from eventsourcing.persistence import StoredEvent

from application.ports import A, Conflict, Context, FollowerMoved, OtherKind, Unavailable, WrappedKey
from domain.recorded import AnyEvent, Position, Recorded
from infrastructure.event_store.codec import EventCodec
from infrastructure.postgres.batching import Batcher
from infrastructure.postgres.binary_arrays import Bigints, Byteas, Texts, Uuids
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection, Line
from infrastructure.postgres.schema import bring_up_to_date

log = structlog.get_logger(__name__)

MAX_BATCH_EVENTS = 1000
"""Events in one transaction; beyond it the commit's latency grows faster than its throughput."""

RESOLVE_WITHIN = timedelta(seconds=2)
"""How long an append whose answer was lost is looked up before its caller gets `Unavailable` (faults.md, B1)."""

_APPEND = """
    SELECT first_position, lost, now FROM append_batch(
        %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
"""

# The streams asked for, the claims, and the streams of the registrations that hold the claims now.
_LOAD = """
    SELECT e.originator_id, e.originator_version, e.topic, e.state, e.notification_id
    FROM (
        SELECT unnest(%(streams)b::uuid[]) AS id
        UNION SELECT unnest(%(claims)b::uuid[])
        UNION SELECT (convert_from(latest.state, 'UTF8')::jsonb ->> 'registration_id')::uuid
        FROM unnest(%(claims)b::uuid[]) AS claim (id)
        CROSS JOIN LATERAL (
            SELECT c.state FROM events AS c WHERE c.originator_id = claim.id
            ORDER BY c.originator_version DESC LIMIT 1
        ) AS latest
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT * FROM events AS s WHERE s.originator_id = wanted.id ORDER BY s.originator_version
    ) AS e
"""

_COLUMNS = """originator_id, originator_version, topic, state, notification_id, recorded_at, correlation_id,
           causation_position, actor, trace_context"""

_READ = f"""
    SELECT {_COLUMNS}
    FROM events WHERE notification_id > %(after)s AND notification_id <= %(upto)s ORDER BY notification_id
"""  # noqa: S608 - a constant

# The end of the log in the same statement, so of the same moment: between two, an event could be stepped over.
_READ_TOPICS = f"""
    SELECT h.position, e.*
    FROM head AS h
    LEFT JOIN (
        SELECT {_COLUMNS}
        FROM events WHERE notification_id > %(after)s AND notification_id <= %(upto)s AND topic = ANY(%(topics)s)
        ORDER BY notification_id LIMIT %(limit)s
    ) AS e ON true
    ORDER BY e.notification_id
"""  # noqa: S608 - a constant


_LOST = "a stream or follower has moved on"


class RecordedRow(NamedTuple):
    """An event as it stands in the log, not decoded."""

    stream_id: UUID
    version: int
    topic: str
    state: bytes
    position: Position
    recorded_at: datetime
    correlation_id: UUID
    causation_position: Position | None
    actor: str
    trace: str | None


@dataclass(frozen=True, slots=True)
class Append:
    """What is to be recorded whole or not at all.

    Attributes:
        digests: of the events; made with the append, while the batch before is still under way.
    """

    events: Sequence[StoredEvent]
    contexts: Sequence[Context]
    keys: Sequence[WrappedKey] = ()
    moved: FollowerMoved | None = None
    digests: Sequence[bytes] = field(init=False)

    def __post_init__(self) -> None:
        digests = [event_digest(event, context) for event, context in zip(self.events, self.contexts, strict=True)]
        object.__setattr__(self, "digests", digests)


class LoadedStreams:
    """Streams as read: rows by stream, turned into aggregates on demand. Belongs to one caller."""

    def __init__(self, codec: EventCodec, rows: dict[UUID, list[tuple[int, str, bytes, Position]]]) -> None:
        self._codec = codec
        self._rows = rows

    def get(self, kind: type[A], stream_id: UUID) -> A | None:
        """See `application.ports.Streams`."""
        aggregate: Any = None
        for version, topic, state, _ in self._rows.get(stream_id, ()):
            aggregate = self._codec.decode(stream_id, version, topic, state).mutate(aggregate)
        if aggregate is not None and not isinstance(aggregate, kind):
            raise OtherKind(stream_id, type(aggregate), kind)
        return aggregate

    def position(self, stream_id: UUID) -> Position:
        """Position of the stream's last event, 0 if it has none."""
        rows = self._rows.get(stream_id)
        return rows[-1][3] if rows else 0


class EventStore:
    """Appends and reads events. One writing and one reading connection; callers' work is gathered for each.

    Attributes:
        end_seen: the end of the log as the latest `read` found it.
    """

    def __init__(
        self,
        dsn: str,
        *,
        codec: EventCodec,
        clock: DatabaseClock,
        statement_timeout: timedelta = timedelta(seconds=10),
        max_waiting: int = 2000,
        pace: timedelta = timedelta(0),
        on_batch: Callable[[int], None] = lambda _: None,
        on_append: Callable[[float], None] = lambda _: None,
    ) -> None:
        """
        Args:
            max_waiting: appends that may wait for the next batch; beyond it callers get `Overloaded`.
            pace: of the batches of appends and loads; see `infrastructure.postgres.batching.Batcher`.
            on_batch: told the number of appends of every batch.
            on_append: told the seconds that every append took, its wait included.
        """
        self.end_seen: Position = 0
        self._on_append = on_append
        self._refused_at: float | None = None
        self._accepted_at: float | None = None
        self._codec = codec
        self._clock = clock
        self._writing = Line(dsn, name="append", statement_timeout=statement_timeout)
        self._reading = Line(dsn, name="load", statement_timeout=statement_timeout)
        self._tailing = Line(dsn, name="tail", statement_timeout=statement_timeout)
        self._appends: Batcher[Append, Position] = Batcher(
            self._record_batch,
            name="append",
            max_batch=MAX_BATCH_EVENTS,
            max_waiting=max_waiting,
            weigh=lambda append: len(append.events),
            on_batch=on_batch,
            pace=pace,
        )
        self._loads: Batcher[tuple[tuple[UUID, ...], tuple[UUID, ...]], LoadedStreams] = Batcher(
            self._load_batch, name="load", max_batch=200, max_waiting=max_waiting, pace=pace
        )

    async def open(self) -> None:
        """Create what is missing in the database and learn its time.

        Raises:
            Unavailable: the database is away.
        """
        await self._writing.run(create_schema)
        await self.ask_time()

    async def close(self) -> None:
        """Finish what was taken, then let go."""
        await self._appends.close()
        await self._loads.close()
        for line in (self._writing, self._reading, self._tailing):
            await line.close()

    async def ask_time(self) -> None:
        """Set the clock by the database."""

        async def ask(connection: Connection) -> datetime:
            row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
            assert row is not None  # noqa: S101 - a SELECT without FROM has a row
            told: datetime = row[0]
            return told

        asked = time.monotonic()
        told = await self._tailing.run(ask)
        self._clock.set(told, asked_ago=timedelta(seconds=time.monotonic() - asked))

    # --- Writing ------------------------------------------------------------------------------

    async def append(
        self,
        events: Sequence[AnyEvent],
        context: Context,
        *,
        keys: Sequence[WrappedKey] = (),
        moved: FollowerMoved | None = None,
    ) -> Position:
        """See `application.ports.Log.append`."""
        return await self.append_each([(event, context) for event in events], keys=keys, moved=moved)

    async def append_each(
        self,
        events: Sequence[tuple[AnyEvent, Context]],
        *,
        keys: Sequence[WrappedKey] = (),
        moved: FollowerMoved | None = None,
    ) -> Position:
        """`append` of events that have a context each."""
        stored = [self._codec.encode(event) for event, _ in events]
        return await self.append_stored(stored, [context for _, context in events], keys, moved)

    async def append_stored(
        self,
        events: Sequence[StoredEvent],
        contexts: Sequence[Context],
        keys: Sequence[WrappedKey] = (),
        moved: FollowerMoved | None = None,
    ) -> Position:
        """`append` of events in stored form.

        Raises:
            ValueError: there is no event, or not a context for each.
        """
        if not events or len(events) != len(contexts):
            raise ValueError("an append needs an event, and each a context")
        started = time.monotonic()
        try:
            return await self._appends.do(Append(events, contexts, keys, moved))
        finally:
            self._on_append(time.monotonic() - started)

    @property
    def refuses(self) -> bool:
        """Is the database silent, or did the latest batch or a load fail for want of it, up to two seconds ago?"""
        if self._appends.stuck or self._loads.stuck:
            return True
        return self._refused_at is not None and time.monotonic() < self._refused_at + 2

    @property
    def accepts(self) -> bool:
        """Was the latest batch recorded, less than a second ago?"""
        return self._accepted_at is not None and time.monotonic() < self._accepted_at + 1

    async def _record_batch(self, appends: Sequence[Append]) -> Sequence[Position | Exception]:
        try:
            results = await self._record(appends)
        except Unavailable:
            self._refused_at, self._accepted_at = time.monotonic(), None
            raise
        now = time.monotonic()
        if any(isinstance(result, Unavailable) for result in results):
            self._refused_at, self._accepted_at = now, None
        elif any(isinstance(result, Position | Conflict) for result in results):
            self._refused_at, self._accepted_at = None, now
        return results

    async def _record(self, appends: Sequence[Append]) -> Sequence[Position | Exception]:
        """Record a batch and find out what became of it, whatever happens to the connection."""
        deadline = asyncio.get_running_loop().time() + RESOLVE_WITHIN.total_seconds()
        while True:
            batch_id = uuid4()
            parameters = _parameters(batch_id, appends)
            try:
                first, lost = await self._writing.run(lambda connection: self._execute(connection, parameters))  # noqa: B023
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DiskFull) as error:
                # These two are certain to come before the commit.
                raise Unavailable("the log cannot be written now") from error
            except (psycopg.Error, ValueError, TypeError) as error:
                # The latter two, from making text of what is none; never sent, but it is all the same by now.
                log.warning("append.unanswered", error=type(error).__name__, sqlstate=getattr(error, "sqlstate", None))
                block = await self._fate(batch_id, deadline)
                if block is not None:
                    return _answers(appends, *block)
                # Not recorded, and fenced.
                if _is_of_the_data(error):
                    return [error] if len(appends) == 1 else await self._record_one_by_one(appends)
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unavailable("the database is away") from error
            else:
                return _answers(appends, first, lost)

    async def _record_one_by_one(self, appends: Sequence[Append]) -> Sequence[Position | Exception]:
        """One of them cannot be recorded: find out which, and record the others."""
        results: list[Position | Exception] = []
        try:
            for append in appends:
                results += await self._record([append])
        except Unavailable as error:
            results += [error] * (len(appends) - len(results))
        return results

    async def _execute(self, connection: Connection, parameters: tuple[Any, ...]) -> tuple[Position, list[int]]:
        """The batch's first position, and the numbers of its appends that lost."""
        cursor = connection.cursor(binary=True)
        asked = time.monotonic()
        await cursor.execute(_APPEND, parameters)
        took = timedelta(seconds=time.monotonic() - asked)
        row = await cursor.fetchone()
        assert row is not None  # noqa: S101 - the function answers a row
        first, lost, now = row
        self._clock.set(now, asked_ago=took)
        return first, lost

    async def _fate(self, batch_id: UUID, deadline: float) -> tuple[Position, list[int]] | None:
        """First position of what a batch recorded, and the numbers of its appends that lost; None if it recorded
        nothing, and never will.

        Raises:
            Unavailable: the database could not be asked in time. The outcome is unknown.
        """

        async def ask(connection: Connection) -> tuple[Position, list[int]] | None:
            row = await (await connection.execute("SELECT fate_of_batch(%s)", (batch_id,))).fetchone()
            if row is None or not row[0]:
                return None
            cursor = await connection.execute(
                "SELECT first_position, lost FROM blocks WHERE batch_id = %s", (batch_id,)
            )
            return await cursor.fetchone()

        while True:
            try:
                return await self._writing.run(ask)
            except (Unavailable, psycopg.Error) as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unavailable("the database is away; whether it was recorded is unknown") from error
                await asyncio.sleep(0.05)

    # --- Reading ------------------------------------------------------------------------------

    async def load(self, *stream_ids: UUID, holders_of: Sequence[UUID] = ()) -> LoadedStreams:
        """See `application.ports.Log.load`."""
        return await self._loads.do((stream_ids, tuple(holders_of)))

    async def _load_batch(
        self, wishes: Sequence[tuple[tuple[UUID, ...], tuple[UUID, ...]]]
    ) -> Sequence[LoadedStreams | Exception]:
        streams = list({stream for wish, _ in wishes for stream in wish})
        claims = list({claim for _, wish in wishes for claim in wish})

        async def select(connection: Connection) -> dict[UUID, list[tuple[int, str, bytes, Position]]]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_LOAD, {"streams": streams, "claims": claims})
            rows: dict[UUID, list[tuple[int, str, bytes, Position]]] = {}
            for stream_id, version, topic, state, position in await cursor.fetchall():
                rows.setdefault(stream_id, []).append((version, topic, state, position))
            return rows

        try:
            rows = await self._reading.ask(select)
        except Unavailable:
            self._refused_at = time.monotonic()  # every command begins with a load
            raise
        # Shared rows, but every caller makes aggregates of its own from them.
        return [LoadedStreams(self._codec, rows) for _ in wishes]

    async def read(
        self, after: Position, limit: int, topics: Sequence[str] | None = None
    ) -> tuple[list[RecordedRow], Position]:
        """Events after a position in order, and the position up to which nothing is left out.

        Args:
            limit: greatest number of events.
            topics: only events of these; the position answered moves on over the others, at most four times as far.
        """
        if topics is None:
            rows = [RecordedRow._make(row) for row in await self._read(_READ, {"after": after, "upto": after + limit})]
            return rows, rows[-1].position if rows else after
        upto = after + 4 * limit
        found = await self._read(_READ_TOPICS, {"after": after, "upto": upto, "limit": limit, "topics": list(topics)})
        self.end_seen = found[0][0]
        rows = [RecordedRow._make(row[1:]) for row in found if row[1] is not None]
        seen = rows[-1].position if len(rows) == limit else min(self.end_seen, upto)
        return rows, max(after, seen)

    async def _read(self, query: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        async def select(connection: Connection) -> list[tuple[Any, ...]]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(query, parameters)
            return await cursor.fetchall()

        return await self._tailing.ask(select)

    async def head(self) -> Position:
        """Position of the last event."""

        async def select(connection: Connection) -> Position:
            row = await (await connection.execute("SELECT position FROM head")).fetchone()
            assert row is not None  # noqa: S101 - the schema puts it there
            position: Position = row[0]
            return position

        self.end_seen = await self._tailing.ask(select)
        return self.end_seen

    def decode(self, row: RecordedRow) -> Recorded:
        """
        Raises:
            TopicError, MapperDeserialisationError: this version of the service cannot read the event.
        """
        event = self._codec.decode(row.stream_id, row.version, row.topic, row.state)
        return Recorded(event, row.position, row.topic, *row[5:])  # the rest is in the same order


async def create_schema(connection: Connection) -> None:
    """Create tables and functions where they are missing; safe to run by several processes of this version at once, at
    any time. (Those of an earlier version may miss a function that has changed: there is no rolling upgrade yet.)"""
    script = files("infrastructure.event_store").joinpath("log.sql").read_text(encoding="utf-8")
    await bring_up_to_date(connection, "event store", script)


def _answers(appends: Sequence[Append], first: Position, lost: Collection[int]) -> list[Position | Exception]:
    """What a recorded batch has to answer."""
    answers: list[Position | Exception] = []
    position = first - 1
    for number, append in enumerate(appends, start=1):
        if number in lost:
            answers.append(Conflict(_LOST))
        else:
            position += len(append.events)
            answers.append(position)
    return answers


def _is_of_the_data(error: Exception) -> bool:
    """Would it be refused again? Not if it lies in the circumstances: connection, resources, administrator, fence."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None:
        return not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return sqlstate[:2] not in {"08", "40", "53", "55", "57", "58"}


def event_digest(event: StoredEvent, context: Context) -> bytes:
    """What the hash chain keeps of an event: sha256 over all of it but its position and time, which its block's hash
    covers. The same as `event_digest` in log.sql."""
    state = event.state
    causation = context.causation_position
    return sha256(
        _stream_of(event).bytes
        + _eight(event.originator_version)
        + _text(event.topic)
        + _four(len(state))
        + state
        + context.correlation_id.bytes
        + (_NULL if causation is None else _four(8) + _eight(causation))
        + _text(context.actor)
        + (_NULL if context.trace is None else _text.__wrapped__(context.trace))
    ).digest()


_four = Struct("!i").pack
_eight = Struct("!q").pack
_NULL = _four(-1)


@lru_cache(maxsize=256)
def _text(value: str) -> bytes:
    """A text's length and bytes; there are few topics and actors."""
    encoded = value.encode()
    return _four(len(encoded)) + encoded


def _stream_of(event: StoredEvent) -> UUID:
    """The library allows text; our streams have UUIDs."""
    assert isinstance(event.originator_id, UUID)  # noqa: S101 - narrows the library's type
    return event.originator_id


def _parameters(batch_id: UUID, appends: Sequence[Append]) -> tuple[Any, ...]:
    """The arguments of `append_batch`."""
    sizes, streams, versions, topics, states = Bigints(), Uuids(), Bigints(), Texts(), Byteas()
    correlations, causations, actors, traces = Uuids(), Bigints(), Texts(), Texts()
    digests: list[bytes] = []
    base_streams, base_versions = Uuids(), Bigints()
    moving, followers, since, to = Bigints(), Texts(), Bigints(), Bigints()
    key_append, key_registrations, key_wrapped = Bigints(), Uuids(), Byteas()
    for number, append in enumerate(appends, start=1):
        sizes.append(len(append.events))
        digests += append.digests
        latest: dict[UUID, int] = {}
        for event, context in zip(append.events, append.contexts, strict=True):
            stream, version = _stream_of(event), event.originator_version
            if version != latest.get(stream, 0) + 1:
                base_streams.append(stream)
                base_versions.append(version - 1)
            latest[stream] = version
            streams.append(stream)
            versions.append(version)
            topics.append(event.topic)
            states.append(event.state)
            correlations.append(context.correlation_id)
            causations.append(context.causation_position)
            actors.append(context.actor)
            traces.append(context.trace)
        if append.moved is not None:
            moving.append(number)
            followers.append(append.moved.name)
            since.append(append.moved.since)
            to.append(append.moved.to)
        for key in append.keys:
            key_append.append(number)
            key_registrations.append(key.registration_id)
            key_wrapped.append(key.wrapped)
    return (
        batch_id, sizes, streams, versions, topics, states, correlations, causations, actors, traces,
        b"".join(digests), base_streams, base_versions, moving, followers, since, to,
        key_append, key_registrations, key_wrapped,
    )  # fmt: skip
