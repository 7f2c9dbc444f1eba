"""Followers of the log: one leads, any number stand by; what cannot be applied is parked, never skipped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Protocol
from uuid import UUID

import psycopg
import structlog
from psycopg import sql

from application.crash_points import crash_point
from application.ports import Conflict, Unavailable
from domain.recorded import Position, Recorded
from infrastructure.event_store.reader import ReadsLog, RecordedRow
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.notifications import LOG, Announcements
from infrastructure.postgres.schema import bring_up_to_date

log = structlog.get_logger(__name__)

BATCH = 1000
"""Events applied in one transaction at most: 40 times the throughput of one each (library-facts.md)."""

STAND_BY = timedelta(seconds=1)
"""How often a standby tries to become the leader."""

RETRY_PARKED = timedelta(minutes=1)
"""How often parked streams are tried again, beside every begin of a leadership."""

LEASE_MARGIN = timedelta(seconds=2)
"""What a silent leader is given beside a statement's time: its session is silent while it waits for another one."""

TRIES = 3
"""Attempts at an event before its stream is parked."""

REST = 4
"""A projector at the end of the log writes for a quarter of the time at most: on a busy machine batches grow, and fewer
of them make the same rows."""

LONGEST_REST = timedelta(seconds=1)
"""Whatever a batch took: one that a stopped database held up says nothing about the next, and a leader whose session
is silent for long is deposed (`LEASE_MARGIN`)."""

_AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    # A session that was silent for too long, though it was we who slept.
    psycopg.errors.TransactionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
)


class LostLeadership(Exception):
    """The follower's position was moved by somebody else: another process leads."""


class Leading(Protocol):
    """A piece of work for one process at a time."""

    name: str

    async def work(self, connection: Connection) -> None:
        """Work until cancelled, or until something goes wrong.

        `connection` holds the leadership: it is to be used every second or two, or a standby takes it for dead.
        """
        ...


async def lead(leading: Leading, dsn: str, *, statement_timeout: timedelta = timedelta(seconds=10)) -> None:
    """Run `leading` whenever this process is its leader, for ever: whatever goes wrong, it is begun again.

    A leader of which the server has heard nothing for `statement_timeout` and `LEASE_MARGIN` (it was stopped, its
    machine is gone) is deposed by whoever stands by. It may wake up afterwards: what it then writes elsewhere than in
    its session is fenced by its position (`FollowerMoved`).
    """
    pause = STAND_BY.total_seconds()
    away = False
    while True:
        try:
            connection = await connect(dsn, name=leading.name, statement_timeout=statement_timeout)
            async with connection:
                if await _is_leader(connection, leading.name):
                    log.info("follower.leads", follower=leading.name)
                    away = False
                    pause = STAND_BY.total_seconds()
                    await leading.work(connection)
                elif await _depose_silent(connection, leading.name, statement_timeout + LEASE_MARGIN):
                    log.warning("follower.deposed_leader", follower=leading.name, hint="it was silent; is it stopped?")
            await asyncio.sleep(STAND_BY.total_seconds())
        except (*_AWAY, Unavailable, OSError, TimeoutError) as error:
            if not away:  # once an outage, not once a second and follower
                log.warning("follower.database_away", follower=leading.name, error=type(error).__name__)
            away = True
            await asyncio.sleep(STAND_BY.total_seconds())
        except (LostLeadership, Conflict) as error:
            log.warning("follower.lost_a_race", follower=leading.name, error=type(error).__name__)
            await asyncio.sleep(STAND_BY.total_seconds())
        except Exception:
            # The edge of the loop: a follower never stops. It begins again, slower each time.
            log.exception("follower.failed", follower=leading.name, again_in=pause, hint="this is a bug; report it")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 30.0)


async def _is_leader(connection: Connection, name: str) -> bool:
    row = await (
        await connection.execute("SELECT pg_try_advisory_lock(hashtext('registrar follower'), hashtext(%s))", (name,))
    ).fetchone()
    return row is not None and bool(row[0])


async def _depose_silent(connection: Connection, name: str, lease: timedelta) -> bool:
    """End the leader's session if the server waits for its next message for longer than `lease`.

    The server's own timeouts for idle sessions do not see all of them: none is running in the middle of a pipeline, nor
    after one, until the next statement outside (measured: psycopg 3.3.9, PostgreSQL 18.4).
    """
    cursor = await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'advisory' AND granted AND datname = current_database() AND database = datid"
        " AND classid = hashtext('registrar follower')::oid AND objid = hashtext(%s)::oid AND objsubid = 2"
        " AND wait_event = 'ClientRead' AND state_change < clock_timestamp() - %s",
        (name, lease),
    )
    return cursor.rowcount > 0


# --- Positions --------------------------------------------------------------------------------


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


_NOT_THERE = "RGLST"
"""SQLSTATE of `move_on` for a follower that somebody else has moved."""

