"""The loop of all followers: what is read when, what is acted upon, and when the chores run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from infrastructure.followers import follow as follow_module
from infrastructure.followers.follow import BUSY_PACE, Chore, Linger, Rush, follow
from tests.support.facts import eventually

SOON = timedelta(milliseconds=1)
LATER = timedelta(hours=1)


class Numbers:
    """A log of numbers that grows; a follower reads three at a time."""

    patience = timedelta(seconds=1)

    def __init__(self, end: int = 0) -> None:
        self.end = end
        self.reads: list[int] = []
        self.acts: list[tuple[list[int], int, int]] = []
        self.waits: list[timedelta] = []
        self.grown = asyncio.Event()

    async def read(self, position: int) -> tuple[Sequence[int], int]:
        self.reads.append(position)
        seen = min(position + 3, self.end)
        return [number for number in range(position + 1, seen + 1) if number % 2], seen

    async def act(self, events: Sequence[int], position: int, seen: int) -> None:
        self.acts.append((list(events), position, seen))

    async def wait_past(self, who: str, position: int, *, within: timedelta) -> bool:
        self.waits.append(within)
        self.grown.clear()
        try:
            async with asyncio.timeout(within.total_seconds()):
                while self.end <= position:
                    await self.grown.wait()
        except TimeoutError:
            return False
        return True

    def grow(self, by: int) -> None:
        self.end += by
        self.grown.set()


@asynccontextmanager
async def following(numbers: Numbers, position: int = 0, **arguments: Any) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.create_task(follow(position, read=numbers.read, act=numbers.act, wake=numbers, **arguments))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_everything_there_is_and_all_that_comes_is_acted_upon_once_and_in_order() -> None:
    numbers = Numbers(end=5)

    async with following(numbers, position=1):
        await eventually(lambda: len(numbers.acts) == 2)
        numbers.grow(by=2)
        await eventually(lambda: len(numbers.acts) == 3)

    assert numbers.acts == [([3], 1, 4), ([5], 4, 5), ([7], 5, 7)]


async def test_a_stretch_without_an_event_of_ours_moves_the_position_all_the_same() -> None:
    numbers = Numbers(end=2)

    async with following(numbers, position=1):
        await eventually(lambda: numbers.acts)

    assert numbers.acts == [([], 1, 2)]


async def test_nothing_is_acted_upon_while_there_is_nothing_new() -> None:
    numbers = Numbers(end=3)

    numbers.patience = SOON
    async with following(numbers, position=3):
        await eventually(lambda: len(numbers.reads) > 3)

    assert numbers.acts == []


async def test_chores_go_on_and_nothing_is_read_while_nobody_announces_anything() -> None:
    numbers = Numbers(end=3)
    numbers.patience = LATER
    ran: list[int] = []

    async def run() -> timedelta:
        ran.append(1)
        return SOON

    async with following(numbers, position=3, chores=[Chore(run)]):
        await eventually(lambda: len(ran) > 3)
        assert numbers.reads == [3]
        numbers.grow(by=1)
        await eventually(lambda: numbers.acts)

    assert numbers.acts == [([], 3, 4)]


async def test_far_behind_the_next_batch_is_asked_for_before_this_one_is_acted_upon() -> None:
    numbers = Numbers(end=9)
    read_before_act: list[list[int]] = []

    async def act(events: Sequence[int], position: int, seen: int) -> None:
        read_before_act.append(list(numbers.reads))

    numbers.act = act  # type: ignore[method-assign]
    async with following(numbers, read_ahead_of=3):
        await eventually(lambda: len(read_before_act) == 3)

    assert read_before_act[:2] == [[0, 3], [0, 3, 6]]


async def test_a_chore_runs_at_its_own_pace_also_while_nothing_happens() -> None:
    numbers = Numbers()
    often: list[int] = []
    once: list[int] = []

    async def run_often() -> timedelta:
        often.append(1)
        return SOON

    async def run_once() -> timedelta:
        once.append(1)
        return LATER

    async with following(numbers, chores=[Chore(run_often), Chore(run_once)]):
        await eventually(lambda: len(often) > 3)

    assert once == [1]
    assert max(numbers.waits) <= SOON


async def test_a_chore_that_comes_later_does_not_run_at_once() -> None:
    numbers = Numbers(end=3)
    ran: list[int] = []

    async def run() -> timedelta:
        ran.append(1)
        return LATER

    async with following(numbers, chores=[Chore(run, first=LATER)]):
        await eventually(lambda: numbers.acts)
        numbers.grow(by=1)
        await eventually(lambda: len(numbers.acts) == 2)

    assert ran == []


async def test_an_idle_chore_runs_again_after_the_next_batch_only() -> None:
    numbers = Numbers()
    ran_at: list[int] = []

    async def run() -> None:
        ran_at.append(len(numbers.acts))

    async with following(numbers, chores=[Chore(run), Chore(partial(_again, SOON))]):
        await eventually(lambda: len(numbers.waits) > 3)
        numbers.grow(by=1)
        await eventually(lambda: len(ran_at) == 2)

    assert ran_at == [0, 1]


async def test_what_nobody_waits_for_is_left_until_something_comes_that_somebody_waits_for() -> None:
    numbers = Numbers(end=1)

    async with following(numbers, linger=Linger(LATER, lambda number: number > 4)):
        await eventually(lambda: numbers.acts)
        for end in (2, 3, 4):
            numbers.grow(by=1)
            await eventually(partial(numbers.reads.__contains__, end - 1))
        numbers.grow(by=1)
        await eventually(lambda: numbers.acts[-1][2] == 5)

    assert numbers.acts == [([1], 0, 1), ([3], 1, 4), ([5], 4, 5)]


async def test_what_nobody_waits_for_is_left_for_a_while_only() -> None:
    numbers = Numbers(end=1)

    async with following(numbers, linger=Linger(SOON, lambda _: False)):
        await eventually(lambda: numbers.acts)
        numbers.grow(by=2)
        await eventually(lambda: len(numbers.acts) == 2)

    assert numbers.acts == [([1], 0, 1), ([3], 1, 3)]


@pytest.mark.parametrize(
    ("batches", "pace"),
    [
        pytest.param([(0.0, 2)], timedelta(0), id="the first one ever"),
        pytest.param([(0.0, 2), (0.011, 2)], timedelta(0), id="ninety registrations a second"),
        pytest.param([(0.0, 2), (0.009, 2)], BUSY_PACE, id="a hundred and ten"),
        pytest.param([(0.0, 2), (0.03, 12)], BUSY_PACE, id="two hundred, in batches"),
        pytest.param([(0.0, 2), (0.001, 0)], timedelta(0), id="nothing that somebody waits for"),
    ],
)
def test_a_rush_is_when_much_comes_that_somebody_waits_for(batches: list[tuple[float, int]], pace: timedelta) -> None:
    rush = Rush(Linger(LATER, bool))
    paces = [rush.pace([1] * urgent + [0], started) for started, urgent in batches]
    assert paces[-1] == pace


async def test_in_a_rush_nothing_is_read_until_several_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "BUSY_PACE", LATER)
    monkeypatch.setattr(follow_module, "BUSY_RATE", 0.001)
    numbers = Numbers(end=1)

    async with following(numbers, linger=Linger(timedelta(0), bool)):
        await eventually(lambda: len(numbers.acts) == 1)
        numbers.grow(by=2)
        await eventually(lambda: len(numbers.acts) == 2)
        reads = len(numbers.reads)
        numbers.grow(by=2)
        for _ in range(50):  # many more turns of the event loop than a read takes
            await asyncio.sleep(0)

    assert numbers.reads[reads:] == []


async def test_an_announcement_of_what_is_not_there_is_looked_for_once() -> None:
    numbers = Numbers(end=1)

    async def wait_past(who: str, position: int, *, within: timedelta) -> bool:
        numbers.waits.append(within)
        if numbers.waits[1:]:
            await asyncio.Event().wait()
        return True

    numbers.wait_past = wait_past  # type: ignore[method-assign]
    async with following(numbers, linger=Linger(LATER, bool)):
        await eventually(lambda: len(numbers.waits) == 2)

    assert numbers.reads == [0, 1]
    assert numbers.waits[1] <= numbers.patience


@pytest.mark.parametrize("what", ["read", "act"])
async def test_what_goes_wrong_ends_the_loop_and_leaves_no_read_behind(what: str) -> None:
    numbers = Numbers(end=9)

    async def fail(*_: object) -> Any:
        raise ZeroDivisionError

    setattr(numbers, what, fail)
    async with following(numbers, read_ahead_of=3) as task:
        with pytest.raises(ZeroDivisionError):
            await task

    assert len(asyncio.all_tasks()) == 1


async def _again(pause: timedelta) -> timedelta:
    return pause
