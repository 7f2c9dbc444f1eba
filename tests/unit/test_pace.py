"""The pace of mails: a timetable that keeps to the limit, and in which nobody overtakes."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from infrastructure.limits.gcra import MICROSECONDS, Check, LocalLimiter
from infrastructure.limits.pace import Pace
from infrastructure.settings.limits import DEFAULTS, Limit

MAILS = next(limit for limit in DEFAULTS if limit.name == "mails")


def limit(count: int, seconds: int, burst: int) -> Limit:
    return Limit("mails", count, timedelta(seconds=seconds), burst)


def test_a_burst_passes_at_once_and_then_one_in_each_interval() -> None:
    pace = Pace(limit(2, 1, 3))

    assert [pace.turn(100.0) for _ in range(6)] == [0, 0, 0, 0.5, 1.0, 1.5]
    assert pace.turn(101.5) == 0.5
    assert [pace.turn(110.0) for _ in range(4)] == [0, 0, 0, 0.5]


def test_a_thousand_people_at_once_get_their_mails_at_once() -> None:
    pace = Pace(MAILS)

    assert not any(pace.turn(0.0) for _ in range(1000))


GAPS = st.lists(st.integers(0, 3 * MICROSECONDS), min_size=1, max_size=60)
LIMITS = st.builds(limit, st.integers(1, 5), st.integers(1, 4), st.integers(1, 5))


@given(LIMITS, GAPS)
def test_nobody_overtakes_and_in_no_stretch_pass_more_than_may(of: Limit, gaps: list[int]) -> None:
    pace, now, turns = Pace(of), 0, []
    for gap in gaps:
        now += gap
        turns.append(now + round(pace.turn(now / MICROSECONDS) * MICROSECONDS))

    assert turns == sorted(turns)
    per = round(of.per.total_seconds() * MICROSECONDS)
    rounding = 2 * len(gaps)  # of the interval and of each time, in microseconds
    for first, begun in enumerate(turns):
        assert sum(turn < begun + per - rounding for turn in turns[first:]) <= of.burst + of.count


@given(LIMITS, GAPS)
def test_who_need_not_wait_would_not_be_refused_either(of: Limit, gaps: list[int]) -> None:
    """Up to the first one that waits, it is the limiter of requests."""
    now = 0.0
    pace, limiter = Pace(of), LocalLimiter(clock=lambda: now)
    for gap in gaps:
        now += gap / MICROSECONDS
        waits, [refused] = pace.turn(now), limiter.decide_now([Check("mails", of.interval, of.burst)])
        assert bool(waits) == bool(refused)
        if waits:
            return
