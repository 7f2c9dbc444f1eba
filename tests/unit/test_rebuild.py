"""What is recorded of a rebuild: each act once, however often it is reported."""

from __future__ import annotations

from uuid import UUID

from domain.rebuild import Rebuild
from tests.support.facts import (
    T0,
    given,
    rebuild_aborted,
    rebuild_begun,
    rebuild_rolled_back,
    rebuild_swapped,
    recorded,
    version_dropped,
)

REBUILD = UUID("4eb011d0-0000-4000-8000-000000000001")


def test_beginning_a_rebuild_begins_its_stream() -> None:
    rebuild = Rebuild.begin(rebuild_id=REBUILD, read_model="mail", now=T0)

    assert recorded(rebuild) == [rebuild_begun()]
    assert (rebuild.id, rebuild.version) == (REBUILD, 1)


def test_a_swap_is_recorded_once_with_what_was_decided() -> None:
    rebuild = given(Rebuild, rebuild_begun(), stream_id=REBUILD)

    for _ in range(2):
        rebuild.swap(position=7, differences=3, decision="accepted", now=T0)

    assert recorded(rebuild) == [rebuild_swapped(differences=3, decision="accepted")]


def test_a_rollback_is_recorded_once() -> None:
    rebuild = given(Rebuild, rebuild_begun(), rebuild_swapped(), stream_id=REBUILD)

    for _ in range(2):
        rebuild.roll_back(position=9, now=T0)

    assert recorded(rebuild) == [rebuild_rolled_back()]


def test_a_rollback_is_recorded_of_a_rebuild_that_was_aborted_too() -> None:
    """Of an earlier release, which did not know which rebuild was rolled back."""
    rebuild = given(Rebuild, rebuild_begun(), rebuild_aborted(), stream_id=REBUILD)

    rebuild.roll_back(position=9, now=T0)

    assert recorded(rebuild) == [rebuild_rolled_back()]


def test_an_end_before_the_swap_is_recorded_once() -> None:
    rebuild = given(Rebuild, rebuild_begun(), stream_id=REBUILD)

    for _ in range(2):
        rebuild.abort(now=T0)

    assert recorded(rebuild) == [rebuild_aborted()]


def test_a_version_that_is_dropped_begins_a_stream_of_its_own() -> None:
    dropped = Rebuild.drop_version(rebuild_id=REBUILD, read_model="mail", position=8, now=T0)

    assert recorded(dropped) == [version_dropped()]
    assert (dropped.id, dropped.version) == (REBUILD, 1)


def test_a_rebuild_is_the_same_when_read_back_from_its_events() -> None:
    again = given(Rebuild, rebuild_begun(), rebuild_swapped(), rebuild_rolled_back(), stream_id=REBUILD)

    again.swap(position=7, differences=0, decision="equal", now=T0)
    again.roll_back(position=9, now=T0)

    assert recorded(again) == []
    assert (again.read_model, again.swapped, again.rolled_back, again.aborted) == ("mail", True, True, False)
