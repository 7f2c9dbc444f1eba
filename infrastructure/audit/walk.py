"""A walk along the hash chain: are these blocks and events those that were recorded, and if not, which are not?

Pure: whoever walks brings what stands in the database, and is told of each block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, combinations, islice, pairwise
from typing import Final, Literal, NamedTuple

from domain.recorded import Position
from infrastructure.event_store.chain import BEFORE_ALL, block_hash_at


class Event(NamedTuple):
    """An event as the chain sees it.

    Attributes:
        recorded_at: microseconds since 1970.
        digest: see `infrastructure.event_store.chain.event_digest`; empty if what stands there cannot be an event.
    """

    position: Position
    recorded_at: int
    digest: bytes


class Block(NamedTuple):
    """A row of the table of blocks."""

    first: Position
    last: Position
    hash: bytes


class Link(NamedTuple):
    """The block that the next one follows: its last position and its hash."""

    position: Position
    hash: bytes


BEGINNING: Final = Link(0, BEFORE_ALL)

Kind = Literal[
    "missing",
    "altered",
    "swapped",
    "time",
    "twice",
    "no block",
    "boundary",
    "link",
    "cut",
    "beyond",
    "head",
    "checkpoint",
]


class Finding(NamedTuple):
    """Something that is not as it was recorded.

    Attributes:
        first, last: the positions among which it is; the same one, if it can be told which.
        says: why, in words that go on after "… is not what was recorded:".
    """

    kind: Kind
    first: Position
    last: Position
    says: str


class Step(NamedTuple):
    """A block that was walked over.

    Attributes:
        block: None at the end, for events that stand behind the last block.
        digests: those of the events that stand in it now.
        findings: empty if all is as it was recorded.
    """

    block: Block | None
    digests: Sequence[bytes]
    findings: Sequence[Finding] = ()


Remembered = Callable[[Block], Sequence[bytes] | None]
"""The digests that the events of a block once had, if somebody has kept them. They need not be right: they are looked
at only if they give the block's hash."""

MOST_AT_ONCE: Final = 10_000
"""Events that are taken for those of a block before they are looked at, whatever length it claims to have."""


def walk(
    after: Link,
    blocks: Iterable[Block],
    events: Iterable[tuple[Position, int, bytes]],
    *,
    remembered: Remembered = lambda _: None,
) -> Iterator[Step]:
    """Verify consecutive blocks and their events, both in the order of their positions.

    Args:
        after: what the first block has to follow.
        events: all that stand after that, each as an `Event`; none behind the last block, or that is a finding, too.
    """
    walker, waiting = _Walker(after, remembered), _Waiting(events)
    for block in blocks:
        found = waiting.take(block.last - walker.position)
        step = walker.step_well(block, found)
        if step is None:
            waiting.put_back(found)
            found = list(waiting.take_up_to(block.last))
            step = walker.step_well(block, found) or walker.step(block, [Event._make(one) for one in found])
        yield step
    if rest := waiting.ends():
        yield Step(None, (), [Finding("no block", *rest, "no block contains what stands there")])


class _Waiting:
    """Events that are still to be walked over."""

    def __init__(self, events: Iterable[tuple[Position, int, bytes]]) -> None:
        self._rest = iter(events)
        self._returned = deque[tuple[Position, int, bytes]]()

    def take(self, count: int) -> Sequence[tuple[Position, int, bytes]]:
        """As many, if there are and it is not a claim that nothing can be."""
        count = min(max(count, 0), MOST_AT_ONCE)
        if not self._returned:
            return list(islice(self._rest, count))
        found = [self._returned.popleft() for _ in range(min(count, len(self._returned)))]
        return found + list(islice(self._rest, count - len(found)))

    def put_back(self, events: Sequence[tuple[Position, int, bytes]]) -> None:
        self._returned.extendleft(reversed(events))

    def take_up_to(self, position: Position) -> Iterator[tuple[Position, int, bytes]]:
        while found := self.take(1):
            if found[0][0] > position:
                self.put_back(found)
                return
            yield found[0]

    def ends(self) -> tuple[Position, Position] | None:
        """The first and the last position of all the rest."""
        if not (found := self.take(1)):
            return None
        first = last = found[0][0]
        for last, _, _ in chain(self._returned, self._rest):  # noqa: B007 - the last one
            pass
        return first, last


