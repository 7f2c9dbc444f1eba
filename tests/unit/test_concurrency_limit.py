"""The concurrency limit: as many calls at once as the other side takes, and none that waits is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from infrastructure.mail.concurrency_limit import MOST_RAISE_AFTER, RAISE_AFTER, ConcurrencyLimit
from tests.support.facts import eventually


class Calls:
    """Calls that wait for their turn, and take it until they are let go.

    Attributes:
        begun: their numbers, in the order in which their turns came.
    """

    def __init__(self, limit: ConcurrencyLimit) -> None:
        self.begun: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._limit = limit
        self._let_go: list[asyncio.Event] = []

    def begin(self, count: int) -> None:
        for number in range(len(self.tasks), len(self.tasks) + count):
            self._let_go.append(asyncio.Event())
            self.tasks.append(asyncio.create_task(self._call(number)))

    async def _call(self, number: int) -> None:
        async with self._limit:
            self.begun.append(number)
            await self._let_go[number].wait()

    def let_go(self, *numbers: int) -> None:
        for number in numbers:
            self._let_go[number].set()

    async def until_begun(self, *numbers: int) -> None:
        await eventually(lambda: self.begun == list(numbers), within=5)

    async def until_waiting(self, count: int) -> None:
        await eventually(lambda: self._limit.waiting == count, within=5)


async def refuse(limit: ConcurrencyLimit) -> None:
    async with limit as generation:
        limit.refused(generation)


async def succeed(limit: ConcurrencyLimit, *, taking: int = 1, times: int = 1, took: float = 0.0) -> None:
    """Calls that succeed, each while so many are in flight, itself included.

    Args:
        took: seconds, as far as the limit is told.
    """
    for _ in range(times):
        async with AsyncExitStack() as others:
            for _ in range(taking - 1):
                await others.enter_async_context(limit)
            async with limit as generation:
                limit.succeeded(generation, took)


async def in_rounds(limit: ConcurrencyLimit, *, takes: Callable[[int], float]) -> int:
    """Calls at the limit until it changes, or may not change any more; returns it.

    Args:
        takes: seconds of a call, by how many are in flight.
    """
    before = limit.limit
    for _ in range(3 * RAISE_AFTER):
        if limit.limit == before:
            await succeed(limit, taking=before, took=takes(before))
    return limit.limit


async def test_the_call_that_comes_first_is_let_in_first() -> None:
    limit = ConcurrencyLimit(2)
    calls = Calls(limit)
    calls.begin(5)
    await calls.until_waiting(3)

    calls.let_go(1)
    await calls.until_begun(0, 1, 2)
    calls.let_go(0, 2, 3, 4)
    await asyncio.gather(*calls.tasks)

    assert calls.begun == [0, 1, 2, 3, 4]
    assert limit.in_flight == 0


async def test_a_call_that_gives_up_waiting_takes_no_turn_with_it() -> None:
    limit = ConcurrencyLimit(1)
    calls = Calls(limit)
    calls.begin(4)
    await calls.until_waiting(3)

    calls.tasks[1].cancel()
    calls.let_go(0)
    await calls.until_begun(0, 2)
    calls.let_go(2)
    calls.tasks[3].cancel()
    await asyncio.gather(*calls.tasks, return_exceptions=True)

    async with limit:
        assert limit.in_flight == 1
    assert limit.in_flight == 0


async def test_a_call_that_gives_up_when_its_turn_has_come_passes_it_on() -> None:
    limit = ConcurrencyLimit(1)
    calls = Calls(limit)
    await limit.__aenter__()
    calls.begin(2)
    await calls.until_waiting(2)

    await limit.__aexit__()
    calls.tasks[0].cancel()

    await calls.until_begun(1)
    calls.let_go(1)
    await asyncio.gather(*calls.tasks, return_exceptions=True)
    assert limit.in_flight == 0


async def test_refusals_at_one_moment_halve_the_limit_once() -> None:
    limits: list[int] = []
    limit = ConcurrencyLimit(8, on_change=limits.append)
    async with AsyncExitStack() as calls:
        generations = [await calls.enter_async_context(limit) for _ in range(8)]
        for generation in generations:
            limit.refused(generation)
        assert limit.limit == 4

    await refuse(limit)
    assert limits == [8, 4, 2]


async def test_no_call_is_let_in_until_fewer_are_in_flight_than_the_limit_is_now() -> None:
    limit = ConcurrencyLimit(4)
    calls = Calls(limit)
    generation = await limit.__aenter__()
    calls.begin(5)
    await calls.until_waiting(2)

    limit.refused(generation)
    await limit.__aexit__()
    calls.let_go(0)
    await eventually(lambda: limit.in_flight == 2, within=5)
    assert calls.begun == [0, 1, 2]

    calls.let_go(1, 2, 3, 4)
    await asyncio.gather(*calls.tasks)
    assert calls.begun == [0, 1, 2, 3, 4]


async def test_calls_that_succeed_at_the_limit_raise_it_by_one_up_to_the_most() -> None:
    limit = ConcurrencyLimit(2)
    await refuse(limit)

    await succeed(limit, times=RAISE_AFTER - 1)
    assert limit.limit == 1
    await succeed(limit)
    assert limit.limit == 2

    await succeed(limit, taking=2, times=3 * RAISE_AFTER)
    assert limit.limit == 2


async def test_calls_that_succeed_below_the_limit_prove_nothing_about_more() -> None:
    limit = ConcurrencyLimit(8)
    await refuse(limit)
    await succeed(limit, taking=3, times=3 * RAISE_AFTER)
    assert limit.limit == 4


async def test_calls_from_before_the_refusal_prove_nothing_after_it() -> None:
    limit = ConcurrencyLimit(2)
    async with limit as early:
        await refuse(limit)
        for _ in range(RAISE_AFTER):
            limit.succeeded(early)
    assert limit.limit == 1


async def test_one_at_a_time_is_always_allowed() -> None:
    limits: list[int] = []
    limit = ConcurrencyLimit(3, on_change=limits.append)
    for _ in range(5):
        await refuse(limit)
    assert limits == [3, 1]
    await succeed(limit, times=RAISE_AFTER)
    assert limits == [3, 1, 2]


async def test_the_limit_doubles_with_each_round_until_the_first_refusal() -> None:
    limit = ConcurrencyLimit(32, start=4)
    assert limit.limit == 4
    await in_rounds(limit, takes=lambda _: 0.1)
    assert limit.limit == 8
    await in_rounds(limit, takes=lambda _: 0.1)
    assert limit.limit == 16

    await refuse(limit)
    assert limit.limit == 8
    await succeed(limit, taking=8, times=RAISE_AFTER - 1)
    assert limit.limit == 8
    await succeed(limit, taking=8)
    assert limit.limit == 9


@pytest.mark.parametrize(("busy_with", "settles_at"), [(1, 4), (4, 4), (8, 8), (16, 16), (24, 32), (32, 32)])
async def test_the_limit_is_doubled_only_while_that_brings_more_calls_a_second(busy_with: int, settles_at: int) -> None:
    limits: list[int] = []
    limit = ConcurrencyLimit(32, start=4, on_change=limits.append)
    for _ in range(90):  # it is not tried again yet
        await succeed(limit, taking=limit.limit, took=max(1.0, limit.limit / busy_with))
    assert limit.limit == settles_at, limits


async def test_where_doubling_brought_nothing_it_is_tried_again_later_and_later() -> None:
    limit, calls = ConcurrencyLimit(32, start=4), 0
    tried: list[int] = []
    while len(tried) < 6:
        before = limit.limit
        await succeed(limit, taking=before, took=float(before))
        calls += 1
        if limit.limit > before:
            tried.append(calls)
    waits = [later - earlier for earlier, later in pairwise(tried)]
    assert waits == sorted(waits)
    assert 4 * RAISE_AFTER <= waits[0] < waits[-1] <= MOST_RAISE_AFTER + 100

    while limit.limit < 32:  # the server has become as fast as it may be
        await succeed(limit, taking=limit.limit, took=1.0)


async def test_who_may_have_no_more_is_not_put_back() -> None:
    limit = ConcurrencyLimit(4, start=4)
    for number in range(100):
        await succeed(limit, taking=4, took=float(number))
    assert limit.limit == 4


async def test_when_it_is_known_how_many_calls_work_the_limit_is_that_many() -> None:
    limit = ConcurrencyLimit(32)
    async with limit as generation:
        limit.refused(generation, works=10)
        limit.refused(generation, works=3)
    assert limit.limit == 10, "what is refused at the same time counts once"


async def test_each_attempt_to_raise_it_that_fails_makes_the_next_one_come_later() -> None:
    limit, waits = ConcurrencyLimit(32), []
    async with limit as generation:
        limit.refused(generation, works=10)
    for _ in range(9):
        took = 0
        while limit.limit == 10:
            await succeed(limit, taking=10)
            took += 1
        waits.append(took)
        async with limit as generation:
            limit.refused(generation, works=10)
    assert waits == sorted(waits)
    assert waits[0] < waits[-1] == MOST_RAISE_AFTER

    while limit.limit < 32:  # and: it comes sooner again where they succeed
        await succeed(limit, taking=limit.limit)
    assert limit._raise_after < MOST_RAISE_AFTER


async def test_a_call_that_waits_for_long_counts_no_more_until_it_ends() -> None:
    limit = ConcurrencyLimit(3, start=1)
    calls = Calls(limit)
    async with limit:
        with limit.exempting(after=0.0) as exempt:
            exempt()
            calls.begin(3)
            await calls.until_begun(0)
            await calls.until_waiting(2)
            assert limit.in_flight == 2, "one that counts and one that does not"
        calls.let_go(0, 1, 2)
    await asyncio.gather(*calls.tasks)
    assert calls.begun == [0, 1, 2]

    async with limit:
        with limit.exempting(after=0.0) as exempt:
            exempt()  # and ends before
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(0.0, over.set)  # after the other one, were it still to come
        await over.wait()
        later = Calls(limit)
        later.begin(1)
        await later.until_waiting(1)
    later.let_go(0)
    await asyncio.gather(*later.tasks)
