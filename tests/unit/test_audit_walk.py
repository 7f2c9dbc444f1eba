"""The walk along the chain names the first position that is not what was recorded, whatever was altered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

import pytest

from infrastructure.audit.walk import BEGINNING, Block, Ends, Event, Finding, Link, check_ends, runs, walk
from infrastructure.event_store.chain import block_hash_at

SIZES = (1, 3, 1, 2, 4, 1, 3)
"""Of the blocks: positions 1, 2 to 4, 5, 6 to 7, 8 to 11, 12, 13 to 15."""

Log = tuple[list[Block], list[Event]]


def a_log(sizes: Sequence[int] = SIZES, *, salt: bytes = b"") -> Log:
    """A chain as it is recorded."""
    blocks: list[Block] = []
    events: list[Event] = []
    link = BEGINNING
    for number, size in enumerate(sizes):
        first = link.position + 1
        inside = [Event(at, number * 1000, sha256(b"%d" % at + salt).digest()) for at in range(first, first + size)]
        found = block_hash_at(link.hash, first, number * 1000, [one.digest for one in inside])
        events += inside
        blocks.append(Block(first, first + size - 1, found))
        link = Link(first + size - 1, found)
    return blocks, events


def findings(blocks: Sequence[Block], events: Sequence[Event], **more: Callable[[Block], list[bytes]]) -> list[Finding]:
    return [one for step in walk(BEGINNING, blocks, events, **more) for one in step.findings]


def remembered(block: Block) -> list[bytes]:
    """What was kept of the log of `a_log`."""
    return [one.digest for one in a_log()[1] if block.first <= one.position <= block.last]


def stretches(found: Sequence[Finding]) -> list[tuple[str, int, int]]:
    return [one[:3] for one in found]


def altered(event: Event) -> Event:
    return event._replace(digest=sha256(event.digest).digest())


def swap(events: list[Event], one: int, other: int) -> None:
    """The events at two positions change places, their times with them."""
    a, b = events[one - 1], events[other - 1]
    events[one - 1], events[other - 1] = b._replace(position=one), a._replace(position=other)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_block_may_be_longer_than_what_is_looked_at_together(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    blocks, events = a_log()
    events[8] = altered(events[8])
    expected = findings(blocks, events)

    monkeypatch.setattr("infrastructure.audit.walk.MOST_AT_ONCE", at_once)

    assert findings(blocks, events) == expected
    assert findings(*a_log()) == []


def test_a_log_as_it_was_recorded_has_no_findings() -> None:
    blocks, events = a_log()

    steps = list(walk(BEGINNING, blocks, events))

    assert [step.block for step in steps] == blocks
    assert [one for step in steps for one in step.digests] == [one.digest for one in events]
    assert not any(step.findings for step in steps)


def test_a_walk_begins_anywhere() -> None:
    blocks, events = a_log()

    steps = list(walk(Link(blocks[2].last, blocks[2].hash), blocks[3:], events[5:]))

    assert len(steps) == 4
    assert not any(step.findings for step in steps)


@pytest.mark.parametrize("position", range(1, 16))
def test_an_altered_event_is_named_by_its_block_or_by_what_is_remembered(position: int) -> None:
    blocks, events = a_log()
    events[position - 1] = altered(events[position - 1])
    [block] = [one for one in blocks if one.first <= position <= one.last]

    assert stretches(findings(blocks, events)) == [("altered", block.first, block.last)]
    assert stretches(findings(blocks, events, remembered=remembered)) == [("altered", position, position)]


def test_what_is_remembered_wrongly_is_not_believed() -> None:
    blocks, events = a_log()
    events[8] = altered(events[8])

    found = findings(blocks, events, remembered=lambda _: [bytes(32)] * 4)

    assert stretches(found) == [("altered", 8, 11)]


def test_a_changed_time_is_named() -> None:
    blocks, events = a_log()
    events[9] = events[9]._replace(recorded_at=1)
    events[4] = events[4]._replace(recorded_at=1)

    assert stretches(findings(blocks, events)) == [("altered", 5, 5), ("time", 10, 10)]


def test_a_pair_that_has_changed_places_is_named() -> None:
    blocks, events = a_log()
    swap(events, 9, 11)

    assert stretches(findings(blocks, events)) == [("swapped", 9, 11)]


def test_a_pair_of_two_blocks_that_has_changed_places_is_two_findings() -> None:
    blocks, events = a_log()
    swap(events, 5, 12)

    assert stretches(findings(blocks, events)) == [("altered", 5, 5), ("altered", 12, 12)]


def test_a_missing_event_is_named() -> None:
    blocks, events = a_log()
    del events[8:10]

    assert stretches(findings(blocks, events)) == [("missing", 9, 10)]


def test_events_behind_one_that_is_missing_that_have_moved_up_are_found() -> None:
    blocks, events = a_log()
    moved = events[:8] + [one._replace(position=one.position - 1) for one in events[9:]]

    assert findings(blocks, moved)[0].first == 8


def test_a_position_that_stands_twice_is_named() -> None:
    blocks, events = a_log()
    events.insert(9, events[9])

    assert stretches(findings(blocks, events)) == [("twice", 10, 10)]


def test_a_missing_block_is_named_and_the_next_one_still_verified() -> None:
    blocks, events = a_log()
    del blocks[3]
    events[8] = altered(events[8])

    assert stretches(findings(blocks, events))[0] == ("no block", 6, 7)

    del events[5:7]
    assert stretches(findings(blocks, events))[0] == ("missing", 6, 7)


def test_a_block_whose_beginning_was_altered_is_named() -> None:
    blocks, events = a_log()
    for first in (9, 7, 20):
        blocks[4] = blocks[4]._replace(first=first)

        assert stretches(findings(blocks, events)) == [("boundary", 8, 11)]


def test_a_block_whose_end_was_altered_is_found() -> None:
    blocks, events = a_log()
    for last in (10, 9):
        blocks[4] = blocks[4]._replace(last=last)

        assert findings(blocks, events)[0].first == 8


def test_an_altered_hash_is_one_finding() -> None:
    blocks, events = a_log()
    blocks[4] = blocks[4]._replace(hash=bytes(32))

    assert stretches(findings(blocks, events)) == [("altered", 8, 11)]


def test_a_block_made_to_fit_does_not_fit_the_next_one() -> None:
    blocks, events = a_log()
    events[4] = altered(events[4])
    fitting = block_hash_at(blocks[1].hash, 5, events[4].recorded_at, [events[4].digest])
    blocks[2] = blocks[2]._replace(hash=fitting)

    [found] = findings(blocks, events)

    assert found[:3] == ("altered", 6, 7)


def test_events_in_no_block_are_found() -> None:
    blocks, events = a_log()
    events.append(Event(16, 0, bytes(32)))
    events.insert(0, Event(-3, 0, bytes(32)))

    assert stretches(findings(blocks, events)) == [("no block", -3, -3), ("no block", 16, 16)]


def test_a_log_whose_end_is_cut_off_does_not_agree_with_its_head() -> None:
    blocks, _ = a_log()
    end, before = Link(blocks[-1].last, blocks[-1].hash), Link(blocks[-2].last, blocks[-2].hash)

    assert not check_ends(Ends(end, end, 15))
    assert stretches(check_ends(Ends(end, before, 12))) == [("cut", 13, 15)]
    assert stretches(check_ends(Ends(before, end, 15))) == [("beyond", 13, 15)]
    assert stretches(check_ends(Ends(end._replace(hash=bytes(32)), end, 15))) == [("head", 15, 15)]
    assert stretches(check_ends(Ends(None, end, 15))) == [("head", 15, 15)]
    assert not check_ends(Ends(BEGINNING, BEGINNING, 0))


def test_runs_are_stretches_without_a_gap() -> None:
    assert list(runs([1, 2, 3, 5, 8, 9])) == [(1, 3), (5, 5), (8, 9)]
    assert not list(runs([]))
