"""The limits counted in Redis: atomic, shared, in time; and what decides while Redis does not."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from starlette.types import Scope

from entrypoints.api.limits import VERIFYING, OverLimit, RequestLimits
from infrastructure.circuits import Circuits
from infrastructure.limits.gcra import MICROSECONDS, Check, LocalLimiter
from infrastructure.limits.shared import BUDGET, FAILURES, SharedLimiter, ask, connect, try_out
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.metrics import Metrics
from tests.support import redis as redis_server
from tests.support.facts import eventually
from tests.support.redis import PrivateRedis
from tests.support.tcp_proxy import TO_CLIENT, TcpProxy

HOUR = 3600 * MICROSECONDS
_keys = (f"{{registrar}}:test:{number}" for number in count())


class Clock:
    """Of the circuit."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Limiting:
    """A limiter, and what it said of itself."""

    limiter: SharedLimiter
    clock: Clock
    changes: list[bool]

    async def passing(self, check: Check, requests: int) -> int:
        """How many of so many requests at once pass."""
        waits = await asyncio.gather(*(self.limiter.decide([check]) for _ in range(requests)))
        return waits.count([0])


@asynccontextmanager
async def limiting(url: str) -> AsyncIterator[Limiting]:
    clock, changes = Clock(), list[bool]()
    limiter = SharedLimiter(url, on_change=changes.append, circuits=lambda **given: Circuits(clock=clock, **given))
    try:
        yield Limiting(limiter, clock, changes)
    finally:
        await limiter.close()


def ten(key: str | None = None, *, enforced: bool = True) -> Check:
    """Ten at once, and no more for as long as a test lasts. Half of that, where Redis is away, is five."""
    return Check(key or next(_keys), HOUR, 10, enforced)


# --- While all is well --------------------------------------------------------------------------


async def test_of_many_requests_at_once_in_two_processes_exactly_so_many_pass(redis: PrivateRedis) -> None:
    async with limiting(redis.url) as one, limiting(redis.url) as other:
        check = ten()
        passed = await asyncio.gather(one.passing(check, 200), other.passing(check, 200))

        assert sum(passed) == 10
        assert (one.changes, other.changes) == ([False], [False])


async def test_a_request_that_one_limit_refuses_uses_up_nothing_of_the_others(redis: PrivateRedis) -> None:
    async with limiting(redis.url) as one:
        wide, narrow = ten(), Check(next(_keys), HOUR, 3)
        for _ in range(3):
            assert await one.limiter.decide([wide, narrow]) == [0, 0]
        for _ in range(20):
            free, refused = await one.limiter.decide([wide, narrow])
            assert free == 0
            assert HOUR - 10 * MICROSECONDS < refused <= HOUR

        assert await one.passing(wide, 20) == 7


async def test_redis_decides_as_the_process_itself_does(redis: PrivateRedis) -> None:
    """Random requests, with intervals so long that the time they take makes no difference to what passes."""
    dice, local = random.Random(7), LocalLimiter()  # noqa: S311 - a test
    checks_of = {
        key: Check(key, dice.choice([1, 5]) * HOUR, dice.choice([1, 2, 20, 50]), dice.random() < 0.8)
        for key in (next(_keys) for _ in range(12))
    }
    client = connect(redis.url)
    try:
        for _ in range(500):
            checks = [checks_of[key] for key in dice.sample([*checks_of], dice.randint(1, 5))]
            (theirs,), ours = await ask(client, [checks]), local.decide_now(checks)
            assert [abs(a - b) < 30 * MICROSECONDS for a, b in zip(theirs, ours, strict=True)] == [True] * len(checks)
            assert [wait == 0 for wait in theirs] == [wait == 0 for wait in ours]
    finally:
        await client.aclose()


async def test_after_its_interval_the_next_one_passes_and_what_is_paid_leaves_nothing(redis: PrivateRedis) -> None:
    async with limiting(redis.url) as one:
        check = Check(next(_keys), 100_000, 2)
        assert await one.passing(check, 10) == 2

        async def passes() -> bool:
            return await one.limiter.decide([check]) == [0]

        await eventually(passes, within=5)
        await eventually(lambda: redis.ask("EXISTS", check.key) == 0, within=5)


@pytest.mark.fault("D10")
async def test_what_is_in_a_key_that_is_not_ours_is_written_over(redis: PrivateRedis) -> None:
    async with limiting(redis.url) as one:
        for spoil in (
            ("RPUSH", "a", "list"),
            ("HSET", "a", "field", "value"),
            ("SET", "a", "words"),
            ("SET", "a", "nan"),
            ("SET", "a", "-inf"),
            ("SET", "a", ""),
        ):
            check = ten()
            redis.ask(spoil[0], check.key, *spoil[2:])

            assert await one.passing(check, 20) == 10
            assert int(redis.ask("PTTL", check.key)) > 0
        assert one.changes == [False]


