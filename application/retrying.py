"""Two kinds of retry: a decision that lost a race, and the world that was away. Neither costs a first try anything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying

from application.ports.errors import Conflict, Outdated

T = TypeVar("T")

AT_ONCE = 10
"""How many races a fact may lose before it is decided again only after a pause; nobody is seen to lose so many, except
through a bug, which must not keep a processor busy."""

MAX_PAUSE = 1.0
"""Seconds; the pauses before it double from a hundredth of one."""


async def with_retries(work: Callable[[], Awaitable[T]], retrying: Callable[[], AsyncRetrying]) -> T:
    """Like `retrying()(work)`, but tenacity is used only once the first attempt has failed, and is given that failure.

    Failures are rare, and tenacity's objects took a twentieth of the CPU time of a process that sends mail (measured).
    """
    try:
        return await work()
    except Exception as error:  # noqa: BLE001 - passed to tenacity, which knows what to raise
        failed = [error]

    async def attempt() -> T:
        if failed:
            raise failed.pop()
        return await work()

    return await retrying()(attempt)


async def decided_again(decide: Callable[[], Awaitable[T]], losses: float) -> T:
    """Decide, and again after each conflict, at most `losses` times; from `AT_ONCE` conflicts on after a pause.

    Raises:
        Conflict: it has lost once more than that, or is `Outdated`.
    """
    lost = 0
    pause = 0.01
    while True:
        try:
            return await decide()
        except Outdated:
            raise
        except Conflict:
            lost += 1
            if lost > losses:
                raise
        if lost >= AT_ONCE:
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)
