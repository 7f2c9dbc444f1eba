"""Batcher: gathers callers' items while a batch is under way, and handles them together in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from datetime import timedelta
from typing import Generic, TypeVar

from application.ports import Overloaded, Unavailable
from infrastructure.postgres.patience import LONGEST, current

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_TIMEOUT = LONGEST
"""A batch that takes longer is stuck: callers behind it fail at once rather than wait (docs/reliability.md, B1, B8)."""

LOOK_EVERY = timedelta(milliseconds=100)
"""How often it is looked whose patience is over, while a batch takes longer than that."""


class Batcher(Generic[Item, Result]):
    """Turns many concurrent calls for one item each into few calls for many items.

    A lone item goes at once; a batch fills while the previous one is under way and, where there is a pace, for a moment
    after it. Order is kept. At most one batch is under way at any time.

    No request waits for longer than its patience lasts (`infrastructure.postgres.patience`). Once a batch was stuck,
    whether the next one gets an answer is tried with a single item, while all others fail at once.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        name: str,
        max_batch: int,
        max_waiting: int,
        weigh: Callable[[Item], int] = lambda _: 1,
        on_batch: Callable[[int], None] = lambda _: None,
        patience: timedelta = BATCH_TIMEOUT,
        pace: timedelta = timedelta(0),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            run: handles a batch; returns a result or an exception for each item, in order. If it raises, every item of
                the batch fails with that.
            max_batch: maximum weight of a batch (a single heavier item goes alone).
            max_waiting: items that may wait; beyond it callers get `Overloaded`.
            weigh: weight of an item.
            on_batch: called with the number of items of every batch.
            patience: how long a batch may take. While one takes longer, waiting and new items are refused at once.
            pace: minimum time from the end of a batch to the start of the next one, for callers that can wait: few
                large batches take less time overall than many small ones.
            sleep: waits, in seconds.
        """
        self._run = run
        self._name = name
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._weigh = weigh
        self._on_batch = on_batch
        self._patience = patience.total_seconds()
        self._pace = pace.total_seconds()
        self._sleep = sleep
        self._next_at = 0.0
        self._stuck = False
        self._suspect = False
        # In order; O(1) to remove a cancelled caller's item. With it, until when its caller waits.
        self._waiting: dict[asyncio.Future[Result], tuple[Item, float]] = {}
        self._under_way: asyncio.Future[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Items that are not under way yet."""
        return len(self._waiting)

    @property
    def stuck(self) -> bool:
        """Has the batch under way taken longer than `patience`?"""
        return self._stuck

    async def do(self, item: Item) -> Result:
        """Handle the item in the next batch.

        If the caller is cancelled, its item is withdrawn while it still waits; otherwise it is handled all the same.

        Raises:
            Overloaded: too many items are waiting; it was not handled.
            Unavailable: the batcher was closed, or a batch is stuck; it was not handled. Or the caller's patience is
                over; then it may be handled yet if it was under way.
            Exception: what `run` returned or raised for this item.
        """
        if self._closed:
            raise Unavailable(f"{self._name} is shutting down")
        if self._stuck or (self._suspect and (self._waiting or self._under_way is not None)):
            raise Unavailable(f"{self._name} gets no answer")
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{self._name}: {self._max_waiting} are waiting already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        patience, since = current(), loop.time()
        self._waiting[future] = item, since + patience.left
        if self._worker is None:
            # Not in the context of whoever comes first: its log lines are about all of a batch.
            self._worker = asyncio.create_task(self._work(), name=f"{self._name} batches", context=Context())
        try:
            return await future
        finally:
            patience.left -= loop.time() - since
            self._waiting.pop(future, None)

    async def settled(self) -> None:
        """Return when everything that was accepted up to now has been handled, one way or the other."""
        accepted = [*self._waiting]
        await self._batch_ended()
        if accepted:
            await asyncio.wait(accepted)
        await self._batch_ended()  # what it holds of callers who have left is handled, too

    async def _batch_ended(self) -> None:
        if self._under_way is not None:
            await asyncio.wait({self._under_way})

    async def close(self) -> None:
        """Refuse new items; finish those that were accepted."""
        self._closed = True
        if self._worker is not None:
            await asyncio.wait({self._worker})  # unlike `await`, leaves it alone when we are cancelled

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if (rest := self._next_at - loop.time()) > 0:
                    await self._sleep(rest)
                batch = self._take()
                if batch:
                    await self._resolve(batch)
                    self._next_at = loop.time() + self._pace
        finally:
            self._worker = None
            for future in self._waiting:  # none, unless the worker itself was cancelled
                future.cancel()

    def _take(self) -> list[tuple[Item, asyncio.Future[Result], float]]:
        batch: list[tuple[Item, asyncio.Future[Result], float]] = []
        seen = []
        weight = 0
        for future, (item, until) in self._waiting.items():
            if not future.done():  # otherwise its caller was cancelled a moment ago
                weight += self._weigh(item)
                if batch and weight > self._max_batch:
                    break
                batch.append((item, future, until))
            seen.append(future)
        for future in seen:
            del self._waiting[future]
        return batch

    def _look(self, batch: Sequence[tuple[Item, asyncio.Future[Result], float]], stuck_at: float) -> None:
        """The batch takes its time: let go of those whose patience is over and, once it is stuck, of all behind it."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._alarm = loop.call_later(LOOK_EVERY.total_seconds(), self._look, batch, stuck_at)
        for _, future, until in batch:
            if now >= until and not future.done():
                future.set_exception(Unavailable(f"{self._name} gets no answer; whether it was done is unknown"))
        self._stuck = self._stuck or now >= stuck_at
        self._suspect = self._suspect or self._stuck
        for future, (_, until) in self._waiting.items():
            if (self._stuck or now >= until) and not future.done():
                future.set_exception(Unavailable(f"{self._name} gets no answer"))

    async def _resolve(self, batch: list[tuple[Item, asyncio.Future[Result], float]]) -> None:
        results: list[Result | Exception]
        loop = asyncio.get_running_loop()
        first_look = min(LOOK_EVERY.total_seconds(), self._patience)
        self._alarm = loop.call_later(first_look, self._look, batch, loop.time() + self._patience)
        under_way = self._under_way = loop.create_future()
        try:
            self._on_batch(len(batch))
            found = await self._run([item for item, _, _ in batch])
            results = [result for result, _ in zip(found, batch, strict=True)]
        except Exception as error:  # noqa: BLE001 - not swallowed: every caller gets it
            results = [error] * len(batch)
        except BaseException:
            for _, future, _ in batch:
                future.cancel()
            raise
        finally:
            self._alarm.cancel()
            self._stuck = False
            self._under_way = None
            under_way.set_result(None)
        if not all(isinstance(result, Unavailable) for result in results):
            self._suspect = False
        for (_, future, _), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