class _Walker:
    """Goes from block to block.

    Attributes:
        _or_after: what the next block may follow as well, because the recorded hash is in doubt.
        _lost: the hash that the next block follows is gone.
    """

    def __init__(self, after: Link, remembered: Remembered) -> None:
        self._after = after
        self._remembered = remembered
        self._or_after: bytes | None = None
        self._lost = False

    @property
    def position(self) -> Position:
        """Behind the last block that was walked over."""
        return self._after.position

    def step_well(self, block: Block, events: Sequence[tuple[Position, int, bytes]]) -> Step | None:
        """None if not all is as it was recorded."""
        first, last, hash_ = block
        position, previous = self._after
        if first != position + 1 or last - position != len(events) or not events:
            return None
        positions, times, digests = zip(*events, strict=True)
        if (
            positions == tuple(range(first, last + 1))
            and times.count(times[0]) == len(times)
            and block_hash_at(previous, first, times[0], digests) == hash_
        ):
            self._after, self._or_after, self._lost = Link(last, hash_), None, False
            return Step(block, digests)
        return None

    def step(self, block: Block, events: list[Event]) -> Step:
        """Of a block that is not as it was recorded."""
        return Step(block, [one.digest for one in events], self._why(block, events))

    def _go_on(self, block: Block, *, or_after: bytes | None = None) -> None:
        self._after, self._or_after, self._lost = Link(block.last, block.hash), or_after, False

    def _why(self, block: Block, events: list[Event]) -> list[Finding]:
        """What is wrong with a block; the walk goes on behind it."""
        expected = self._after.position + 1
        findings = [_nowhere(before)] if (before := [one for one in events if one.position < expected]) else []
        there = events[len(before) :]
        if block.first == expected:
            findings += _missing(expected, block.last, there) + _twice(there)
        else:
            findings += self._misfit(block, expected, there)
            there = [one for one in there if one.position >= block.first]
        or_after = None
        if there and (not findings or self._lost):
            blamed, or_after = self._blame(block, there)
            findings += blamed
        self._go_on(block, or_after=or_after)
        return findings

    def _misfit(self, block: Block, expected: Position, events: list[Event]) -> list[Finding]:
        """What is wrong where a block does not begin behind the one before it."""
        if not expected < block.first <= block.last or self._hash_of(expected, events) == block.hash:
            says = f"its block says that it begins at {block.first}, but the one before it ends at {expected - 1}"
            return [Finding("boundary", expected, block.last, says), *_missing(expected, block.last, events)]
        between = [one for one in events if one.position < block.first]
        within = events[len(between) :]
        self._or_after = self._hash_of(expected, between)
        missing = _missing(block.first, block.last, within) + _twice(within)
        self._lost = not missing
        return [_gap(expected, block.first - 1, between), *missing]

    def _hash_of(self, first: Position, events: Sequence[Event]) -> bytes | None:
        """That of the block that these events would be."""
        if not events:
            return None
        return block_hash_at(self._after.hash, first, events[0].recorded_at, [one.digest for one in events])

    def _blame(self, block: Block, events: list[Event]) -> tuple[list[Finding], bytes | None]:
        """Of a block with all of its events; and its hash if its events are right, for the next one to follow."""
        check = _Check(self._after.hash, block, events)
        if self._or_after is not None and check.fits(after=self._or_after):
            return [], None
        if self._lost:  # what it follows is gone: nothing can be said about it
            return [], None
        found = check.odd_times() or check.swapped() or check.altered(self._remembered(block))
        return found, block_hash_at(self._after.hash, block.first, events[0].recorded_at, check.digests)


