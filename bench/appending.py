"""Callers who append one registration's three events, over and over, in a process of their own: ours or the
library's."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import timedelta
from threading import Barrier, Thread
from typing import Any

import uvloop
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg.conninfo import conninfo_to_dict

from application.ports import Context
from bench.history import gone_well, registered, registration_id
from bench.report import percentile
from entrypoints.cli.garbage_collection import collect_rarely, keep_what_is_there
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock

_WARM_UP = 0.5


async def ours(job: dict[str, Any]) -> list[float]:
    """Every caller is a task; answers each append's seconds."""
    store = EventStore(job["dsn"], codec=EventCodec(), clock=DatabaseClock(), statement_timeout=timedelta(seconds=30))
    await store.open()
    taken: list[float] = []
    numbers = iter(range(job["first"], job["first"] + 10**9))
    begun = time.perf_counter() + _WARM_UP
    end = begun + job["seconds"]

    async def call() -> None:
        while True:
            number = next(numbers)
            context = Context("client", registration_id(number))
            entries = [(event, context) for event in registered(number)]
            started = time.perf_counter()
            if started >= end:
                return
            await store.append_stored(entries)
            if started >= begun:
                taken.append(time.perf_counter() - started)

    await asyncio.gather(*(call() for _ in range(job["callers"])))
    await store.close()
    return taken


async def steady(job: dict[str, Any]) -> list[float]:
    """As many registrations a second as are asked for, from sign-up to account; answers each append's seconds."""
    store = EventStore(job["dsn"], codec=EventCodec(), clock=DatabaseClock(), statement_timeout=timedelta(seconds=30))
    await store.open()
    taken: list[float] = []

    async def register(number: int) -> None:
        context = Context("client", registration_id(number))
        story = [(event, context) for event in gone_well(number)]
        asked_for = len(registered(number))
        for entries in (story[:asked_for], story[asked_for:]):
            started = time.perf_counter()
            await store.append_stored(entries)
            taken.append(time.perf_counter() - started)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for count in range(int(job["rate"] * job["seconds"])):
            await asyncio.sleep(begun + count / job["rate"] - time.perf_counter())
            group.create_task(register(job["first"] + count))
    await store.close()
    return taken


def stock(job: dict[str, Any]) -> list[float]:
    """Every caller is a thread with a connection of its own; answers each append's seconds."""
    to = conninfo_to_dict(job["dsn"])
    callers = job["callers"]
    taken: list[float] = []
    with PostgresDatastore(
        str(to["dbname"]), str(to["host"]), int(to["port"] or 0), str(to["user"]), "",
        pool_size=callers, max_waiting=callers, connect_timeout=30,
    ) as datastore:  # fmt: skip
        recorder = PostgresApplicationRecorder(datastore)
        recorder.create_table()
        ready = Barrier(callers + 1)
        span = [0.0, 0.0]

        def call(caller: int) -> None:
            number = job["first"] + caller
            ready.wait()
            while True:
                events: list[StoredEvent] = registered(number)
                number += callers
                started = time.perf_counter()
                if started >= span[1]:
                    return
                recorder.insert_events(events)
                if started >= span[0]:
                    taken.append(time.perf_counter() - started)

        threads = [Thread(target=call, args=(caller,)) for caller in range(callers)]
        for thread in threads:
            thread.start()
        span[0] = time.perf_counter() + _WARM_UP
        span[1] = span[0] + job["seconds"]
        ready.wait()
        for thread in threads:
            thread.join()
    return taken


def main() -> None:
    """Arguments in and outcome out as JSON."""
    job = json.loads(sys.argv[1])
    collect_rarely()  # as the service does, for both sides
    keep_what_is_there()
    match job["who"]:
        case "ours":
            taken = sorted(uvloop.run(ours(job)))
        case "steady":
            taken = sorted(uvloop.run(steady(job)))
        case _:
            taken = sorted(stock(job))
    rate = len(taken) / job["seconds"]
    print(json.dumps({"rate": rate, "p50": percentile(taken, 0.5), "p99": percentile(taken, 0.99)}))


if __name__ == "__main__":
    main()
