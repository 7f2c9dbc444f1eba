"""The rate limits: how an operator writes them, and how many requests they let through."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infrastructure.limits.gcra import MICROSECONDS, Check, LocalLimiter
from infrastructure.settings.environment import BadSettings
from infrastructure.settings.limits import DEFAULTS, Limit
from infrastructure.settings.settings import Settings

HOUR = 3600 * MICROSECONDS


def limits(text: str) -> dict[str, Limit]:
    return {limit.name: limit for limit in Settings.from_environment({"REGISTRAR_LIMITS": text}).limits}


def refusal(text: str) -> str:
    with pytest.raises(BadSettings) as error:
        limits(text)
    return str(error.value)


# --- As they are written ------------------------------------------------------------------------


def test_the_defaults_are_the_plans_and_those_of_the_list_of_threats() -> None:
    assert [str(limit) for limit in Settings.from_environment({}).limits] == [
        "registrations=5/1h burst 5 on",
        "network=10/1m burst 20 on",
        "network-day=100/1d burst 100 on",
        "larger-network=60/1m burst 60 on",
        "domain=100/1m burst 100 shadow",
        "verifications=60/1m burst 120 on",
        "new-codes=10/1m burst 20 on",
        "repeats=60/1m burst 120 on",
        "admin-login=10/1m burst 20 on",
        "password-checks=30/1h burst 30 on",
        "all-password-checks=6000/1m burst 6000 on",
        "mails=20/1s burst 1200 on",
    ]


def test_the_document_has_every_limit_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([a-z-]+)` \| `([^`]+)`", text.partition("\n## ")[0], re.MULTILINE))

    assert [*documented] == [limit.name for limit in DEFAULTS]
    assert {name: str(limits(f"{name}={text}")[name]) for name, text in documented.items()} == {
        limit.name: str(limit) for limit in DEFAULTS
    }


def test_an_entry_changes_one_limit_and_leaves_the_others() -> None:
    found = limits("network=20/90s burst 40\nnetwork-day = 200/1d shadow; domain=on, new-codes=off")

    assert str(found.pop("network")) == "network=20/90s burst 40 on"
    assert str(found.pop("network-day")) == "network-day=200/1d burst 200 shadow"
    assert str(found.pop("domain")) == "domain=100/1m burst 100 on"
    assert found.pop("new-codes").mode == "off"
    assert [*found.values()] == [limit for limit in DEFAULTS if limit.name in found]


@pytest.mark.parametrize("limit", DEFAULTS, ids=lambda limit: limit.name)
def test_what_is_shown_can_be_set(limit: Limit) -> None:
    assert limits(str(limit))[limit.name] == limit


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nettwork=1/1m", "names a limit 'nettwork', which there is not (network is the nearest)."),
        ("registration=off", "(registrations is the nearest)"),
        ("network", "says of network something other than COUNT/DURATION"),
        ("network=", "says of network something other than"),
        ("network=10", "says of network something other than"),
        ("network=10/m", "says of network something other than"),
        ("network=ten/1m", "says of network something other than"),
        ("network=10/1m burst", "says of network something other than"),
        ("network=10/1m of", "says of network something other than"),
        ("network=0/1m", "gives network a number that is not between 1 and 1000000: the count"),
        ("network=10/1m burst 0", "gives network a number that is not between 1 and 1000000: the burst"),
        ("network=10/1y", "gives network something that is not a duration"),
        ("network=10/500ms", "gives network a duration that is not whole seconds"),
        ("network=10/1.5s", "gives network a duration that is not whole seconds"),
        ("network=10/32d", "gives network a duration that is not whole seconds, from 1s to 31d"),
        ("network=1/1m,network=2/1m", "names network twice"),
        (
            "mails=x, network=0/1m, repeats=off",
            "mails something other than COUNT/DURATION [burst COUNT] [on|shadow], on",
        ),
        ("mails=x, network=0/1m, repeats=off", "off, and gives network a number that is not between 1 and 1000000"),
        ("net\x1b[31mwork=1/1m", "names a limit 'net\\x1b[31mwork', which there is not"),
    ],
)
def test_what_cannot_be_used_is_said_by_the_name_of_the_limit(text: str, what: str) -> None:
    said = refusal(text)
    assert said.startswith("REGISTRAR_LIMITS ")
    assert what in said
    assert said.endswith("Set it to something like network=20/1m burst 40, domain=on, new-codes=off, or unset it.")


# --- How many pass ------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def five_an_hour(key: str = "a", *, enforced: bool = True) -> Check:
    return Check(key, HOUR // 5, 5, enforced)


def test_a_burst_passes_at_once_and_then_one_after_the_other() -> None:
    clock = Clock()
    limiter = LocalLimiter(clock=clock)

    assert [limiter.decide_now([five_an_hour()]) for _ in range(5)] == [[0]] * 5
    assert limiter.decide_now([five_an_hour()]) == [HOUR // 5]

    clock.now += 719
    assert limiter.decide_now([five_an_hour()]) == [MICROSECONDS]
    clock.now += 1
    assert limiter.decide_now([five_an_hour()]) == [0]
    assert limiter.decide_now([five_an_hour()]) == [HOUR // 5]


def test_each_key_is_counted_for_itself() -> None:
    limiter = LocalLimiter(clock=Clock())
    for _ in range(6):
        limiter.decide_now([five_an_hour("a")])

    assert limiter.decide_now([five_an_hour("b")]) == [0]


def test_a_request_that_one_limit_refuses_uses_up_nothing_of_the_others() -> None:
    limiter = LocalLimiter(clock=Clock())
    for _ in range(5):
        assert limiter.decide_now([five_an_hour("narrow")]) == [0]

    for _ in range(100):
        assert limiter.decide_now([five_an_hour("wide"), five_an_hour("narrow")]) == [0, HOUR // 5]

    assert [limiter.decide_now([five_an_hour("wide")]) for _ in range(5)] == [[0]] * 5


def test_a_shadow_refuses_nobody_and_counts_as_if_it_did() -> None:
    clock = Clock()
    limiter = LocalLimiter(clock=clock)
    both = [five_an_hour("shadow", enforced=False), Check("wide", 1, 1000)]

    found = [limiter.decide_now(both) for _ in range(8)]
    assert [one[0] for one in found] == [0] * 5 + [HOUR // 5] * 3
    assert [one[1] for one in found] == [0] * 8
    clock.now += 720
    assert limiter.decide_now(both) == [0, 0]


def test_a_share_is_that_part_of_the_burst_and_of_the_rate_and_at_least_one() -> None:
    clock = Clock()
    half = LocalLimiter(share=2, clock=clock)

    assert [half.decide_now([five_an_hour()])[0] for _ in range(3)] == [0, 0, 2 * HOUR // 5]
    clock.now += 1440
    assert half.decide_now([five_an_hour()]) == [0]
    assert half.decide_now([Check("one", HOUR, 1)]) == [0]


def test_whoever_asks_on_is_remembered_however_many_others_come() -> None:
    limiter = LocalLimiter(clock=Clock(), most_keys=10)
    for _ in range(5):
        limiter.decide_now([five_an_hour("persistent")])

    for number in range(1000):
        limiter.decide_now([five_an_hour(f"other {number}")])
        if number % 5 == 0:
            assert limiter.decide_now([five_an_hour("persistent")]) == [HOUR // 5]
        assert len(limiter._young) + len(limiter._old) <= 20


@given(
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=200),
    count=st.integers(1, 10),
    burst=st.integers(1, 10),
)
def test_in_no_stretch_of_time_more_pass_than_the_limit_says(gaps: list[int], count: int, burst: int) -> None:
    clock, window = Clock(), 60
    limiter = LocalLimiter(clock=clock)
    passed: list[float] = []
    for gap in gaps:
        clock.now += gap
        if limiter.decide_now([Check("a", window * MICROSECONDS // count, burst)]) == [0]:
            passed.append(clock.now)

    for begin in passed:
        assert sum(begin <= moment < begin + window for moment in passed) <= burst + count
