"""A stretch of the log, decoded: what followers and copies of read models are told in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast
from uuid import UUID

from domain.recorded import Position, Told


class Unreadable(NamedTuple):
    """An event that could not be decoded."""

    position: Position
    topic: str
    stream_id: UUID
    error: Exception


class Batch(NamedTuple):
    """Events in order, after one position and up to another, between which there are no others that were asked for.

    Attributes:
        sound: whether all of them could be decoded.
    """

    events: Sequence[Told | Unreadable]
    since: Position
    upto: Position
    sound: bool = True

    def readable(self) -> Sequence[Told]:
        """The events of a batch that is sound."""
        assert self.sound  # noqa: S101 - the caller has looked
        return cast("Sequence[Told]", self.events)

    def until(self, upto: Position) -> Batch:
        """What of it is not after a position."""
        if self.upto <= upto:
            return self
        return Batch([one for one in self.events if one.position <= upto], self.since, upto, self.sound)

    def in_parts(self, most: int) -> Iterator[Batch]:
        """Batches of so many events at most that are this one together."""
        since = self.since
        for end in range(most, len(self.events), most):
            part = self.events[end - most : end]
            yield Batch(part, since, part[-1].position, self.sound)
            since = part[-1].position
        left = len(self.events) % most or min(most, len(self.events))
        yield Batch(self.events[len(self.events) - left :], since, self.upto, self.sound)


class Stretch(NamedTuple):
    """What was read after one position and up to another.

    Attributes:
        decoded: decodes it, which takes longer than to read it: who wants more of the log asks for that before.
    """

    since: Position
    upto: Position
    decoded: Callable[[], Batch]


def stream_of(event: Told | Unreadable) -> UUID:
    return event.stream_id if isinstance(event, Unreadable) else event.event.originator_id
