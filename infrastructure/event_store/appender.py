"""Group commit: appends gathered into batches, and the outcome of a commit whose reply was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import structlog

from application.ports import Conflict, Unavailable
from domain.recorded import Position
from infrastructure.event_store.parameters import Append, parameters_of
from infrastructure.event_store.probe import take_locks_of_an_append
from infrastructure.postgres.batching import BATCH_TIMEOUT, Batcher
from infrastructure.postgres.circumstances import TellingRefusals
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import AWAY, Connection, ReconnectingConnection
from infrastructure.postgres.cutting import cut_after

log = structlog.get_logger(__name__)

MAX_BATCH_EVENTS = 1000
"""Events in one transaction; beyond it the commit's latency grows faster than its throughput."""

RESOLVE_WITHIN = timedelta(seconds=2)
"""How long an append whose reply was lost is looked up before its caller gets `Unavailable` (docs/reliability.md,
B1)."""

APPEND = """
    SELECT first_position, lost, now FROM append_batch_v2(
        %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
"""

_LOST_RACE = "a stream or follower has moved on"


class Appender:
    """Records appends over one connection; they are gathered while the previous batch commits."""

    def __init__(
        self,
        connection: ReconnectingConnection,
        clock: DatabaseClock,
        *,
        max_waiting: int,
        pace: timedelta,
        on_batch: Callable[[int], None],
    ) -> None:
        """
        Args:
            max_waiting: appends that may wait for the next batch; beyond it callers get `Overloaded`.
            pace: see `infrastructure.postgres.batching.Batcher`.
            on_batch: called with the number of appends of every batch.
        """
        self._connection = connection
        self._clock = clock
        self._refusals = TellingRefusals("append")
        self._refused_at: float | None = None
        self._accepted_at: float | None = None
        self._appends: Batcher[Append, Position] = Batcher(
            self._record_batch,
            name="append",
            max_batch=MAX_BATCH_EVENTS,
            max_waiting=max_waiting,
            weigh=lambda append: len(append.entries),
            on_batch=on_batch,
            pace=pace,
        )

    async def close(self) -> None:
        """Finish the appends already accepted, then close the connection."""
        await self._appends.close()
        await self._connection.close()

    async def record(self, append: Append) -> Position:
        """Record it atomically; returns the position of its last event. Raises what `application.ports.Log` says."""
        return await self._appends.do(append)

    async def settled(self) -> None:
        """Return when every append that was accepted up to now is recorded, or is not."""
        await self._appends.settled()

    async def try_locks(self) -> None:
        """Take the locks of an append, and commit.

        Raises:
            Unavailable, psycopg.Error: an append would fail, too.
        """

        async def take(connection: Connection) -> None:
            with cut_after(BATCH_TIMEOUT, connection):
                await take_locks_of_an_append(connection)

        await self._connection.execute_idempotent(take)

    @property
    def waiting(self) -> int:
        """How many appends wait for the next batch."""
        return self._appends.waiting

    @property
    def refuses(self) -> bool:
        """Does the database not respond, or was it unavailable to the latest batch or a load within the last 2 s?"""
        if self._appends.stuck:
            return True
        return self._refused_at is not None and time.monotonic() < self._refused_at + 2

    def note_unavailable(self) -> None:
        """Another caller found the database unavailable: an append would, too."""
        self._refused_at = time.monotonic()

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
            parameters = parameters_of(batch_id, appends)
            try:
                with self._refusals:  # which can only be raised before the commit
                    first, lost = await self._connection.execute(
                        lambda connection: self._execute(connection, parameters)  # noqa: B023
                    )
            except (psycopg.errors.LockNotAvailable, psycopg.errors.ReadOnlySqlTransaction) as error:
                # These, too.
                raise Unavailable("the log cannot be written now") from error
            except (psycopg.Error, ValueError, TypeError) as error:
                # ValueError and TypeError come from encoding: nothing was sent, but the batch is resolved the same way.
                log.warning("append.unanswered", error=type(error).__name__, sqlstate=getattr(error, "sqlstate", None))
                block = await self._resolve(batch_id, deadline)
                if block is not None:
                    return _results(appends, *block)
                # Not recorded, and fenced.
                if _is_data_error(error):
                    return [error] if len(appends) == 1 else await self._record_one_by_one(appends)
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unavailable("the database is away") from error
            else:
                return _results(appends, first, lost)

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
        """Return the batch's first position, and the numbers of its appends that lost a race."""
        cursor = connection.cursor(binary=True)
        asked = time.monotonic()
        await cursor.execute(APPEND, parameters)
        took = timedelta(seconds=time.monotonic() - asked)
        row = await cursor.fetchone()
        assert row is not None  # noqa: S101 - the function returns a row
        first, lost, now = row
        self._clock.set(now, asked_ago=took)
        return first, lost

    async def _resolve(self, batch_id: UUID, deadline: float) -> tuple[Position, list[int]] | None:
        """Return the first position of what a batch recorded, and the numbers of its appends that lost a race; None
        if it recorded nothing, and never will.

        Raises:
            Unavailable: the database could not be asked in time. The outcome is unknown.
        """

        async def ask(connection: Connection) -> tuple[Position, list[int]] | None:
            row = await (await connection.execute("SELECT fate_of_batch_v2(%s)", (batch_id,))).fetchone()
            if row is None or not row[0]:
                return None
            cursor = await connection.execute(
                "SELECT first_position, lost FROM blocks WHERE batch_id = %s", (batch_id,)
            )
            return await cursor.fetchone()

        while True:
            try:
                return await self._connection.execute(ask)
            except (Unavailable, psycopg.Error) as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unavailable("the database is away; whether it was recorded is unknown") from error
                await asyncio.sleep(0.05)


def _results(appends: Sequence[Append], first: Position, lost: Collection[int]) -> list[Position | Exception]:
    """The result of each append of a recorded batch."""
    results: list[Position | Exception] = []
    position = first - 1
    for number, append in enumerate(appends, start=1):
        if number in lost:
            results.append(Conflict(_LOST_RACE))
        else:
            position += len(append.entries)
            results.append(position)
    return results


def _is_data_error(error: Exception) -> bool:
    """Would it fail again? Not if the cause is the connection, a resource, the state of the transaction or server,
    an administrator or the fence."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None:
        return not isinstance(error, AWAY)
    return sqlstate[:2] not in {"08", "25", "40", "53", "55", "57", "58"}
