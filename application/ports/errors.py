"""Errors of the outside world, as opposed to refusals by a rule (`domain.errors`)."""

from __future__ import annotations

from uuid import UUID

from eventsourcing.domain import Aggregate


class Unavailable(Exception):
    """Something that is needed cannot be reached: try again later.

    Attributes:
        retry_after: seconds after which a retry makes sense.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """A bounded queue is full; nothing was done."""


class Conflict(Exception):
    """A version conflict: somebody else appended to one of the streams first; nothing was recorded. Reload and decide
    again."""


class Outdated(Conflict):
    """What a command was made of has changed since: to decide again would not help, whoever made it makes it anew."""


class ForeignRequest(Exception):
    """A request for another kind of mail than its registration gets, so the saga did not make it. Nothing was done.

    Attributes:
        code: stable name of the situation, recorded with the stray message.
    """

    code = "other-kind"


class WrongMasterKey(Exception):
    """The master key is not the one that this database's secrets are wrapped with."""


class UnexpectedAggregate(TypeError):
    """A stream is not of the expected kind."""

    def __init__(self, stream_id: UUID, found: type[Aggregate], asked: type[Aggregate]) -> None:
        super().__init__(f"stream {stream_id} is a {found.__name__}, not a {asked.__name__}")


class MailServersAway(Unavailable):
    """No mail server may be called: every circuit is open, or was opened now by a refusal that has nothing to do with
    the mail (login, certificate), or the deadline passed while the mail waited for its turn. Not counted as a try."""


class BrokerAway(Unavailable):
    """The message broker cannot be reached, or does not reply in time. What was published may still arrive."""
