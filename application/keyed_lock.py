"""One at a time for each key, within this process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

T = TypeVar("T")


class KeyedLock:
    """Lets work on the same key run one after the other, in the order in which it came.

    Only a courtesy: the store's versions keep order across processes. But a hundred callers who push the same button
    here would otherwise spend their retries against each other.
    """

    def __init__(self) -> None:
        self._queues: dict[UUID, deque[asyncio.Future[None]]] = {}

    async def run(self, key: UUID, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work once nothing else runs under this key."""
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque()
        else:
            turn = asyncio.get_running_loop().create_future()
            queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was given to us while we were called off
                    self._pass_on(key)
                raise
        try:
            return await work()
        finally:
            self._pass_on(key)

    def _pass_on(self, key: UUID) -> None:
        queue = self._queues[key]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._queues[key]
