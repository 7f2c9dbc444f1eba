"""Slots: as many calls at the same time as the other side bears, and nobody who waits for one is forgotten."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from infrastructure.mail.concurrency_limit import RAISE_AFTER, Slots
from tests.support.facts import eventually


class Calls:
    """Calls that wait for a slot, and have it until they are let go.

    Attributes:
        begun: their numbers, in the order in which they got one.
    """

    def __init__(self, slots: Slots) -> None:
        self.begun: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._slots = slots
        self._let_go: list[asyncio.Event] = []

    def begin(self, count: int) -> None:
        for number in range(len(self.tasks), len(self.tasks) + count):
            self._let_go.append(asyncio.Event())
            self.tasks.append(asyncio.create_task(self._call(number)))

    async def _call(self, number: int) -> None:
        async with self._slots:
            self.begun.append(number)
            await self._let_go[number].wait()

    def let_go(self, *numbers: int) -> None:
        for number in numbers:
            self._let_go[number].set()

    async def until_begun(self, *numbers: int) -> None:
        await eventually(lambda: self.begun == list(numbers), within=5)

    async def until_waiting(self, count: int) -> None:
        await eventually(lambda: len(self._slots._waiting) == count, within=5)


async def refuse(slots: Slots) -> None:
    async with slots as begun:
        slots.refused(begun)


async def succeed(slots: Slots, *, taking: int = 1, times: int = 1) -> None:
    """Calls that succeed, each while so many slots are taken, its own included."""
    for _ in range(times):
        async with AsyncExitStack() as others:
            for _ in range(taking - 1):
                await others.enter_async_context(slots)
            async with slots as begun:
                slots.succeeded(begun)


async def test_who_comes_first_is_let_in_first() -> None:
    slots = Slots(2)
    calls = Calls(slots)
    calls.begin(5)
    await calls.until_waiting(3)

    calls.let_go(1)
    await calls.until_begun(0, 1, 2)
    calls.let_go(0, 2, 3, 4)
    await asyncio.gather(*calls.tasks)

    assert calls.begun == [0, 1, 2, 3, 4]
    assert slots.taken == 0


async def test_who_gives_up_waiting_takes_no_slot_with_it() -> None:
    slots = Slots(1)
    calls = Calls(slots)
    calls.begin(4)
    await calls.until_waiting(3)

    calls.tasks[1].cancel()
    calls.let_go(0)
    await calls.until_begun(0, 2)
    calls.let_go(2)
    calls.tasks[3].cancel()
    await asyncio.gather(*calls.tasks, return_exceptions=True)

    async with slots:
        assert slots.taken == 1
    assert slots.taken == 0


async def test_who_gives_up_when_its_turn_has_come_passes_it_on() -> None:
    slots = Slots(1)
    calls = Calls(slots)
    await slots.__aenter__()
    calls.begin(2)
    await calls.until_waiting(2)

    await slots.__aexit__()
    calls.tasks[0].cancel()

    await calls.until_begun(1)
    calls.let_go(1)
    await asyncio.gather(*calls.tasks, return_exceptions=True)
    assert slots.taken == 0


async def test_refusals_of_one_moment_halve_the_slots_once() -> None:
    told: list[int] = []
    slots = Slots(8, on_change=told.append)
    async with AsyncExitStack() as calls:
        begun = [await calls.enter_async_context(slots) for _ in range(8)]
        for one in begun:
            slots.refused(one)
        assert slots.allowed == 4

    await refuse(slots)
    assert told == [8, 4, 2]


async def test_nobody_is_let_in_until_fewer_are_under_way_than_are_allowed_now() -> None:
    slots = Slots(4)
    calls = Calls(slots)
    begun = await slots.__aenter__()
    calls.begin(5)
    await calls.until_waiting(2)

    slots.refused(begun)
    await slots.__aexit__()
    calls.let_go(0)
    await eventually(lambda: slots.taken == 2, within=5)
    assert calls.begun == [0, 1, 2]

    calls.let_go(1, 2, 3, 4)
    await asyncio.gather(*calls.tasks)
    assert calls.begun == [0, 1, 2, 3, 4]


async def test_calls_that_succeed_while_all_slots_are_taken_add_one_up_to_the_most() -> None:
    slots = Slots(2)
    await refuse(slots)

    await succeed(slots, times=RAISE_AFTER - 1)
    assert slots.allowed == 1
    await succeed(slots)
    assert slots.allowed == 2

    await succeed(slots, taking=2, times=3 * RAISE_AFTER)
    assert slots.allowed == 2


async def test_calls_that_left_slots_free_prove_nothing_about_more() -> None:
    slots = Slots(8)
    await refuse(slots)
    await succeed(slots, taking=3, times=3 * RAISE_AFTER)
    assert slots.allowed == 4


async def test_calls_from_before_the_refusal_prove_nothing_after_it() -> None:
    slots = Slots(2)
    async with slots as early:
        await refuse(slots)
        for _ in range(RAISE_AFTER):
            slots.succeeded(early)
    assert slots.allowed == 1


async def test_one_at_a_time_is_always_allowed() -> None:
    told: list[int] = []
    slots = Slots(3, on_change=told.append)
    for _ in range(5):
        await refuse(slots)
    assert told == [3, 1]
    await succeed(slots, times=RAISE_AFTER)
    assert told == [3, 1, 2]
