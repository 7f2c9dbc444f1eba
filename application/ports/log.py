"""The event store, and the metadata of every event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID

from eventsourcing.domain import Aggregate

from domain.email_claim import ClaimId
from domain.mailbox import MailboxId
from domain.recorded import AnyEvent, Position

A = TypeVar("A", bound=Aggregate)


@dataclass(frozen=True, slots=True)
class Once:
    """An operator's request that comes with an Idempotency-Key.

    Attributes:
        asked: all of what it asks: another request with the same key is refused.
        always: whether its answer is kept even where nothing else is recorded.
    """

    key: str = field(repr=False)
    asked: str = field(repr=False)
    always: bool = True


@dataclass(frozen=True, slots=True)
class Keyed:
    """Where the answer of a request is kept, and by what a repeat is told from another request: see `KeptAnswer`."""

    answer_id: UUID
    request: str
    fingerprint: str
    serial: int | None = None
    always: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """Who does this, and why: the metadata recorded with every event.

    Attributes:
        actor: an `Actor`.
        correlation_id: the same for everything that follows from one request.
        causation_position: position of the event that led to this, None if it came from outside.
        trace: W3C `traceparent`, or None.
        reason: why an operator does this, in their words and without personal data; None if they gave none.
        once: an operator's Idempotency-Key, None if they gave none.
        act: the name of an operator's act; the handlers fill it in.
        keyed: how the answer is kept, None if it is not; the handlers fill it in.
    """

    actor: str
    correlation_id: UUID
    causation_position: Position | None = None
    trace: str | None = None
    reason: str | None = None
    once: Once | None = None
    act: str | None = None
    keyed: Keyed | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A follower's progress, to be saved in the same commit as the events that it led to.

    The append is a `Conflict` if the follower is no longer at `since`: another process leads now.
    """

    name: str
    since: Position
    to: Position


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A person's key, wrapped by the master key; `wrapped=None` destroys it."""

    registration_id: UUID
    wrapped: bytes | None


Entry = tuple[AnyEvent, Context]
"""An event to be recorded, and its metadata."""


def entries_of(events: Iterable[AnyEvent], context: Context) -> list[Entry]:
    """Pair each event with the same context."""
    return [(event, context) for event in events]


class Holder(NamedTuple):
    """The registration that holds an address's claim; in a log of release 0.1.0 it may not have `proven` it yet."""

    registration_id: UUID
    proven: bool


class Log(Protocol):
    """The event store."""

    async def append(
        self, entries: Sequence[Entry], *, keys: Sequence[WrappedKey] = (), moved: Checkpoint | None = None
    ) -> Position:
        """Record all of it or nothing; returns the position of the last event. There must be at least one.

        Every stream's first new event must follow the stream's last recorded one.

        Raises:
            Conflict: a stream has newer events, or the follower has moved; nothing was recorded.
            Overloaded: too many appends are waiting; nothing was recorded.
            Unavailable: the database cannot be reached. Whether the events were recorded may be unknown: repeat the
                command.
        """
        ...

    async def load(
        self,
        *stream_ids: UUID,
        holders_of: Sequence[ClaimId] = (),
        mailboxes: Sequence[MailboxId] = (),
        proofs_of: Sequence[ClaimId] = (),
    ) -> Streams:
        """The given streams, the claims `holders_of` with their holders' streams, or those of the last ones where
        nobody holds them now, and the `mailboxes` with the streams of those of their applicants that want an address of
        `holders_of`, all in one round trip.

        Of the claims `proofs_of`, only who holds them (`Streams.holder`). To read one and a mailbox takes as long
        whether there are such, or not.

        Of a mailbox only the latest event is read, which has its whole state.
        """
        ...


class Streams(Protocol):
    """What `Log.load` read: aggregates by their id."""

    def get(self, kind: type[A], stream_id: UUID) -> A | None:
        """The aggregate of this stream, None if the stream is empty.

        Raises:
            UnexpectedAggregate: the stream is of another kind.
        """
        ...

    def holder(self, claim_id: UUID) -> Holder | None:
        """Who holds this claim of `proofs_of`; None if nobody does."""
        ...

    def position(self, stream_id: UUID) -> Position:
        """Position of the stream's last event, 0 if it has none."""
        ...

    def position_at(self, stream_id: UUID, version: int) -> Position:
        """Position of an event of a stream, of which all was loaded."""
        ...


class Clock(Protocol):
    """The database's clock (UTC), which decides about expiry and deadlines on every machine."""

    def __call__(self) -> datetime: ...
