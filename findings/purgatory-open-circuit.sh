#!/usr/bin/env bash
# purgatory 3.0.1. Needs Python 3.11 or later.
#
# Three things about the circuit breaker under load:
# - An open circuit raises its own state: one exception object for all rejections of an outage. Each raise adds frames
#   to its traceback, so it grows with the number of rejections, keeps the locals of every rejected call alive, and
#   logs an ever longer trace.
# - A half-open circuit lets every caller through at once, not one to try: the recovering server gets the full load.
# - A cancelled caller (a client that hung up, a timeout around the call) counts as a failure of the server.
#
# Seen:
#   100 rejections: 1 exception object, frames in its traceback from 6 to 600
#   half-open: 50 of 50 callers inside at once
#   after 3 cancelled callers: opened
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install purgatory==3.0.1
python <<'PYTHON'
import asyncio
import traceback
from contextlib import suppress

from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

THRESHOLD = 3


async def main():
    factory = AsyncCircuitBreakerFactory(default_threshold=THRESHOLD, default_ttl=3600)

    async def call(name, work):
        async with await factory.get_breaker(name):
            await work()

    async def fail():
        raise ConnectionError

    await factory.get_breaker("recovering", ttl=0.1)
    for _ in range(THRESHOLD):
        for name in ("mail", "recovering"):
            with suppress(ConnectionError):
                await call(name, fail)
    rejections, depths = set(), []
    for _ in range(100):
        try:
            await call("mail", fail)
        except OpenedState as error:
            rejections.add(id(error))
            depths.append(sum(1 for _ in traceback.walk_tb(error.__traceback__)))
    print(f"100 rejections: {len(rejections)} exception object, frames in its traceback from {depths[0]} to {depths[-1]}")
    assert len(depths) == 100
    assert len(rejections) == 1
    assert depths[-1] > 100

    await asyncio.sleep(0.3)
    inside, proceed = [], asyncio.Event()

    async def enter():
        inside.append(1)
        await proceed.wait()

    callers = [asyncio.create_task(call("recovering", enter)) for _ in range(50)]
    await asyncio.sleep(0.5)
    print(f"half-open: {len(inside)} of {len(callers)} callers inside at once")
    assert len(inside) == len(callers)
    proceed.set()
    await asyncio.gather(*callers)

    for _ in range(THRESHOLD):
        caller = asyncio.create_task(call("other", asyncio.Event().wait))
        await asyncio.sleep(0.05)
        caller.cancel()
        with suppress(asyncio.CancelledError):
            await caller
    state = (await factory.get_breaker("other")).context.state
    print(f"after {THRESHOLD} cancelled callers: {state}")
    assert state == "opened"


asyncio.run(main())
PYTHON
echo "still so"
