"""Group commit: appends gathered into batches, and the truth about a commit whose answer was lost."""

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
from infrastructure.postgres.batching import Batcher
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection, Line

log = structlog.get_logger(__name__)

MAX_BATCH_EVENTS = 1000
"""Events in one transaction; beyond it the commit's latency grows faster than its throughput."""

RESOLVE_WITHIN = timedelta(seconds=2)
"""How long an append whose answer was lost is looked up before its caller gets `Unavailable` (docs/reliability.md, B1)."""

APPEND = """
    SELECT first_position, lost, now FROM append_batch_v2(
        %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
"""

_LOST = "a stream or follower has moved on"


class Appender:
    """Records appends over one connection; they are gathered while the batch before commits."""

    def __init__(
        self,
        line: Line,
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
        self._line = line
        self._clock = clock
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
        """Finish what was taken, then let go."""
        await self._appends.close()
        await self._line.close()

    async def record(self, append: Append) -> Position:
        """Record it whole or not at all; returns the position of its last event. Raises as `application.ports.Log`."""
        return await self._appends.do(append)

    @property
    def waiting(self) -> int:
        """How many appends wait for the next batch."""
        return self._appends.waiting

    @property
    def refuses(self) -> bool:
        """Is the database silent, or did the latest batch or a load fail for want of it, up to two seconds ago?"""
        if self._appends.stuck:
            return True
        return self._refused_at is not None and time.monotonic() < self._refused_at + 2

    def note_unavailable(self) -> None:
        """The database was away for somebody else: it would be for an append."""
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
                first, lost = await self._line.run(lambda connection: self._execute(connection, parameters))  # noqa: B023
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
        await cursor.execute(APPEND, parameters)
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
            row = await (await connection.execute("SELECT fate_of_batch_v2(%s)", (batch_id,))).fetchone()
            if row is None or not row[0]:
                return None
            cursor = await connection.execute(
                "SELECT first_position, lost FROM blocks WHERE batch_id = %s", (batch_id,)
            )
            return await cursor.fetchone()

        while True:
            try:
                return await self._line.run(ask)
            except (Unavailable, psycopg.Error) as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unavailable("the database is away; whether it was recorded is unknown") from error
                await asyncio.sleep(0.05)


def _answers(appends: Sequence[Append], first: Position, lost: Collection[int]) -> list[Position | Exception]:
    """What a recorded batch has to answer."""
    answers: list[Position | Exception] = []
    position = first - 1
    for number, append in enumerate(appends, start=1):
        if number in lost:
            answers.append(Conflict(_LOST))
        else:
            position += len(append.entries)
            answers.append(position)
    return answers


def _is_of_the_data(error: Exception) -> bool:
    """Would it be refused again? Not if it lies in the circumstances: connection, resources, administrator, fence."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None:
        return not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return sqlstate[:2] not in {"08", "40", "53", "55", "57", "58"}