_MOVE = "UPDATE followers SET position = %s, updated_at = clock_timestamp() WHERE name = %s AND position = %s"


# --- Parked streams ---------------------------------------------------------------------------


class ParkedStreams:
    """The streams that a follower put aside, with every later event of theirs, in order."""

    def __init__(self, follower: str) -> None:
        self._follower = follower
        self._streams: set[UUID] = set()

    def __contains__(self, stream_id: UUID) -> bool:
        return stream_id in self._streams

    def __len__(self) -> int:
        return len(self._streams)

    async def load(self, connection: Connection) -> None:
        cursor = await connection.execute(
            "SELECT DISTINCT stream_id FROM parked_events WHERE follower = %s", (self._follower,)
        )
        self._streams = {row[0] for row in await cursor.fetchall()}

    async def waiting(self, connection: Connection) -> dict[UUID, list[Position]]:
        """The positions of what was put aside, in order, by stream."""
        cursor = await connection.execute(
            "SELECT stream_id, position FROM parked_events WHERE follower = %s ORDER BY position", (self._follower,)
        )
        waiting: dict[UUID, list[Position]] = {}
        for stream_id, position in await cursor.fetchall():
            waiting.setdefault(stream_id, []).append(position)
        return waiting

    async def remove(self, connection: Connection, stream_id: UUID) -> None:
        """The stream's events have been applied after all; `forget` it once that is committed."""
        await connection.execute(
            "DELETE FROM parked_events WHERE follower = %s AND stream_id = %s", (self._follower, stream_id)
        )
        log.info("follower.unparked", follower=self._follower, stream_id=str(stream_id))

    def forget(self, stream_id: UUID) -> None:
        """From now on the stream's events are applied as they come."""
        self._streams.discard(stream_id)

    async def add(self, connection: Connection, stream_id: UUID, position: Position, error: str) -> None:
        """Put an event aside; `error` is a class of error, never a value."""
        self._streams.add(stream_id)
        await connection.execute(
            "INSERT INTO parked_events (follower, stream_id, position, error) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (self._follower, stream_id, position, error),
        )


# --- Projections ------------------------------------------------------------------------------


class Projection(Protocol):
    """A read model's tables and fold (`projections/`)."""

    name: str
    topics: tuple[str, ...] | None
    tables: str

    async def apply(self, connection: Connection, events: Sequence[Recorded]) -> None: ...


def read_schema(projection: str) -> str:
    """The PostgreSQL schema that holds a read model's tables."""
    return f"read_{projection}"


async def create_read_schema(connection: Connection, projection: Projection) -> None:
    """Create the tables of a read model where they are missing."""
    schema = read_schema(projection.name)
    await bring_up_to_date(connection, schema, projection.tables, schema=schema)


