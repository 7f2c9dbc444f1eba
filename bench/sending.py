"""Calls of an endpoint as fast as it takes them, in a process of its own: `python -m bench.sending '{"what": …}'`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import httpx
import uvloop

from entrypoints.cli.garbage_collection import collect_rarely, keep_what_is_there
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers.leadership import LeaderSession
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import connect
from infrastructure.postgres.notifications import Notifications
from infrastructure.settings.addresses import Reachable
from infrastructure.settings.webhooks import WebhookEndpoint
from infrastructure.webhooks import records
from infrastructure.webhooks.calls import Calls
from infrastructure.webhooks.delivery import AT_ONCE
from infrastructure.webhooks.follower import Webhooks

SECRET = bytes(range(32))
SETTING = f"whsec_{b64encode(SECRET).decode()}"
_LOOPBACK = Reachable((ip_network("127.0.0.0/8"),))
_ID = "019cab10-0000-7000-8000-000000000001-4711"
_BODY = json.dumps(
    {
        "specversion": "1.0",
        "id": _ID,
        "source": "/registrar",
        "type": "registrar.registration.verified.v1",
        "subject": _ID[:36],
        "time": "2026-03-01T12:00:00Z",
        "datacontenttype": "application/json",
        "correlationid": _ID[:36],
        "data": {"registration_id": _ID[:36], "position": 4711},
    }
).encode()


async def follow(port: int, dsn: str, messages: int) -> dict[str, float]:
    """Everything in the log, by the follower, as `registrar process` runs it."""
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    notifications = Notifications(dsn)
    taken, done = 0, asyncio.Event()

    def note(_: str) -> None:
        nonlocal taken
        taken += 1
        if taken >= messages:
            done.set()

    webhooks = Webhooks(
        tail=LogTail(store),
        notifications=notifications,
        endpoints={"app": _calls(port)},
        clock=DatabaseClock(),
        on_attempt=note,
    )
    async with await connect(dsn, name="bench", statement_timeout=timedelta(seconds=10)) as connection:
        await records.begin(connection, ["app"])
        await records.replay(connection, "app", 1)
        listening = asyncio.create_task(notifications.run())
        keep_what_is_there()
        begun, cpu = time.perf_counter(), time.process_time()
        following = asyncio.create_task(webhooks.work(LeaderSession(connection)))
        await done.wait()
        used, took = time.process_time() - cpu, time.perf_counter() - begun
        for task in (following, listening):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    await store.close()
    return {"rate": taken / took, "cpu": used / taken}


async def bare(port: int, messages: int) -> dict[str, float]:
    """Our client, as many callers at once: no log, no order, no position."""
    calls = _calls(port)
    return await _closed_loop(lambda: calls.post(_ID, _BODY), messages)


async def plain(port: int, messages: int) -> dict[str, float]:
    """httpx, with the same head, and no signature."""
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:

        async def post() -> None:
            answer = await client.post(
                f"http://127.0.0.1:{port}/hook",
                content=_BODY,
                headers={"content-type": "application/cloudevents+json", "webhook-id": _ID},
            )
            assert answer.status_code == 204

        return await _closed_loop(post, messages)


async def _closed_loop(post: Callable[[], Awaitable[None]], messages: int) -> dict[str, float]:
    async def call(times: int) -> None:
        for _ in range(times):
            await post()

    await asyncio.gather(*(call(2) for _ in range(AT_ONCE)))  # the connections are there
    keep_what_is_there()
    each = messages // AT_ONCE
    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call(each) for _ in range(AT_ONCE)))
    done = each * AT_ONCE
    return {"rate": done / (time.perf_counter() - begun), "cpu": (time.process_time() - cpu) / done}


def _calls(port: int) -> Calls:
    return Calls(WebhookEndpoint("app", f"http://127.0.0.1:{port}/hook", (SECRET,), ()), _LOOPBACK)


async def _main(job: dict[str, Any]) -> dict[str, float]:
    match job.pop("what"):
        case "follow":
            return await follow(**job)
        case "bare":
            return await bare(**job)
    return await plain(**job)


if __name__ == "__main__":
    collect_rarely()
    print(json.dumps(uvloop.run(_main(json.loads(sys.argv[1])))))
