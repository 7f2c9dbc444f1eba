"""The circuit breaker: when it opens, who may probe, and what it does not count."""

import asyncio
import gc
import math
import time
import weakref
from contextlib import suppress
from datetime import timedelta

import pytest
from purgatory.service._async.circuitbreaker import AsyncCircuitBreaker

from infrastructure.circuits import Circuit, CircuitOpen, Circuits

Transitions = list[tuple[str, str, str]]


class Outage(Exception):
    pass


class MailboxUnknown(Exception):
    pass


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def transitions() -> Transitions:
    return []


@pytest.fixture
def circuits(clock: Clock, transitions: Transitions) -> Circuits:
    return Circuits(clock=clock, on_transition=lambda *change: transitions.append(change))


@pytest.fixture
async def breaker(circuits: Circuits) -> AsyncCircuitBreaker:
    return await circuits.get_breaker("post", exclude=[MailboxUnknown])


async def call(breaker: AsyncCircuitBreaker, *outcomes: type[Exception] | None) -> None:
    for outcome in outcomes:
        with suppress(Outage, MailboxUnknown):
            async with breaker:
                if outcome is not None:
                    raise outcome


def circuit_of(breaker: AsyncCircuitBreaker) -> Circuit:
    assert isinstance(breaker.context, Circuit)
    return breaker.context


async def opened(breaker: AsyncCircuitBreaker) -> Circuit:
    await call(breaker, *[Outage] * 5)
    assert breaker.context.state == "opened"
    return circuit_of(breaker)


async def probing(breaker: AsyncCircuitBreaker, verdict: "asyncio.Future[None]") -> "asyncio.Task[None]":
    started = asyncio.Event()

    async def probe() -> None:
        async with breaker:
            started.set()
            await verdict

    task = asyncio.create_task(probe())
    await started.wait()
    return task


async def test_four_failures_are_too_few_to_open(breaker: AsyncCircuitBreaker) -> None:
    await call(breaker, *[Outage] * 4)
    assert breaker.context.state == "closed"


async def test_the_fifth_call_may_open(breaker: AsyncCircuitBreaker, transitions: Transitions) -> None:
    await call(breaker, None, None, Outage, Outage, Outage)
    assert breaker.context.state == "opened"
    assert transitions == [("post", "closed", "opened")]


async def test_exactly_half_failing_does_not_open(breaker: AsyncCircuitBreaker) -> None:
    await call(breaker, *[None, Outage] * 20)
    assert breaker.context.state == "closed"


async def test_failures_need_not_be_in_a_row(breaker: AsyncCircuitBreaker) -> None:
    await call(breaker, Outage, Outage, None, Outage, Outage)
    assert breaker.context.state == "opened"


async def test_a_success_opens_nothing(breaker: AsyncCircuitBreaker) -> None:
    await call(breaker, *[Outage] * 4, None)
    assert breaker.context.state == "closed"


async def test_failures_older_than_a_minute_are_forgotten(breaker: AsyncCircuitBreaker, clock: Clock) -> None:
    await call(breaker, *[Outage] * 4)
    clock.now += 60
    await call(breaker, Outage)
    assert breaker.context.state == "closed"


async def test_failures_within_the_minute_add_up(breaker: AsyncCircuitBreaker, clock: Clock) -> None:
    for _ in range(5):
        await call(breaker, Outage)
        clock.now += 10
    assert breaker.context.state == "opened"


async def test_excluded_errors_count_as_successes(breaker: AsyncCircuitBreaker) -> None:
    await call(breaker, *[MailboxUnknown] * 5, *[Outage] * 5)
    assert breaker.context.state == "closed"


async def test_cancelled_calls_count_neither_way(breaker: AsyncCircuitBreaker, transitions: Transitions) -> None:
    for _ in range(20):
        with suppress(asyncio.CancelledError):
            async with breaker:
                raise asyncio.CancelledError
    await call(breaker, *[Outage] * 4)
    assert transitions == []
    await call(breaker, Outage)
    assert transitions == [("post", "closed", "opened")]


async def test_an_open_circuit_rejects_and_says_for_how_long(breaker: AsyncCircuitBreaker, clock: Clock) -> None:
    await opened(breaker)
    clock.now += 12
    with pytest.raises(CircuitOpen) as rejection:
        async with breaker:
            pytest.fail("the call was made")
    assert rejection.value.retry_after == pytest.approx(18)


async def test_each_rejection_is_a_fresh_exception_that_nothing_keeps(breaker: AsyncCircuitBreaker) -> None:
    await opened(breaker)
    rejections = []
    for _ in range(3):
        try:
            async with breaker:
                pass
        except CircuitOpen as rejection:
            rejections.append(weakref.ref(rejection))
    gc.collect()
    assert [rejection() for rejection in rejections] == [None] * 3


