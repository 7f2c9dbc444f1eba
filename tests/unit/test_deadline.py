"""A request's deadline."""

from __future__ import annotations

import asyncio

import pytest

from entrypoints.api.deadline import Deadline


def at_once() -> Deadline:
    loop = asyncio.get_running_loop()
    return Deadline(loop, loop.time())


async def test_a_block_that_goes_on_beyond_it_times_out() -> None:
    deadline = at_once()

    with pytest.raises(TimeoutError), deadline:
        await asyncio.Event().wait()

    assert deadline.expired


async def test_a_block_that_ends_before_is_left_alone() -> None:
    with at_once() as deadline:
        later = asyncio.Event()
        asyncio.get_running_loop().call_at(asyncio.get_running_loop().time(), later.set)
    await later.wait()

    assert not deadline.expired


async def test_one_that_was_put_off_comes_later() -> None:
    loop = asyncio.get_running_loop()
    due = asyncio.Event()

    with at_once() as deadline:
        deadline.move(loop.time() + 3600)
        loop.call_later(0.01, due.set)  # after it would have come
        await due.wait()

    assert not deadline.expired


async def test_one_that_was_moved_forward_comes_sooner() -> None:
    loop = asyncio.get_running_loop()

    async def work() -> None:
        with Deadline(loop, loop.time() + 3600) as deadline:
            deadline.move(loop.time())
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await work()


async def test_who_cancels_the_task_gets_what_they_asked_for() -> None:
    async def work() -> None:
        with at_once():
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())