class _Check:
    """Looks for what was altered in a block whose hash does not follow from its events."""

    MOST_TO_SWAP: Final = 64
    """Events in a block of which each pair is tried; twice as many take four times as long."""

    def __init__(self, previous: bytes, block: Block, events: Sequence[Event]) -> None:
        self._previous = previous
        self._block = block
        self._events = events
        self.digests = [one.digest for one in events]

    def fits(self, *, after: bytes | None = None, at: int | None = None, digests: Sequence[bytes] = ()) -> bool:
        time = self._events[0].recorded_at if at is None else at
        previous = self._previous if after is None else after
        return block_hash_at(previous, self._block.first, time, digests or self.digests) == self._block.hash

    def odd_times(self) -> list[Finding]:
        """Events whose time is not that of the others."""
        times = {one.recorded_at for one in self._events}
        right = next((one for one in times if self.fits(at=one)), None) if len(times) > 1 else None
        if right is None:
            return []
        odd = [one.position for one in self._events if one.recorded_at != right]
        says = "its time is another one than that of its block"
        return [Finding("time", first, last, says) for first, last in runs(odd)]

    def swapped(self) -> list[Finding]:
        """Two events that stand in each other's place."""
        if len(self.digests) > self.MOST_TO_SWAP:
            return []
        for one, other in combinations(range(len(self.digests)), 2):
            tried = self.digests.copy()
            tried[one], tried[other] = tried[other], tried[one]
            if self.fits(digests=tried):
                here, there = self._block.first + one, self._block.first + other
                return [Finding("swapped", here, there, f"the events of {here} and {there} have changed places")]
        return []

    def altered(self, remembered: Sequence[bytes] | None) -> list[Finding]:
        """Whatever else. What somebody remembers of the events tells which, if it gives the hash."""
        first, last, _ = self._block
        if remembered is not None and list(remembered) == self.digests:
            return [
                Finding("altered", first, last, "the time, the hash or the predecessor of the block is another one")
            ]
        if remembered is None or len(remembered) != len(self.digests) or not self._right_time(remembered):
            which = "it does" if first == last else "together they do"
            return [Finding("altered", first, last, f"{which} not give the hash of the block")]
        odd = [first + at for at, (one, other) in enumerate(zip(self.digests, remembered, strict=True)) if one != other]
        return [
            Finding("altered", begin, end, "it has another digest than when it was verified")
            for begin, end in runs(odd)
        ]

    def _right_time(self, remembered: Sequence[bytes]) -> bool:
        return any(self.fits(at=one, digests=remembered) for one in {one.recorded_at for one in self._events})


def _nowhere(events: Sequence[Event]) -> Finding:
    return Finding("no block", events[0].position, events[-1].position, "no block contains what stands there")


def _gap(first: Position, last: Position, events: Sequence[Event]) -> Finding:
    """Between two blocks."""
    if not events:
        return Finding("missing", first, last, "neither an event nor a block is there")
    return Finding("no block", first, last, "the block that contained it is missing, or was cut")


def _missing(first: Position, last: Position, events: Sequence[Event]) -> list[Finding]:
    """The positions of a block where nothing stands."""
    stands = [first - 1, *sorted({one.position for one in events}), last + 1]
    return [
        Finding("missing", before + 1, after - 1, "no event is there")
        for before, after in pairwise(stands)
        if after > before + 1
    ]


def _twice(events: Sequence[Event]) -> list[Finding]:
    twice = sorted({after.position for before, after in pairwise(events) if after.position == before.position})
    return [Finding("twice", first, last, "more than one event is there") for first, last in runs(twice)]


def runs(positions: Iterable[Position]) -> Iterator[tuple[Position, Position]]:
    """Ascending positions as stretches without a gap: the first and the last of each."""
    first = last = None
    for position in positions:
        if last is not None and position == last + 1:
            last = position
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = position
    if first is not None and last is not None:
        yield first, last


class Ends(NamedTuple):
    """Where the log ends, seen at one moment.

    Attributes:
        head: None if the row of the head is gone.
        block: the last one; `BEGINNING` if there is none.
        event: the last one's position; 0 if there is none.
    """

    head: Link | None
    block: Link
    event: Position


def check_ends(ends: Ends) -> list[Finding]:
    """Do the head and the last block say the same? (An event behind the last block is found on the walk.)"""
    head, block = ends.head, ends.block
    if head is None:
        return [Finding("head", block.position, block.position, "the row that says where the log ends is gone")]
    if head.position > max(block.position, ends.event):
        says = f"the log has been cut off, its head says that it goes to {head.position}"
        return [Finding("cut", max(block.position, ends.event) + 1, head.position, says)]
    if head.position > block.position:
        return []
    if head.position < block.position:
        says = f"it stands beyond the head, which says that the log ends at {head.position}"
        return [Finding("beyond", head.position + 1, block.position, says)]
    if head.hash != block.hash:
        return [Finding("head", block.position, block.position, "the head has another hash than the last block")]
    return []
