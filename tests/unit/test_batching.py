"""The batcher: what waits together goes together, and every caller gets an answer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from math import inf

import pytest

from application.ports import Overloaded, Unavailable
from infrastructure.postgres.batching import Batcher
from infrastructure.postgres.patience import current, limited
from infrastructure.telemetry.trace_context import DOING
from tests.support.facts import CLIENT, eventually


class Work:
    """What a batcher runs: doubles numbers, one gate at a time; keeps every batch it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.answers: dict[int, Exception] = {}

    async def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        self.started.set()
        await self.gate.wait()
        return [self.answers.get(item, item * 2) for item in items]

    async def occupy(self, batcher: Batcher[int, int]) -> asyncio.Task[int]:
        """Hold a batch with the item 0 under way until the gate opens."""
        self.gate.clear()
        task = asyncio.create_task(batcher.do(0))
        await self.started.wait()
        return task


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def batcher(work: Work) -> AsyncIterator[Batcher[int, int]]:
    batcher: Batcher[int, int] = Batcher(work, name="test", max_batch=10, max_waiting=5)
    yield batcher
    work.gate.set()
    await batcher.close()


async def queued(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(batcher.do(item)) for item in items]
    await asyncio.sleep(0)  # every task has run up to its wait
    return tasks


async def test_with_a_pace_a_lone_item_goes_at_once_and_what_comes_within_it_goes_together(work: Work) -> None:
    slept, over = list[float](), asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await over.wait()

    batcher: Batcher[int, int] = Batcher(
        work, name="test", max_batch=10, max_waiting=5, pace=timedelta(hours=1), sleep=sleep
    )
    assert await batcher.do(1) == 2
    assert slept == []

    first = await queued(batcher, 2)
    second = await queued(batcher, 3)
    assert work.batches == [[1]]
    over.set()

    assert await asyncio.gather(*first, *second) == [4, 6]
    assert work.batches == [[1], [2, 3]]
    assert 0 < slept[0] <= 3600


async def test_a_lone_item_goes_at_once(work: Work, batcher: Batcher[int, int]) -> None:
    assert await batcher.do(21) == 42
    assert work.batches == [[21]]


async def test_what_arrives_during_a_batch_goes_together_in_the_next_in_order(
    work: Work, batcher: Batcher[int, int]
) -> None:
    first = await work.occupy(batcher)
    others = await queued(batcher, 3, 1, 2)
    assert batcher.waiting == 3
    work.gate.set()

    assert await asyncio.gather(first, *others) == [0, 6, 2, 4]
    assert work.batches == [[0], [3, 1, 2]]


async def test_only_one_batch_is_under_way(work: Work, batcher: Batcher[int, int]) -> None:
    first = await work.occupy(batcher)
    others = await queued(batcher, 1, 2)
    assert work.batches == [[0]]

    work.gate.set()
    await asyncio.gather(first, *others)


async def test_a_batch_is_as_heavy_as_allowed_and_no_heavier(work: Work) -> None:
    batcher: Batcher[int, int] = Batcher(work, name="test", max_batch=10, max_waiting=9, weigh=lambda item: item)
    first = await work.occupy(batcher)
    others = await queued(batcher, 4, 6, 7, 4, 5)
    work.gate.set()

    await asyncio.gather(first, *others)
    assert work.batches == [[0], [4, 6], [7], [4, 5]]


async def test_an_item_heavier_than_a_batch_goes_alone(work: Work) -> None:
    batcher: Batcher[int, int] = Batcher(work, name="test", max_batch=10, max_waiting=9, weigh=lambda item: item)
    first = await work.occupy(batcher)
    others = await queued(batcher, 1, 99, 2)
    work.gate.set()

    await asyncio.gather(first, *others)
    assert work.batches == [[0], [1], [99], [2]]


async def test_a_full_queue_refuses_and_lets_in_again_when_there_is_room(
    work: Work, batcher: Batcher[int, int]
) -> None:
    first = await work.occupy(batcher)
    others = await queued(batcher, 1, 2, 3, 4, 5)
    with pytest.raises(Overloaded):
        await batcher.do(6)
    work.gate.set()
    await asyncio.gather(first, *others)

    assert await batcher.do(7) == 14
    assert [6] not in work.batches
    assert 6 not in work.batches[1]


