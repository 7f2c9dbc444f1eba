"""Which limits a request comes under, whom they spare, and what a client is told."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from starlette.types import Scope

from entrypoints.api.limits import MOST_BLOCKED, REGISTERING, VERIFYING, OverLimit, RequestLimits
from infrastructure.limits.gcra import Check, LocalLimiter
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.metrics import Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counting(LocalLimiter):
    """Remembers what it was asked."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.asked: list[Sequence[Check]] = []

    async def decide(self, checks: Sequence[Check]) -> list[int]:
        self.asked.append(checks)
        return await super().decide(checks)


class Limiting:
    """Limits, and what they stand on."""

    def __init__(self, limits: str = "", **more: Any) -> None:
        self.clock = Clock()
        self.limiter = Counting(self.clock)
        self.metrics = Metrics()
        self.limits = RequestLimits(
            Settings.from_environment({"REGISTRAR_LIMITS": limits}).limits,
            self.limiter,
            hashed=lambda whom: f"<{whom}>",
            metrics=self.metrics,
            clock=self.clock,
            **more,
        )

    async def register(self, client: str = "192.0.2.7", email: str = "ada@example.com", **more: Any) -> None:
        await self.limits.registration(self.limits.requester(scope(client, **more), REGISTERING), email)

    async def passing(self, requests: int, **more: Any) -> int:
        passed = 0
        for _ in range(requests):
            try:
                await self.register(**more)
                passed += 1
            except OverLimit:
                pass
        return passed

    def counted(self, policy: str, outcome: str) -> float:
        self.metrics.render()
        return (
            self.metrics._registry.get_sample_value("registrar_limit_total", {"policy": policy, "outcome": outcome})
            or 0.0
        )


def scope(client: str, *, forwarded: bool = False) -> Scope:
    headers = [(b"x-forwarded-for", b"203.0.113.9")] if forwarded else []
    return {"type": "http", "client": (client, 1234), "headers": headers}


def names(checks: Sequence[Check]) -> list[str]:
    return [check.key.split(":")[1] for check in checks]


async def test_a_registration_comes_under_all_its_limits_in_one_question() -> None:
    limiting = Limiting()

    await limiting.register()

    assert [names(checks) for checks in limiting.limiter.asked] == [
        ["registrations", "network", "network-day", "larger-network", "domain"]
    ]


async def test_one_requester_registers_an_address_five_times_an_hour() -> None:
    limiting = Limiting()

    assert await limiting.passing(10) == 5
    with pytest.raises(OverLimit) as refused:
        await limiting.register()
    assert refused.value.headers == {
        "Retry-After": "720",
        "RateLimit-Policy": '"registrations";q=5;w=3600',
        "RateLimit": '"registrations";r=0;t=720',
    }
    assert await limiting.passing(5, email="ADA@example.com") == 0  # the same address
    assert await limiting.passing(5, email="grace@example.com") == 5
    assert await limiting.passing(5, client="192.0.2.8") == 5  # another requester


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("", "somewhere", True),
    ],
)
async def test_a_network_is_limited_as_one(first: str, second: str, *, shared: bool) -> None:
    limiting = Limiting("registrations=off")

    assert await limiting.passing(30, client=first) == 20
    assert await limiting.passing(30, client=second) == (0 if shared else 20)


@pytest.mark.parametrize("prefix", ["192.0.2.{}", "2001:db8:1:{}::1"])
async def test_many_networks_of_one_larger_network_share_its_limit(prefix: str) -> None:
    limiting = Limiting()

    passed = [await limiting.passing(10, client=prefix.format(n), email=f"{n}@example.com") for n in range(20)]

    assert sum(passed) == 60


async def test_all_limits_that_refuse_are_named_and_the_longest_wait_counts() -> None:
    limiting = Limiting("network=2/1m,network-day=2/1d")
    await limiting.passing(2)

    with pytest.raises(OverLimit) as refused:
        await limiting.register()

    assert refused.value.headers == {
        "Retry-After": "43200",
        "RateLimit-Policy": '"network";q=2;w=60, "network-day";q=2;w=86400',
        "RateLimit": '"network";r=0;t=30, "network-day";r=0;t=43200',
    }


async def test_a_domain_refuses_nobody_unless_an_operator_says_so() -> None:
    crowd = [{"client": f"192.0.{n}.1", "email": f"{n}@mail.example"} for n in range(150)]
    shadow, enforced = Limiting(), Limiting("domain=on")

    assert sum([await shadow.passing(1, **one) for one in crowd]) == 150
    assert shadow.counted("domain", "would-refuse") == 50
    assert sum([await enforced.passing(1, **one) for one in crowd]) == 100
    assert enforced.counted("domain", "refused") == 50


async def test_what_is_off_is_not_asked() -> None:
    limiting = Limiting("registrations=off,network=off,network-day=off,larger-network=off,domain=off,verifications=off")

    assert await limiting.passing(100) == 100
    await limiting.limits.request(scope("192.0.2.7"), VERIFYING)

    assert limiting.limiter.asked == []