@pytest.mark.fault("E25")
async def test_after_thirty_seconds_one_successful_probe_closes(
    breaker: AsyncCircuitBreaker, clock: Clock, transitions: Transitions
) -> None:
    await opened(breaker)
    clock.now += 30
    await call(breaker, None)
    assert transitions == [
        ("post", "closed", "opened"),
        ("post", "opened", "half-opened"),
        ("post", "half-opened", "closed"),
    ]
    await call(breaker, *[Outage] * 4)
    assert breaker.context.state == "closed", "counting must start anew"


async def test_a_failed_probe_opens_for_another_thirty_seconds(breaker: AsyncCircuitBreaker, clock: Clock) -> None:
    circuit = await opened(breaker)
    clock.now += 30
    await call(breaker, Outage)
    assert circuit.state == "opened"
    assert circuit.ready_in() == pytest.approx(30)


@pytest.mark.fault("E25")
async def test_while_the_probe_runs_everyone_else_is_rejected(breaker: AsyncCircuitBreaker, clock: Clock) -> None:
    circuit = await opened(breaker)
    clock.now += 30
    verdict: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    probe = await probing(breaker, verdict)
    for _ in range(100):
        with pytest.raises(CircuitOpen):
            await call(breaker, None)
    assert circuit.ready_in() == math.inf
    verdict.set_result(None)
    await probe
    assert circuit.state == "closed"


async def test_a_cancelled_probe_frees_its_slot(breaker: AsyncCircuitBreaker, clock: Clock) -> None:
    circuit = await opened(breaker)
    clock.now += 30
    probe = await probing(breaker, asyncio.get_running_loop().create_future())
    waiting = asyncio.create_task(circuit.until_ready())
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    await waiting
    assert circuit.ready_in() == 0
    await call(breaker, None)
    assert circuit.state == "closed"


@pytest.mark.parametrize("late", [None, Outage()])
async def test_a_late_call_does_not_decide_in_place_of_the_probe(
    breaker: AsyncCircuitBreaker, clock: Clock, late: Exception | None
) -> None:
    ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    early = await probing(breaker, ending)
    circuit = await opened(breaker)
    clock.now += 30
    verdict: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    probe = await probing(breaker, verdict)
    if late:
        ending.set_exception(late)
    else:
        ending.set_result(None)
    await asyncio.gather(early, return_exceptions=True)
    assert circuit.ready_in() == math.inf
    verdict.set_result(None)
    await probe
    assert circuit.state == "closed"


async def test_it_can_be_opened_at_once(breaker: AsyncCircuitBreaker, transitions: Transitions) -> None:
    circuit_of(breaker).open()
    circuit_of(breaker).open()
    assert transitions == [("post", "closed", "opened")]
    with pytest.raises(CircuitOpen):
        await call(breaker, None)


async def test_a_closed_circuit_is_ready_at_once(breaker: AsyncCircuitBreaker) -> None:
    async with asyncio.timeout(1):
        await circuit_of(breaker).until_ready()


async def test_waiting_ends_when_the_time_is_up() -> None:
    circuits = Circuits(open_for=timedelta(milliseconds=50), clock=time.monotonic)
    circuit = circuit_of(await circuits.get_breaker("post"))
    circuit.open()
    before = time.monotonic()
    async with asyncio.timeout(5):
        await circuit.until_ready()
    assert time.monotonic() - before >= 0.05
    assert circuit.ready_in() == 0


async def test_waiting_ends_when_the_probe_ends(breaker: AsyncCircuitBreaker, clock: Clock) -> None:
    circuit = await opened(breaker)
    clock.now += 30
    verdict: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    probe = await probing(breaker, verdict)
    waiting = [asyncio.create_task(circuit.until_ready()) for _ in range(3)]
    await asyncio.wait(waiting, timeout=0)
    verdict.set_result(None)
    async with asyncio.timeout(5):
        await asyncio.gather(probe, *waiting)


async def test_who_is_refused_the_probe_does_not_bring_the_next_one_forward(
    breaker: AsyncCircuitBreaker, clock: Clock
) -> None:
    circuit = await opened(breaker)
    circuit.put_off(1)
    assert circuit.ready_in() == 30
    clock.now += 30
    circuit.put_off(1)
    assert circuit.ready_in() == 1


async def test_purgatorys_listeners_still_hear_of_it(circuits: Circuits, breaker: AsyncCircuitBreaker) -> None:
    heard: list[tuple[str, str]] = []
    circuits.add_listener(lambda name, kind, event: heard.append((name, kind)))
    await opened(breaker)
    assert heard == [("post", "failed")] * 5 + [("post", "state_changed")]


async def test_a_name_has_one_circuit(circuits: Circuits, breaker: AsyncCircuitBreaker) -> None:
    assert (await circuits.get_breaker("post")).context is breaker.context
    assert (await circuits.get_breaker("other")).context is not breaker.context