async def test_a_caller_that_goes_takes_its_waiting_item_back(work: Work, batcher: Batcher[int, int]) -> None:
    first = await work.occupy(batcher)
    gone, stays = await queued(batcher, 1, 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    work.gate.set()

    assert await first == 0
    assert await stays == 4
    assert work.batches == [[0], [2]]


async def test_callers_that_went_leave_their_places_to_others(work: Work, batcher: Batcher[int, int]) -> None:
    first = await work.occupy(batcher)
    gone = await queued(batcher, 1, 2, 3, 4, 5)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    assert batcher.waiting == 0

    others = await queued(batcher, 6, 7)
    work.gate.set()
    assert await asyncio.gather(first, *others) == [0, 12, 14]
    assert work.batches == [[0], [6, 7]]


async def test_an_item_under_way_is_done_though_its_caller_went(work: Work, batcher: Batcher[int, int]) -> None:
    first = await work.occupy(batcher)
    [neighbour] = await queued(batcher, 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.gate.set()

    assert await neighbour == 2
    assert work.batches == [[0], [1]]


async def test_an_item_fails_alone(work: Work, batcher: Batcher[int, int]) -> None:
    work.answers[2] = ValueError("of 2")
    tasks = await queued(batcher, 1, 2, 3)

    answers = list(await asyncio.gather(*tasks, return_exceptions=True))
    assert answers == [2, work.answers[2], 6]
    assert work.batches == [[1, 2, 3]]


async def test_a_failed_batch_is_the_answer_of_all_in_it_and_of_nobody_else() -> None:
    batches: list[list[int]] = []

    async def run(items: Sequence[int]) -> Sequence[int]:
        batches.append(list(items))
        if 1 in items:
            raise Unavailable("away")
        return items

    batcher: Batcher[int, int] = Batcher(run, name="test", max_batch=2, max_waiting=9)
    answers = await asyncio.gather(*(batcher.do(item) for item in (1, 2, 3)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [Unavailable, Unavailable, int]
    assert batches == [[1, 2], [3]]


async def test_a_batch_that_answers_too_little_leaves_nobody_waiting() -> None:
    async def run(items: Sequence[int]) -> Sequence[int]:
        return items[:1]

    batcher: Batcher[int, int] = Batcher(run, name="test", max_batch=2, max_waiting=9)
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(batcher.do(item) for item in (1, 2, 3)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [ValueError, ValueError, int]


async def test_closing_finishes_what_was_taken_and_refuses_the_rest(work: Work, batcher: Batcher[int, int]) -> None:
    first = await work.occupy(batcher)
    others = await queued(batcher, 1, 2)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await batcher.do(3)
    assert not closing.done()
    work.gate.set()

    await closing
    assert await asyncio.gather(first, *others) == [0, 2, 4]
    assert work.batches == [[0], [1, 2]]


async def test_giving_up_the_wait_for_the_close_does_not_stop_the_batch(work: Work, batcher: Batcher[int, int]) -> None:
    first = await work.occupy(batcher)
    others = await queued(batcher, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await batcher.close()
    work.gate.set()

    assert await asyncio.gather(first, *others) == [0, 2]


async def test_the_number_of_items_of_every_batch_is_told() -> None:
    told: list[int] = []

    async def run(items: Sequence[int]) -> Sequence[int]:
        return items

    batcher: Batcher[int, int] = Batcher(run, name="test", max_batch=2, max_waiting=9, on_batch=told.append)
    await asyncio.gather(*(batcher.do(item) for item in (1, 2, 3)))

    assert told == [2, 1]


# --- A batch that hangs -----------------------------------------------------------------------


async def test_whoever_waits_behind_a_batch_without_an_answer_or_comes_is_refused_until_it_has_one(
    work: Work,
) -> None:
    batcher: Batcher[int, int] = Batcher(
        work, name="test", max_batch=10, max_waiting=5, patience=timedelta(milliseconds=20)
    )
    first = await work.occupy(batcher)
    waiting = await queued(batcher, 1, 2)

    for task in waiting:
        with pytest.raises(Unavailable, match="no answer"):
            await task
    assert batcher.stuck
    with pytest.raises(Unavailable, match="no answer"):
        await batcher.do(3)
    assert not first.done()

    work.gate.set()
    assert await first == 0
    assert not batcher.stuck
    assert await batcher.do(4) == 8
    assert work.batches == [[0], [4]]  # what was refused was not done
    await batcher.close()


async def test_settled_is_what_was_accepted_before_and_nothing_after(batcher: Batcher[int, int], work: Work) -> None:
    under_way, waiting = [await work.occupy(batcher)], await queued(batcher, 2)

    settled = asyncio.create_task(batcher.settled())
    await asyncio.sleep(0)
    assert not settled.done()
    work.gate.set()
    await settled

    assert all(task.done() for task in (*under_way, *waiting))
    await batcher.settled()


async def test_settled_waits_for_what_is_under_way_though_its_caller_has_left(
    batcher: Batcher[int, int], work: Work
) -> None:
    left = await work.occupy(batcher)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)

    settled = asyncio.create_task(batcher.settled())
    await asyncio.sleep(0)
    assert not settled.done()
    work.gate.set()
    await settled
    assert work.batches == [[0]]


# --- Patience ---------------------------------------------------------------------------------


@pytest.fixture
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infrastructure.postgres.batching.LOOK_EVERY", timedelta(0))


async def asked(batcher: Batcher[int, int], item: int, patience: timedelta) -> int:
    with limited(patience):
        return await batcher.do(item)


@pytest.mark.usefixtures("looks_at_once")
async def test_who_has_no_patience_left_is_let_go_and_told_whether_the_outcome_is_known(
    batcher: Batcher[int, int], work: Work
) -> None:
    work.gate.clear()
    under_way = asyncio.create_task(asked(batcher, 1, timedelta(0)))
    await work.started.wait()
    behind = asyncio.create_task(asked(batcher, 2, timedelta(0)))
    patient = await queued(batcher, 3)

    with pytest.raises(Unavailable, match="unknown"):
        await under_way
    with pytest.raises(Unavailable, match=r"no answer$"):
        await behind
    work.gate.set()

    assert await asyncio.gather(*patient) == [6]
    assert work.batches == [[1], [3]]


async def test_what_one_wait_took_is_missing_in_the_next(batcher: Batcher[int, int]) -> None:
    with limited(timedelta(seconds=100)):
        await batcher.do(1)
        first = current().left
        await batcher.do(2)
        assert 0 < current().left < first < 100
    assert current().left == inf


@pytest.mark.usefixtures("looks_at_once")
async def test_after_a_batch_without_an_answer_one_item_at_a_time_is_tried_until_there_is_one(work: Work) -> None:
    batcher: Batcher[int, int] = Batcher(work, name="test", max_batch=10, max_waiting=5, patience=timedelta(0))
    stuck = await work.occupy(batcher)
    await eventually(lambda: batcher.stuck)
    with pytest.raises(Unavailable):
        await batcher.do(1)
    work.answers[0] = Unavailable("away")
    work.gate.set()
    with pytest.raises(Unavailable, match="away"):
        await stuck

    (probe,) = await queued(batcher, 2)  # it has not begun yet
    with pytest.raises(Unavailable, match="no answer"):
        await batcher.do(3)
    assert await probe == 4

    assert await asyncio.gather(*await queued(batcher, 5, 6)) == [10, 12]
    assert work.batches == [[0], [2], [5, 6]]
    await batcher.close()


async def test_a_batch_is_not_said_to_be_of_the_request_that_came_first() -> None:
    doing: list[object] = []

    async def run(items: Sequence[int]) -> Sequence[int]:
        doing.append(DOING.get())
        return items

    batcher: Batcher[int, int] = Batcher(run, name="test", max_batch=10, max_waiting=5)
    before = DOING.set(CLIENT)
    await batcher.do(1)
    DOING.reset(before)
    await batcher.close()
    assert doing == [None]
