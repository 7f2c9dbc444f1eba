"""What is recorded about one registration, as the review of its decisions takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from domain.email_claim import EmailClaim
from domain.recorded import Position, Recorded


class Mark(Protocol):
    """What stands beside an event in the log: it need not be decoded to be the effect of something."""

    @property
    def topic(self) -> str: ...

    @property
    def position(self) -> Position: ...

    @property
    def recorded_at(self) -> datetime: ...

    @property
    def causation_position(self) -> Position | None: ...

    @property
    def actor(self) -> str: ...


@dataclass(frozen=True, slots=True)
class History:
    """Everything recorded about one registration, each stream in its order.

    Attributes:
        registration: its own stream, with at least its first event.
        claim: the stream of its address's claim, with what happened to it before and after this registration.
        claim_at: returns a copy of the claim as it was at a position.
    """

    registration: Sequence[Recorded]
    saga: Sequence[Recorded]
    claim: Sequence[Mark]
    claim_at: Callable[[Position], EmailClaim | None]


@dataclass(frozen=True, slots=True)
class End:
    """Where the record ends.

    Attributes:
        handled: the saga has seen every event up to here; 0 if those of this registration are parked.
        at: the time of the last event.
    """

    handled: Position
    at: datetime
