"""The few words for what goes wrong in the world, as opposed to what a rule refuses (`domain.errors`)."""

from __future__ import annotations

from uuid import UUID

from eventsourcing.domain import Aggregate


class Unavailable(Exception):
    """The world is away: try again later.

    Attributes:
        retry_after: seconds after which a repeat makes sense.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """A bounded queue is full; nothing was done."""


class Conflict(Exception):
    """Somebody else appended to one of the streams first; nothing was recorded. Reload and decide again."""


class ForeignRequest(Exception):
    """A request for a mail of another kind than its registration's: none that the saga made. Nothing was done.

    Attributes:
        code: stable name of the situation, by which such a message is kept.
    """

    code = "other-kind"


class WrongMasterKey(Exception):
    """The master key is not the one this database's secrets are wrapped with."""


class UnexpectedAggregate(TypeError):
    """A stream is none of the kind that was asked for."""

    def __init__(self, stream_id: UUID, found: type[Aggregate], asked: type[Aggregate]) -> None:
        super().__init__(f"stream {stream_id} is a {found.__name__}, not a {asked.__name__}")


class MailServersAway(Unavailable):
    """Every mail server's circuit is open, or was opened now by a refusal that has nothing to do with the mail (login,
    certificate), or the time that was given was used up by waiting for a turn: no try is used up."""


class BrokerAway(Unavailable):
    """The message broker cannot be reached, or does not answer in time. What was published may arrive all the same."""
