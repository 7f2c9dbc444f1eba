"""Batcher: gathers what callers ask for while the last batch is under way, and does it in one go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Generic, TypeVar

from application.ports import Overloaded, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = timedelta(seconds=2)
"""A batch that takes longer is stuck: who waits behind it is better told so than kept (docs/reliability.md, B1, B8)."""


class Batcher(Generic[Item, Result]):
    """Turns many concurrent single calls into few calls for many.

    A lone item goes at once, and batches fill by themselves while the one before is under way and, where there is a pace,
    for a moment after it. Order is kept. At most one batch is under way at any time.
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
        patience: timedelta = PATIENCE,
        pace: timedelta = timedelta(0),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            run: does a batch; answers a result or an exception for each item, in order. If it raises, every item of
                the batch fails with that.
            max_batch: greatest weight of a batch (a single heavier item goes alone).
            max_waiting: items that may wait; beyond it callers get `Overloaded`.
            weigh: weight of an item.
            on_batch: told the number of items of every batch.
            patience: for a batch. While one takes longer, whoever waits behind it or comes is refused at once.
            pace: from the end of a batch to the begin of the next one; for those whom a later answer costs nothing, as
                few large batches take less of everybody's time than many small ones.
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
        self._waiting: dict[asyncio.Future[Result], Item] = {}  # in order; O(1) for a caller that goes
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Items that are not under way yet."""
        return len(self._waiting)

    @property
    def stuck(self) -> bool:
        """Has the batch under way had no answer for longer than our patience?"""
        return self._stuck

    async def do(self, item: Item) -> Result:
        """Have the item done in the next batch.

        A caller that is cancelled takes its item back if it is still waiting; otherwise it is done all the same.

        Raises:
            Overloaded: too many items are waiting; it was not done.
            Unavailable: the batcher was closed, or a batch is stuck; it was not done.
            Exception: whatever `run` answered for this item.
        """
        if self._closed:
            raise Unavailable(f"{self._name} is shutting down")
        if self._stuck:
            raise Unavailable(f"{self._name} gets no answer")
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{self._name}: {self._max_waiting} are waiting already")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting[future] = item
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name=f"{self._name} batches")
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    async def close(self) -> None:
        """Refuse new items; finish those that were taken."""
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
                    await self._settle(batch)
                    self._next_at = loop.time() + self._pace
        finally:
            self._worker = None
            for future in self._waiting:  # none, unless the worker itself was cancelled
                future.cancel()

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        seen = []
        weight = 0
        for future, item in self._waiting.items():
            if not future.done():  # else its caller is just going
                weight += self._weigh(item)
                if batch and weight > self._max_batch:
                    break
                batch.append((item, future))
            seen.append(future)
        for future in seen:
            del self._waiting[future]
        return batch

    def _refuse(self) -> None:
        """The batch under way is stuck: nobody is to wait for it who need not."""
        self._stuck = True
        for future in self._waiting:
            if not future.done():
                future.set_exception(Unavailable(f"{self._name} gets no answer"))

    async def _settle(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        answers: list[tuple[tuple[Item, asyncio.Future[Result]], Result | Exception]]
        alarm = asyncio.get_running_loop().call_later(self._patience, self._refuse)
        try:
            self._on_batch(len(batch))
            answers = list(zip(batch, await self._run([item for item, _ in batch]), strict=True))
        except Exception as error:  # noqa: BLE001 - not swallowed: it is every caller's answer
            answers = [(entry, error) for entry in batch]
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        finally:
            alarm.cancel()
            self._stuck = False
        for (_, future), answer in answers:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