class Projector:
    """Keeps one read model in step with the log: a batch and its position in one transaction."""

    def __init__(
        self,
        projection: Projection,
        *,
        store: ReadsLog,
        announcements: Announcements,
        pace: timedelta = timedelta(0),
        announced: bool = False,
    ) -> None:
        """
        Args:
            pace: least time between the begin of two batches (see `REST` as well): few large transactions are cheaper
                than many small ones. What comes after a quiet time is applied at once.
            announced: other processes wait for this read model, so its progress is announced to them.
        """
        self.name = projection.name
        self._projection = projection
        self._store = store
        self._announcements = announcements
        self._pace = pace
        self._announced = announced
        self._parked = ParkedStreams(projection.name)

    async def work(self, connection: Connection) -> None:
        """Follow until cancelled; see `Leading`."""
        schema = sql.Identifier(read_schema(self.name))
        await connection.execute(sql.SQL("SET search_path = {}, public").format(schema))
        # A read model can be folded again: losing its last moments in a crash of the server costs nothing.
        await connection.execute("SET synchronous_commit = off")
        await self._parked.load(connection)
        position = await position_of(connection, self.name)
        loop = asyncio.get_running_loop()
        await self._retry_parked(connection)
        retry_at = loop.time() + RETRY_PARKED.total_seconds()
        ahead: asyncio.Task[_Batch] | None = None
        try:
            while True:
                if loop.time() >= retry_at:
                    await self._retry_parked(connection)
                    retry_at = loop.time() + RETRY_PARKED.total_seconds()
                rows, seen = await (ahead or self._read(position))
                # Far behind, the next batch is read and decoded while the database writes this one.
                ahead = asyncio.create_task(self._read(seen)) if seen - position >= BATCH else None
                if seen > position:
                    begun = loop.time()
                    await self._advance(connection, rows, position, seen)
                    position = seen
                    if ahead is None:
                        await asyncio.sleep(rest_after(timedelta(seconds=loop.time() - begun), self._pace))
                if ahead is None and not await self._announcements.beyond(LOG, position):
                    # Proves that the leadership is still ours, and lets a lost connection be noticed.
                    await connection.execute("SELECT 1")
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def _read(self, position: Position) -> _Batch:
        rows, seen = await self._store.read(position, BATCH, self._projection.topics)
        return [(row, self._decoded(row)) for row in rows], seen

    def _decoded(self, row: RecordedRow) -> Recorded | Exception:
        try:
            return self._store.decode(row)
        except Exception as error:  # noqa: BLE001 - raised where the event is applied, which parks its stream
            return error

    async def _advance(
        self, connection: Connection, rows: Sequence[_Entry], position: Position, seen: Position
    ) -> None:
        for attempt in range(TRIES):
            try:
                await self._move_on(connection, rows, position, seen)
                self._announcements.hear(self.name, seen)
                return
            except Exception as error:
                if not _lies_in_the_event(error):
                    raise
                log.warning(
                    "follower.batch_failed", follower=self.name, attempt=attempt + 1, error=type(error).__name__
                )
        await self._advance_one_by_one(connection, rows, position, seen)

    async def _move_on(
        self, connection: Connection, rows: Sequence[_Entry], position: Position, seen: Position
    ) -> None:
        """Apply the events and save the position in one transaction, sent without waiting for each statement."""
        try:
            async with connection.pipeline(), connection.transaction():
                await self._apply(connection, rows)
                crash_point("projector.mid")
                await connection.execute("SELECT move_on(%s, %s, %s, %s)", (self.name, position, seen, self._announced))
        except psycopg.Error as error:
            if error.sqlstate == _NOT_THERE:
                raise LostLeadership(self.name) from None
            raise

    async def _apply(self, connection: Connection, rows: Sequence[_Entry]) -> None:
        events = []
        some_are_parked = len(self._parked) > 0
        for row, recorded in rows:
            if some_are_parked and row.stream_id in self._parked:
                await self._parked.add(connection, row.stream_id, row.position, "stream is parked")
            elif isinstance(recorded, Exception):
                raise recorded
            else:
                events.append(recorded)
        if events:
            await self._projection.apply(connection, events)

    async def _retry_parked(self, connection: Connection) -> None:
        """Apply what was put aside, a stream at a time and in order; what still cannot be applied stays there."""
        if not len(self._parked):
            return
        for stream_id, positions in (await self._parked.waiting(connection)).items():
            try:
                async with connection.transaction():
                    for position in positions:
                        rows, _ = await self._store.read(position - 1, 1)
                        await self._projection.apply(connection, [self._store.decode(row) for row in rows])
                    await self._parked.remove(connection, stream_id)
            except Exception as error:
                if not _lies_in_the_event(error):
                    raise
                log.warning(
                    "follower.still_parked", follower=self.name, stream_id=str(stream_id), error=type(error).__name__
                )
            else:
                self._parked.forget(stream_id)

    async def _advance_one_by_one(
        self, connection: Connection, rows: Sequence[_Entry], position: Position, seen: Position
    ) -> None:
        """Find what cannot be applied and park its stream, while the others go on."""
        for entry in rows:
            row = entry[0]
            async with connection.transaction():
                await _apply_or_park(connection, row, self._parked, partial(self._apply, connection, [entry]))
                await save_position(connection, self.name, position, row.position)
            position = row.position
        await self._move_on(connection, (), position, seen)
        self._announcements.hear(self.name, seen)


def rest_after(took: timedelta, pace: timedelta) -> float:
    """Seconds to rest after a batch that took so long, with so much time between the begins of two."""
    return max(timedelta(0), pace - took, min((REST - 1) * took, LONGEST_REST)).total_seconds()


_Entry = tuple[RecordedRow, Recorded | Exception]
"""An event as it stands in the log, and decoded or why it cannot be."""

_Batch = tuple[Sequence[_Entry], Position]
"""Events in order, and the position up to which nothing is left out."""


def _lies_in_the_event(error: Exception) -> bool:
    """Is it this event that cannot be applied, or would any other fare the same (a table that is missing, a database
    that is away or read-only)? Parking is for the former: the latter would park every stream."""
    if isinstance(error, LostLeadership | psycopg.OperationalError | psycopg.InterfaceError):
        return False
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate[:2] in {"21", "22", "23"}  # cardinality, data, integrity
    return True


async def _apply_or_park(
    connection: Connection, row: RecordedRow, parked: ParkedStreams, apply: Callable[[], Awaitable[Any]]
) -> None:
    try:
        async with connection.transaction():
            await apply()
    except Exception as error:
        if not _lies_in_the_event(error):
            raise
        log.error(  # noqa: TRY400 - the trace could carry values
            "follower.parked",
            stream_id=str(row.stream_id),
            position=row.position,
            topic=row.topic,
            error=type(error).__name__,
            hint="the stream waits in parked_events; the others go on",
        )
        await parked.add(connection, row.stream_id, row.position, type(error).__name__)
