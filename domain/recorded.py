"""An event as it is stored in the log."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

from eventsourcing.domain import CanMutateAggregate

AnyEvent = CanMutateAggregate[UUID]
"""A domain event of any aggregate."""

Position = int
"""Place of an event in the log: 1, 2, 3, … in commit order, without gaps; 0 is before the first."""


TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""A W3C `traceparent`. What stands in a log that was imported may be anything else."""


class Actor(StrEnum):
    """Who does something: never a person's name or address. The log may contain others, written by another version."""

    CLIENT = "client"
    OPERATOR = "operator"
    MAIL_SAGA = "mail-saga"
    MAIL_WORKER = "mail-worker"
    DEAD_LETTER_CONSUMER = "dead-letter-consumer"
    BOUNCE_REPORT = "bounce-report"
    RESTORE = "restore"
    PROBE = "probe"


class Recorded(NamedTuple):
    """An event with its metadata.

    Attributes:
        recorded_at: the database's time of the commit (UTC).
        correlation_id: the same for everything that followed from one request.
        causation_position: position of the event that led to this one, None if it came from outside.
        actor: who did it: an `Actor`, unless another version wrote it.
        trace: W3C `traceparent`, or None.
    """

    event: AnyEvent
    position: Position
    topic: str
    recorded_at: datetime
    correlation_id: UUID
    causation_position: Position | None
    actor: str
    trace: str | None


class Placed(NamedTuple):
    """An event and where it stands in the log: of a `Recorded`, what most folds look at."""

    event: AnyEvent
    position: Position
    topic: str


Told = Recorded | Placed
"""An event with its metadata or, for who does not look at that, without."""
