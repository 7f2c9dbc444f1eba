"""What the application needs from the world, as Protocols and the few words they speak.

Adapters (`infrastructure/`) implement these; `entrypoints/bootstrap.py` joins the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Protocol, TypeVar, get_args
from uuid import UUID

from eventsourcing.domain import Aggregate

from domain.recorded import AnyEvent, Position

A = TypeVar("A", bound=Aggregate)


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


class WrongMasterKey(Exception):
    """The master key is not the one this database's secrets are wrapped with."""


@dataclass(frozen=True, slots=True)
class Context:
    """Who does this, and because of what: written beside every event.

    Attributes:
        actor: "client", "operator", "mail-saga", "mail-worker", … (never a person's name or address).
        correlation_id: the same for everything that follows from one request.
        causation_position: position of the event that led to this, None if it came from outside.
        trace: W3C `traceparent`, or None.
    """

    actor: str
    correlation_id: UUID
    causation_position: Position | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class FollowerMoved:
    """A follower's progress, to be saved in the commit of the events that it led to.

    The append is a `Conflict` if the follower is not at `since` any more: somebody else leads.
    """

    name: str
    since: Position
    to: Position


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A person's key, wrapped by the master key; `wrapped=None` destroys it."""

    registration_id: UUID
    wrapped: bytes | None


class Log(Protocol):
    """The event store."""

    async def append(
        self,
        events: Sequence[AnyEvent],
        context: Context,
        *,
        keys: Sequence[WrappedKey] = (),
        moved: FollowerMoved | None = None,
    ) -> Position:
        """Record all of it or nothing; answers the position of the last event. There must be at least one.

        Every stream's first new event must follow the stream's last recorded one.

        Raises:
            Conflict: a stream has moved on, or the follower has; nothing was recorded.
            Overloaded: too many appends are waiting; nothing was recorded.
            Unavailable: the database is away. Whether it was recorded may be unknown: repeat the command.
        """
        ...

    async def load(self, *stream_ids: UUID, holders_of: Sequence[UUID] = ()) -> Streams:
        """The streams asked for, and those of the present holders of the claims `holders_of`, in one round trip."""
        ...


class OtherKind(TypeError):
    """A stream is none of the kind that was asked for."""

    def __init__(self, stream_id: UUID, found: type[Aggregate], asked: type[Aggregate]) -> None:
        super().__init__(f"stream {stream_id} is a {found.__name__}, not a {asked.__name__}")


class Streams(Protocol):
    """What `Log.load` read: aggregates by their id."""

    def get(self, kind: type[A], stream_id: UUID) -> A | None:
        """The aggregate of this stream, None if the stream is empty.

        Raises:
            OtherKind: it is the stream of something else.
        """
        ...

    def position(self, stream_id: UUID) -> Position:
        """Position of the stream's last event, 0 if it has none."""
        ...


class Clock(Protocol):
    """The database's clock (UTC): the one that expiry and deadlines go by, on every machine."""

    def __call__(self) -> datetime: ...


@dataclass(frozen=True, slots=True)
class Person:
    """What is sealed: the only place where an address, a name or a password hash is in clear.

    Attributes:
        email: as typed, validated; mail goes here.
        password_hash: argon2id in PHC string format, None if the registration had no password.
    """

    email: str = field(repr=False)
    name: str = field(repr=False)
    password_hash: str | None = field(repr=False)


class Secrets(Protocol):
    """Everything derived from the service's root secret, and the sealing of personal data."""

    def claim_id(self, canonical_email: str, *, duplicate: bool = False) -> UUID:
        """Stream of the address's claim; with `duplicate`, of the claim among those who only tried."""
        ...

    def registration_id_for(self, canonical_email: str, idempotency_key: str) -> UUID: ...

    def new_registration_id(self, now: datetime) -> UUID: ...

    def fingerprint(self, *parts: str) -> str:
        """Keyed hash by which a repeat of the same registration is recognised."""
        ...

    def code(self, registration_id: UUID, serial: int) -> str:
        """The six digits of an issue: HOTP (RFC 4226), never stored anywhere."""
        ...

    def message_id(self, registration_id: UUID, serial: int) -> str:
        """Left part of the Message-ID of an issue's mail: the same for every copy."""
        ...

    def seal(self, registration_id: UUID, person: Person) -> tuple[str, WrappedKey]:
        """Seal under a new key of that person's own; the key comes wrapped, to be stored in the same commit."""
        ...

    def open(self, registration_id: UUID, sealed: str, wrapped: bytes) -> Person: ...


