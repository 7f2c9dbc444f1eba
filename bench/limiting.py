"""The limits' own time for a registration, in a process of its own: `python -m bench.limiting '{"url": …}'`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import uvloop
from starlette.types import Scope

from bench.report import percentile
from entrypoints.api.limits import REGISTERING, RequestLimits
from infrastructure.crypto.keyring import Keyring
from infrastructure.limits.gcra import Limiter, LocalLimiter
from infrastructure.limits.shared import SharedLimiter
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.metrics import Metrics

EVERYTHING_PASSES = ", ".join(
    f"{limit.name}=1000000/1s burst 1000000 on" for limit in Settings.from_environment({}).limits
)
"""All limits count, and none refuses."""

TOGETHER = 64
"""Requests that are under way at once, as in the measurement of registrations."""


async def measure(*, url: str | None, decisions: int) -> dict[str, float]:
    """Seconds of a decision about the five limits of a registration, one after the other; CPU seconds with many at
    once.

    Args:
        url: of Redis; None: counted in this process.
    """
    async with AsyncExitStack() as stack:
        limiter: Limiter = LocalLimiter()
        if url is not None:
            limiter = shared = SharedLimiter(url)
            stack.push_async_callback(shared.close)
        limits = RequestLimits(
            Settings.from_environment({"REGISTRAR_LIMITS": EVERYTHING_PASSES}).limits,
            limiter,
            hashed=str if url is None else Keyring(master_key=bytes(32), root_secret=bytes(32)).limited,
            metrics=Metrics(),
        )

        async def decide(number: int) -> float:
            scope: Scope = {"type": "http", "client": (f"192.0.{number >> 8 & 255}.{number & 255}", 1), "headers": []}
            begun = time.perf_counter()
            await limits.registration(limits.requester(scope, REGISTERING), f"somebody-{number}@bench.example")
            return time.perf_counter() - begun

        async def several(first: int) -> None:
            for number in range(first, decisions, TOGETHER):
                await decide(number)

        for number in range(decisions // 10):
            await decide(number)
        took = sorted([await decide(number) for number in range(decisions)])
        cpu = time.process_time()
        await asyncio.gather(*(several(first) for first in range(TOGETHER)))
        cpu = time.process_time() - cpu
    return {"p50": percentile(took, 0.5), "p99": percentile(took, 0.99), "cpu, 64 together": cpu / decisions}


if __name__ == "__main__":
    job: dict[str, Any] = json.loads(sys.argv[1])
    print(json.dumps(uvloop.run(measure(**job))))
