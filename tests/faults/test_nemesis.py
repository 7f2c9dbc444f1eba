"""The nemesis: its schedule, and a minute of it, or two (`--full-size`; `make chaos` runs it for longer)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.chaos import run
from tests.faults.schedule import BROKER_WEIGHTS, NODES, QUIET, WEIGHTS, WORKERS, killings, schedule
from tests.support.rabbitmq import PrivateRabbit

HALF_A_MINUTE = 30.0
A_MINUTE = 60.0
TWO_MINUTES = 120.0
SEED = 17


# --- The schedule ---------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_schedule_and_another_one_another() -> None:
    assert schedule(7, TWO_MINUTES) == schedule(7, TWO_MINUTES)
    assert schedule(7, TWO_MINUTES) != schedule(8, TWO_MINUTES)


@pytest.mark.parametrize("seed", range(20))
def test_two_minutes_have_room_for_every_kind_of_fault_a_crash_loop_and_quiet_times(seed: int) -> None:
    planned = schedule(seed, TWO_MINUTES)
    kinds = Counter(one.kind for one in planned)

    assert kinds.keys() == {*WEIGHTS, "crash loop", "quiet"}
    assert kinds["crash loop"] == 1
    assert kinds["quiet"] >= 3
    assert planned[-1].kind == "quiet"  # so that it ends healed


def test_the_minute_that_is_run_here_has_every_kind_of_fault_too() -> None:
    assert {one.kind for one in schedule(SEED, A_MINUTE)} == {*WEIGHTS, "crash loop", "quiet"}


def test_a_long_schedule_deals_every_kind_by_its_weight_to_every_node() -> None:
    planned = [one for one in schedule(7, 3600.0) if one.kind in WEIGHTS]
    kinds = Counter(one.kind for one in planned)

    for kind, weight in WEIGHTS.items():
        share = weight / sum(WEIGHTS.values())
        assert kinds[kind] == pytest.approx(share * len(planned), rel=0.1)
    assert {one.target for one in planned if one.kind == "node killed"} == set(NODES)


def test_over_a_broker_workers_die_too_and_the_broker_itself_is_broken_in_every_way() -> None:
    planned = schedule(7, 3600.0, broker=True)

    assert {one.kind for one in planned} == {*WEIGHTS, *BROKER_WEIGHTS, "crash loop", "quiet"}
    assert {one.target for one in planned if one.kind == "node killed"} == {*NODES, *WORKERS}
    assert {one.target for one in planned if one.kind in BROKER_WEIGHTS} == {"broker"}


def test_a_schedule_takes_about_as_long_as_was_asked_for() -> None:
    planned = schedule(7, 600.0)

    least = sum(one.after + (one.lasts if one.kind in {"quiet", "crash loop"} else 0.0) for one in planned)
    assert 0.75 * 600 <= least <= 600 + QUIET


# --- The nemesis itself ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.timeout(1200)
@pytest.mark.fault("A17")
async def test_whatever_is_killed_paused_or_cut_off_nothing_is_lost_doubled_or_stuck(
    tmp_path: Path, reached_directory: Path, full_size: bool
) -> None:
    seconds = TWO_MINUTES if full_size else A_MINUTE
    report = await run(SEED, seconds, directory=tmp_path, reached=reached_directory)

    assert not report.violations, f"{report}\nThe journal, the log and the faults are in {tmp_path}."
    assert report.faults.keys() == {*WEIGHTS, "crash loop"}
    assert report.outcomes("register")["ok"] > 0
    assert report.outcomes("verify")["ok"] > 0


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.timeout(1200)
@pytest.mark.fault("A17")
async def test_whenever_relay_workers_and_broker_are_killed_nothing_is_lost_doubled_or_stuck(
    own_rabbit: PrivateRabbit, tmp_path: Path, reached_directory: Path, full_size: bool
) -> None:
    seconds = A_MINUTE if full_size else HALF_A_MINUTE
    planned = killings(SEED, seconds)
    report = await run(SEED, seconds, directory=tmp_path, reached=reached_directory, rabbit=own_rabbit, planned=planned)

    assert not report.violations, f"{report}\nThe journal, the log and the faults are in {tmp_path}."
    assert report.faults.keys() == {"crash loop"}
    assert report.outcomes("register")["ok"] > 0
    assert report.outcomes("verify")["ok"] > 0
