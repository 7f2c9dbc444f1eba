"""Appends to a log that has a past, and how far the read model lags behind them, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import timedelta
from typing import Any

import uvloop

from application.ports import Context
from bench.folding import ours as fold
from bench.history import registered, registration_id
from bench.report import percentile
from entrypoints.cli.garbage_collection import collect_rarely, keep_what_is_there
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers.leadership import LeaderSession
from infrastructure.followers.projector import Projector
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import connect
from infrastructure.postgres.notifications import Notifications
from projections.registrations import Registrations

CALLERS = 64
APPENDS = 12_000
"""In the closed loop: enough for most of a second, few enough that the short log stays a short one."""

RATE = 50.0


async def measure(dsn: str, first: int, looks: int) -> dict[str, Any]:
    """First appends in a closed loop, then, at a calm rate (open loop), the read model's lag after each append."""
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    notifications = Notifications(dsn)
    projector = Projector(Registrations(), store=LogTail(store), notifications=notifications)
    numbers = iter(range(first, first + 10**9))

    async def append() -> int:
        number = next(numbers)
        return await store.append_stored(
            [(event, Context("client", registration_id(number))) for event in registered(number)]
        )

    async def call(times: int) -> None:
        for _ in range(times):
            await append()

    await asyncio.gather(*(call(5) for _ in range(CALLERS)))  # warm
    started = time.perf_counter()
    await asyncio.gather(*(call(APPENDS // CALLERS) for _ in range(CALLERS)))
    rate = (APPENDS // CALLERS) * CALLERS / (time.perf_counter() - started)

    lags: list[float] = []
    appends: list[float] = []
    lateness: list[float] = []

    async def look(planned: float) -> None:
        begun = time.perf_counter()
        position = await append()
        appended = time.perf_counter()
        await notifications.wait_past(Registrations.name, position - 1)
        lags.append(time.perf_counter() - appended)
        appends.append(appended - begun)
        lateness.append(begun - planned)

    async with await connect(dsn, name="fold", statement_timeout=timedelta(seconds=10)) as connection:
        works = [
            asyncio.create_task(projector.work(LeaderSession(connection))),
            asyncio.create_task(notifications.run()),
        ]
        await notifications.wait_past(Registrations.name, await store.head() - 1, within=timedelta(seconds=60))
        begun = time.perf_counter() + 0.5
        tasks = []
        for number in range(looks):
            planned = begun + number / RATE
            await asyncio.sleep(max(0.0, planned - time.perf_counter()))
            tasks.append(asyncio.create_task(look(planned)))
        await asyncio.gather(*tasks)
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
    await store.close()
    return {
        "rate": rate,
        "lag p50": percentile(sorted(lags), 0.5),
        "lag p99": percentile(sorted(lags), 0.99),
        "lone append p50": percentile(sorted(appends), 0.5),
        "lateness p99": percentile(sorted(lateness), 0.99),
    }


def main() -> None:
    """Arguments in and outcome out as JSON."""
    job = json.loads(sys.argv[1])
    collect_rarely()  # as the service does
    keep_what_is_there()
    if job["what"] == "fold":
        print(json.dumps({"seconds": uvloop.run(fold(job["dsn"]))}))
    else:
        print(json.dumps(uvloop.run(measure(job["dsn"], job["first"], job["looks"]))))


if __name__ == "__main__":
    main()