class PasswordHasher(Protocol):
    async def hash(self, password: str, canonical_email: str) -> str:
        """argon2id in PHC format; the salt is derived from the address, so that a repeat gives the same.

        Raises:
            Overloaded: too many hashes are waiting.
        """
        ...


# --- Mail ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MailRequest:
    """ "Send the mail of this issue": all that ever travels between saga and worker.

    Attributes:
        position: of the request in the log; None if the message that brought it has lost it.
    """

    registration_id: UUID
    serial: int
    kind: str
    requested_at: datetime
    position: Position | None
    correlation_id: UUID
    trace: str | None


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail, rendered and addressed to exactly one mailbox.

    Attributes:
        to: the validated address, as typed.
        message_id: whole `<…@…>`, the same for every copy of one issue's mail.
        code: the code in text and html, if there is one: all that differs from another's letter of its kind.
    """

    to: str = field(repr=False)
    subject: str
    text: str = field(repr=False)
    html: str = field(repr=False)
    message_id: str
    locale: str
    code: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A mail server took the mail over (reply 250 to the end of data).

    Attributes:
        provider: `host:port` of the server.
        attempts: tries used up, 1 to 3.
        reply_code: the server's reply code.
    """

    provider: str
    attempts: int
    reply_code: int


MailFailure = Literal[
    # At a mail server (`infrastructure.mail.smtp.servers.judge_reply`):
    "timeout", "connection", "throttled", "greylisted", "mailbox-unknown", "content", "authentication", "tls",
    "temporary", "permanent",
    # In the broker, before any was called (`infrastructure.rabbitmq.mail_worker.FAILURES`):
    "expired", "crashed", "rejected", "overflow",
]  # fmt: skip
"""Why a mail was not sent, in classes fit for counting and for acting on."""

MAIL_FAILURES: Final[tuple[str, ...]] = get_args(MailFailure)


class NotSent(Exception):
    """No server took the mail.

    Attributes:
        failure: one of a mail server's.
        permanent: trying again is pointless (5xx about this mailbox or this mail).
        provider: the server tried last, `host:port`.
        attempts: tries used up.
        reply_code, reply_status: SMTP reply (550) and enhanced status code (5.1.1, RFC 3463) where there was one;
            never the reply's text, which may quote the address.
        outcome_unknown: the connection was lost after the end of data: the server may have taken it.
    """

    def __init__(
        self,
        failure: MailFailure,
        *,
        permanent: bool,
        provider: str,
        attempts: int,
        reply_code: int | None = None,
        reply_status: str | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(f"{failure} at {provider}")
        self.failure: MailFailure = failure
        self.permanent = permanent
        self.provider = provider
        self.attempts = attempts
        self.reply_code = reply_code
        self.reply_status = reply_status
        self.outcome_unknown = outcome_unknown


class MailServersAway(Unavailable):
    """Every mail server's circuit is open, or was opened now by a refusal that has nothing to do with the mail (login,
    certificate), or the time that was given was used up by waiting for a turn: no try is used up."""


class BrokerAway(Unavailable):
    """The message broker cannot be reached, or does not answer in time. What was published may arrive all the same."""


class MailServers(Protocol):
    async def send(self, letter: Letter, *, until: float | None = None) -> Accepted:
        """Hand the letter to the first server that takes it: up to 3 tries on transient errors.

        Args:
            until: by the event loop's clock; no try is begun that may take longer.

        Raises:
            NotSent: see there.
            MailServersAway: no server may be called now.
        """
        ...

    async def probe(self, *, until: float | None = None) -> Accepted:
        """Go all the way of `send` but for the mail itself: what becomes of it is what would become of a mail now.

        Args and Raises: as `send`.
        """
        ...

    async def until_ready(self) -> None:
        """Return when at least one server's circuit lets a call through."""
        ...


@dataclass(frozen=True, slots=True)
class SendClaim:
    """The right to send one issue's mail, and what opening its address takes.

    Attributes:
        wrapped: the personal key of the registration, wrapped; None if it was destroyed.
    """

    wrapped: bytes | None = field(repr=False)


class SendClaims(Protocol):
    """The right to send one issue's mail: at most one holder at a time, over all workers."""

    async def acquire(self, registration_id: UUID, serial: int) -> SendClaim | None:
        """The right, ours until released or until the lease ends; None: somebody may be sending it now."""
        ...

    async def release(self, registration_id: UUID, serial: int) -> None: ...