@pytest.mark.fault("D7")
async def test_a_count_from_the_future_refuses_for_one_interval_and_no_longer(redis: PrivateRedis) -> None:
    """The clock of Redis' machine was set back."""
    async with limiting(redis.url) as one:
        for value in ("99999999999999999", "inf"):
            check = Check(next(_keys), 50_000, 10)
            redis.ask("SET", check.key, value)
            assert await one.limiter.decide([check]) != [0]

            async def passes(check: Check = check) -> bool:
                return await one.limiter.decide([check]) == [0]

            await eventually(passes, within=5)


@pytest.mark.fault("D11")
async def test_two_processes_with_different_limits_each_keep_their_own(redis: PrivateRedis) -> None:
    """As while a new setting is being rolled out."""

    async def passed(limiter: SharedLimiter, limits: str) -> int:
        settings = Settings.from_environment({"REGISTRAR_LIMITS": limits})
        requests = RequestLimits(settings.limits, limiter, hashed=str.upper, metrics=Metrics())
        elsewhere: Scope = {"type": "http", "client": ("192.0.2.7", 1), "headers": []}
        outcomes = await asyncio.gather(
            *(requests.request(elsewhere, VERIFYING) for _ in range(100)), return_exceptions=True
        )
        assert all(outcome is None or isinstance(outcome, OverLimit) for outcome in outcomes)
        return outcomes.count(None)

    async with limiting(redis.url) as strict, limiting(redis.url) as loose:
        few, many = "verifications=5/30d", "verifications=20/1d"
        assert tuple(await asyncio.gather(passed(strict.limiter, few), passed(loose.limiter, many))) == (5, 20)
        assert tuple(await asyncio.gather(passed(strict.limiter, many), passed(loose.limiter, few))) == (0, 0)
        assert strict.changes == loose.changes == [False]


@pytest.mark.fault("D4")
async def test_a_server_that_forgot_everything_gives_the_allowance_once_more_and_works_on(redis: PrivateRedis) -> None:
    async with limiting(redis.url) as one:
        check = ten()
        assert await one.passing(check, 20) == 10
        redis.ask("FLUSHALL")
        redis.ask("SCRIPT", "FLUSH")

        assert await one.passing(check, 20) == 10
        assert one.changes == [False]


async def test_a_crowd_needs_one_connection(redis: PrivateRedis) -> None:
    async with limiting(redis.url) as one:
        await one.passing(ten(), 500)

        assert len(redis.ask("CLIENT", "LIST").splitlines()) == 2  # and the test's own


# --- While it is not ----------------------------------------------------------------------------


def said(log: io.StringIO) -> list[tuple[str, str | None]]:
    """Every change that was logged, with its reason."""
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [(line["event"], line.get("reason")) for line in lines if line["event"].startswith("limits.")]


async def half_passes(one: Limiting) -> None:
    """The local limiter decides from here on: half, never none and never all, and at once."""
    check = ten()
    async with asyncio.timeout(FAILURES * BUDGET.total_seconds() + 5):
        for _ in range(FAILURES):
            await one.limiter.decide([ten()])
    assert await one.passing(check, 100) == 5
    assert await one.limiter.works() is False
    assert one.changes == [False, True]


async def all_passes_again(one: Limiting) -> None:
    """Redis decides from its first good answer on, which a health check is enough to get."""
    one.clock.now += 3
    assert await one.limiter.works() is True
    assert await one.passing(ten(), 100) == 10
    assert one.changes == [False, True, False]


@pytest.mark.fault("D1")
async def test_while_redis_is_killed_half_passes_and_all_once_it_is_back(redis: PrivateRedis, log: io.StringIO) -> None:
    async with limiting(redis.url) as one:
        assert await one.passing(ten(), 20) == 10
        redis.kill()
        await half_passes(one)
        redis.start()
        await all_passes_again(one)

        assert said(log) == [("limits.degraded", "it cannot be reached"), ("limits.restored", None)]


@pytest.mark.fault("D2")
async def test_a_redis_that_hangs_costs_three_requests_their_budget_and_the_others_nothing(
    redis: PrivateRedis, log: io.StringIO
) -> None:
    async with limiting(redis.url) as one:
        assert await one.passing(ten(), 20) == 10
        redis.pause()
        try:
            await half_passes(one)
        finally:
            redis.resume()
        await all_passes_again(one)

        assert said(log) == [("limits.degraded", "no answer in time"), ("limits.restored", None)]


@pytest.mark.fault("D2")
async def test_a_way_that_swallows_everything_is_as_a_redis_that_hangs(redis: PrivateRedis) -> None:
    async with TcpProxy(("127.0.0.1", redis.port)) as proxy, limiting(f"redis://127.0.0.1:{proxy.port}") as one:
        assert await one.passing(ten(), 20) == 10
        proxy.hold(TO_CLIENT)
        await half_passes(one)
        assert proxy.is_effective
        proxy.heal()
        await all_passes_again(one)


@pytest.mark.fault("D2")
async def test_a_way_that_takes_200_ms_is_too_long(redis: PrivateRedis, log: io.StringIO) -> None:
    async with TcpProxy(("127.0.0.1", redis.port)) as proxy, limiting(f"redis://127.0.0.1:{proxy.port}") as one:
        proxy.delay(0.2)
        await half_passes(one)
        assert proxy.is_effective
        proxy.heal()
        await all_passes_again(one)

        assert said(log)[0] == ("limits.degraded", "no answer in time")


