"""Many writers in several processes, one tail: it sees everything, once, in order (I9, B19, B20)."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from uuid import UUID, uuid4, uuid5

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent

from application.ports import Conflict, WrappedKey
from domain.recorded import Position
from infrastructure.event_store.appender import APPEND
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.parameters import Append, parameters_of
from infrastructure.event_store.reader import RecordedRow
from infrastructure.event_store.store import EventStore
from infrastructure.postgres import binary_arrays
from infrastructure.postgres.clock import DatabaseClock
from tests.support.facts import CLIENT
from tests.support.log import append, broken_blocks, happened

PROCESSES, TASKS, APPENDS = 3, 8, 40
CONTESTED = [uuid5(UUID(int=0), str(number)) for number in range(5)]
KEYED = UUID(int=1)


@dataclass
class Told:
    """What a process was told: the last event of every append that was acknowledged, and how many were not."""

    acknowledged: list[tuple[Position, UUID, int]] = field(default_factory=list)
    conflicts: int = 0
    failed: int = 0
    rolled_back: int = 0


class Writer:
    """One of the processes."""

    def __init__(self, dsn: str, seed: int) -> None:
        self._dsn = dsn
        self._chance = random.Random(seed)  # noqa: S311 - a test's dice
        self._told = Told()
        self._store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())

    async def write(self) -> Told:
        await self._store.open()
        await asyncio.gather(*(self._keep_appending() for _ in range(TASKS)))
        await self._store.close()
        return self._told

    async def _keep_appending(self) -> None:
        own, version = uuid4(), 0
        for _ in range(APPENDS):
            events = [happened(own, version + n) for n in range(1, self._chance.randint(2, 4))]
            match self._chance.randrange(10):
                case 0:
                    await self._roll_back(events)
                case 1:
                    await self._fail(events)
                case 2 | 3 | 4:
                    stream_id = self._chance.choice(CONTESTED)
                    loaded = (await self._store.load(stream_id))._rows.get(stream_id, [])
                    if await self._append([*events, happened(stream_id, len(loaded) + 1)]):
                        version += len(events)
                case _:
                    assert await self._append(events), "a conflict for what nobody else wrote"
                    version += len(events)

    async def _append(self, events: list[StoredEvent]) -> bool:
        try:
            position = await append(self._store, *events)
        except Conflict:
            self._told.conflicts += 1
            return False
        last = events[-1]
        self._told.acknowledged.append((position, UUID(str(last.originator_id)), last.originator_version))
        return True

    async def _fail(self, events: list[StoredEvent]) -> None:
        """A key that is there already: the statement fails, with all that went in the same batch."""
        try:
            await append(self._store, *events, keys=[WrappedKey(KEYED, b"again")])
        except psycopg.errors.UniqueViolation:
            self._told.failed += 1

    async def _roll_back(self, events: list[StoredEvent]) -> None:
        """Take positions, and the lock, and give up."""
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            binary_arrays.register(connection)
            await connection.execute(APPEND, parameters_of(uuid4(), [Append([(event, CLIENT) for event in events])]))
            await connection.rollback()
        self._told.rolled_back += 1


def write(dsn: str, seed: int) -> Told:
    return asyncio.run(Writer(dsn, seed).write())


@pytest.mark.fault("B19", "B20")
@pytest.mark.slow
async def test_a_tail_sees_everything_that_many_processes_write_once_and_in_order(store: EventStore, dsn: str) -> None:
    await append(store, happened(), keys=[WrappedKey(KEYED, b"there")])
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as processes:
        writing = asyncio.gather(*(loop.run_in_executor(processes, write, dsn, seed) for seed in range(PROCESSES)))
        seen, looks = await tail(store, until=writing)
        told = await writing

    # 1..N without a gap, as it was read and as it stands now.
    assert [row.position for row in seen] == list(range(1, len(seen) + 1))
    assert len(seen) == await store.head()
    assert (await store.read(0, len(seen) + 1))[0] == seen

    # Per stream the versions are 1, 2, 3, …: nothing that failed left a hole or a trace.
    by_stream = sorted(seen, key=lambda row: (row.stream_id, row.position))
    for _, rows in groupby(by_stream, key=lambda row: row.stream_id):
        versions = [row.version for row in rows]
        assert versions == list(range(1, len(versions) + 1))

    # What was acknowledged is where the writer was told.
    places = {(row.position, row.stream_id, row.version) for row in seen}
    for each in told:
        assert places.issuperset(each.acknowledged)
        assert min(len(each.acknowledged), each.conflicts, each.failed, each.rolled_back) > 0
    assert looks > 50, "it did not tail, it came afterwards"
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        assert await broken_blocks(connection) == []


async def tail(store: EventStore, *, until: asyncio.Future[list[Told]]) -> tuple[list[RecordedRow], int]:
    """Everything read up to the end of the log once `until` is done, and in how many looks that found something."""
    seen: list[RecordedRow] = []
    position, looks = 0, 0
    while True:
        is_last = until.done()
        rows, reached = await store.read(position, 50)
        seen += rows
        looks += bool(rows)
        if reached == position and is_last:
            return seen, looks
        position = reached