async def test_outcomes_are_counted_by_the_limit_that_had_them() -> None:
    limiting = Limiting("network=shadow,domain=off")

    await limiting.passing(7)

    assert limiting.counted("registrations", "passed") == 5
    assert limiting.counted("registrations", "refused") == 2
    assert limiting.counted("network", "passed") == 5
    assert limiting.counted("network", "would-refuse") == 0


# --- Repeats ------------------------------------------------------------------------------------


class Keyed:
    """A client whose requests have keys; `known`: what is found of them."""

    def __init__(self, limiting: Limiting, client: str = "192.0.2.7") -> None:
        self.limiting = limiting
        self.client = client
        self.looked = 0

    async def passes(self, *, known: bool) -> bool:
        limits = self.limiting.limits
        try:
            requester = limits.requester(scope(self.client), REGISTERING, keyed=True)
            admit = await limits.let_in(
                requester, partial(limits.registration, requester, "ada@example.com"), keyed=True
            )
            if admit is not None:
                self.looked += 1
                await admit(known)
        except OverLimit:
            return False
        return True

    async def passing(self, requests: int, *, known: bool) -> int:
        return sum([await self.passes(known=known) for _ in range(requests)])


async def test_a_repeat_uses_up_nothing_of_what_the_first_one_needed() -> None:
    limiting = Limiting()
    client = Keyed(limiting)
    assert await client.passes(known=False)

    assert await client.passing(100, known=True) == 100

    assert [names(checks) for checks in limiting.limiter.asked[1:]] == [["repeats"]] * 100
    assert await limiting.passing(10) == 4


@pytest.mark.parametrize("used_up", ["registrations", "network"])
async def test_a_repeat_is_let_in_whatever_is_used_up(used_up: str) -> None:
    limiting = Limiting("" if used_up == "registrations" else "registrations=off,network=1/1m")
    assert await limiting.passing(10) < 10

    assert await Keyed(limiting).passing(100, known=True) == 100
    assert await limiting.passing(10) == 0


async def test_repeats_have_a_limit_and_count_as_any_request_beyond_it() -> None:
    limiting = Limiting()

    assert await Keyed(limiting).passing(200, known=True) == 120 + 5
    assert limiting.counted("repeats", "passed") == 120
    assert await Keyed(limiting, "192.0.2.8").passing(1, known=True) == 1


@pytest.mark.parametrize("refuses", ["registrations", "network"])
async def test_whoever_makes_keys_up_once_they_are_refused_has_few_of_them_looked_for(refuses: str) -> None:
    limiting = Limiting("" if refuses == "registrations" else "registrations=off,network=5/1d,repeats=120/1d")
    client = Keyed(limiting)

    assert await client.passing(10_000, known=False) == 5

    assert client.looked <= 5 + 121


async def test_who_is_not_refused_is_not_charged_for_a_look() -> None:
    limiting = Limiting("registrations=off")

    assert await Keyed(limiting).passing(20, known=False) == 20
    assert limiting.counted("repeats", "passed") == 0


async def test_without_a_limit_for_repeats_they_count_as_any_request() -> None:
    limiting = Limiting("repeats=off")
    client = Keyed(limiting)

    assert await client.passing(10, known=True) == 5
    assert client.looked == 0


# --- A flood --------------------------------------------------------------------------------------


async def test_a_network_that_was_refused_is_turned_away_without_a_question_until_its_time_is_over() -> None:
    limiting = Limiting("registrations=off")
    assert await limiting.passing(21) == 20
    asked = len(limiting.limiter.asked)

    assert await limiting.passing(1000) == 0
    assert len(limiting.limiter.asked) == asked
    assert limiting.counted("network", "refused") == 1001

    limiting.clock.now += 6
    assert await limiting.passing(2) == 1


async def test_what_is_remembered_of_a_flood_is_bounded() -> None:
    limiting = Limiting("registrations=off,network=1/1m,larger-network=off,domain=off")
    for number in range(MOST_BLOCKED + 50):
        assert await limiting.passing(2, client=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}") == 1

    assert len(limiting.limits._blocked) == MOST_BLOCKED
    assert await limiting.passing(1, client="10.0.0.0") == 0  # forgotten, and refused by the limiter itself


# --- This machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_is_spared_by_limits_of_networks_and_comes_under_the_plans(client: str) -> None:
    limiting = Limiting()

    assert await limiting.passing(10, client=client) == 5
    assert sum([await limiting.passing(1, client=client, email=f"{n}@example.com") for n in range(300)]) == 300
    for _ in range(300):
        await limiting.limits.request(scope(client), VERIFYING)


async def test_a_proxy_on_this_machine_that_is_not_trusted_is_one_requester_and_said_so_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    limiting = Limiting("registrations=off")

    assert await limiting.passing(30, client="127.0.0.1", forwarded=True) == 20

    assert capsys.readouterr().out.count("limits.proxy_not_trusted") == 1


async def test_where_a_proxy_on_this_machine_is_trusted_loopback_is_an_address_as_any_other() -> None:
    limiting = Limiting("registrations=off", spare_loopback=False)

    assert await limiting.passing(30, client="127.0.0.1") == 20