async def test_a_request_whose_answer_is_lost_is_counted_once(redis: PrivateRedis) -> None:
    async with TcpProxy(("127.0.0.1", redis.port)) as proxy, limiting(f"redis://127.0.0.1:{proxy.port}") as one:
        check = ten()
        assert await one.limiter.decide([ten()]) == [0]
        proxy.cut(TO_CLIENT, b"\r\n", forward=False)
        await one.limiter.decide([check])

        assert proxy.is_effective
        assert await one.passing(check, 20) == 9


@pytest.mark.fault("D3")
async def test_answers_that_are_slow_are_used_until_they_are_most_of_them(redis: PrivateRedis) -> None:
    async with TcpProxy(("127.0.0.1", redis.port)) as proxy, limiting(f"redis://127.0.0.1:{proxy.port}") as one:
        check = ten()
        assert await one.limiter.decide([check]) == [0]
        proxy.delay(0.035)  # there and back: 70 ms, of the 60 that are no trouble and the 100 that there are
        passed = [await one.limiter.decide([check]) for _ in range(20)].count([0])

        assert proxy.is_effective
        assert passed <= 9 + 5
        assert one.changes == [False, True]
        proxy.heal()
        await all_passes_again(one)


@pytest.mark.fault("D5")
async def test_a_redis_that_is_full_is_as_good_as_away(pytestconfig: pytest.Config, log: io.StringIO) -> None:
    redis_server.demand(pytestconfig)
    with redis_server.server("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as redis:
        async with limiting(redis.url) as one:
            assert await one.passing(ten(), 20) == 10
            redis.ask("CONFIG", "SET", "maxmemory", "1")
            await half_passes(one)
            redis.ask("CONFIG", "SET", "maxmemory", "0")
            await all_passes_again(one)

            assert said(log)[0] == ("limits.degraded", "it is full")


@pytest.mark.fault("D5")
async def test_a_read_only_replica_is_as_good_as_away(redis: PrivateRedis, log: io.StringIO) -> None:
    with redis_server.server() as primary:
        async with limiting(redis.url) as one:
            redis.ask("REPLICAOF", "127.0.0.1", str(primary.port))
            await half_passes(one)
            redis.ask("REPLICAOF", "NO", "ONE")
            await all_passes_again(one)

            assert said(log)[0] == ("limits.degraded", "it is a read-only replica")


@pytest.mark.fault("D8")
async def test_after_a_failover_the_counts_go_on_where_the_replica_had_them(redis: PrivateRedis) -> None:
    with redis_server.server("--replicaof", "127.0.0.1", str(redis.port)) as replica:
        async with (
            TcpProxy(("127.0.0.1", redis.port)) as address,
            limiting(f"redis://127.0.0.1:{address.port}") as one,
        ):
            check = ten()
            assert await one.passing(check, 6) == 6
            await eventually(lambda: replica.ask("GET", check.key) == redis.ask("GET", check.key))
            redis.kill()
            address.lead_to(("127.0.0.1", replica.port))
            await half_passes(one)  # nobody has promoted it yet
            replica.ask("REPLICAOF", "NO", "ONE")
            await all_passes_again(one)

            assert await one.passing(check, 20) == 4


@pytest.mark.fault("D5")
async def test_a_user_who_may_run_no_scripts_is_as_good_as_none(redis: PrivateRedis, log: io.StringIO) -> None:
    rights = ("~{registrar}:*", "+get", "+set", "+time")
    redis.ask("ACL", "SETUSER", "registrar", "on", ">secret", *rights)
    async with limiting(f"redis://registrar:secret@127.0.0.1:{redis.port}/0") as one:
        await half_passes(one)
        redis.ask("ACL", "SETUSER", "registrar", "+eval", "+evalsha")
        await all_passes_again(one)

        assert said(log)[0] == ("limits.degraded", "its user may not run scripts")


async def test_a_wrong_password_is_said_so_and_in_no_line(redis: PrivateRedis, log: io.StringIO) -> None:
    redis.ask("CONFIG", "SET", "requirepass", "right")
    async with limiting(f"redis://:hunter2-canary@127.0.0.1:{redis.port}/0") as one:
        await half_passes(one)

    assert said(log) == [("limits.degraded", "it refuses user or password")]
    assert "hunter2" not in log.getvalue()
    await try_out(f"redis://:right@127.0.0.1:{redis.port}/0")


async def test_a_caller_who_leaves_does_not_count_against_redis(redis: PrivateRedis) -> None:
    async with limiting(redis.url) as one:
        await one.limiter.decide([ten()])
        redis.pause()
        try:
            for _ in range(2 * FAILURES + 1):
                leaving: asyncio.Task[Any] = asyncio.create_task(one.limiter.decide([ten()]))
                await asyncio.sleep(0)
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
        finally:
            redis.resume()

        check = ten()
        assert await one.passing(check, 100) == 10
        assert one.changes == [False]
