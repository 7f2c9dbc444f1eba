"""A lock per key, within this process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

T = TypeVar("T")


class KeyedLock:
    """Runs work on the same key one at a time, first come, first served.

    Only an optimisation: the store's versions decide between processes. But a hundred callers in this process with the
    same key would otherwise use up their retries against each other.
    """

    def __init__(self) -> None:
        self._queues: dict[int, deque[asyncio.Future[None]]] = {}  # a UUID's hash is computed in Python

    async def run(self, key_id: UUID, work: Callable[[], Awaitable[T]]) -> T:
        """Run the work once no other work runs under this key."""
        key = key_id.int
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque()
        else:
            turn = asyncio.get_running_loop().create_future()
            queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # the lock was passed to this task while it was being cancelled
                    self._pass_on(key)
                raise
        try:
            return await work()
        finally:
            self._pass_on(key)

    def _pass_on(self, key: int) -> None:
        queue = self._queues[key]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._queues[key]
