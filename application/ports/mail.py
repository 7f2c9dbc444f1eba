"""Mails: the request, the letter, the outcome, and the right to send it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, NamedTuple, Protocol
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer

from application.ports.log import Streams
from domain.mail_outcome import DispatchFailure, HandOver, MailKind
from domain.recorded import Position


def _aware(at: datetime) -> datetime:
    """A time without a zone is taken as UTC."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class WantedMail:
    """Which mail is wanted: the body of its message, field by field (docs/contract.md). Checked on reading."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", hide_input_in_errors=True)

    registration_id: UUID
    serial: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
    kind: MailKind
    requested_at: Annotated[datetime, AfterValidator(_aware), PlainSerializer(datetime.isoformat)]


@dataclass(frozen=True, slots=True)
class MailRequest:
    """ "Send the mail of this issue": all that is passed from the saga to a worker.

    Attributes:
        position: of the request in the log; None if its message lacks it.
    """

    wanted: WantedMail
    position: Position | None
    correlation_id: UUID
    trace: str | None

    @property
    def registration_id(self) -> UUID:
        return self.wanted.registration_id

    @property
    def serial(self) -> int:
        return self.wanted.serial

    @property
    def kind(self) -> MailKind:
        return self.wanted.kind

    @property
    def requested_at(self) -> datetime:
        return self.wanted.requested_at


CODE_GAP: Final = "\x1a"
"""Placeholder for the code in a rendered mail: the character SUBSTITUTE, which no template and no URL contains."""
ID_GAP: Final = "\x1d"
"""The same for the registration's id: GROUP SEPARATOR."""


class Rendered(NamedTuple):
    """The text of a mail, shared by all mails of one kind and language: `CODE_GAP` stands where the code goes, `ID_GAP`
    where the id does."""

    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail, rendered and addressed to exactly one mailbox.

    Attributes:
        to: the validated address, as typed.
        message_id: complete, `<…@…>`; the same for every copy of one issue's mail.
        code: what replaces `CODE_GAP`, None if the text has none.
        registration_id: what replaces `ID_GAP`.
        return_path: sender of the envelope, whom what bounces is sent to; None: `MAIL_FROM`.
    """

    to: str = field(repr=False)
    rendered: Rendered
    message_id: str
    locale: str
    code: str | None = field(default=None, repr=False)
    registration_id: UUID | None = None
    return_path: str | None = None


class NotSent(Exception):
    """No server accepted the mail."""

    def __init__(self, failure: DispatchFailure) -> None:
        super().__init__(f"{failure.failure} at {failure.provider}")
        self.failure = failure


class MailServers(Protocol):
    async def send(
        self, letter: Letter, *, until: float | None = None, on_content: Callable[[], None] = lambda: None
    ) -> HandOver:
        """Hand the letter to the first server that accepts it: up to 3 tries on transient errors.

        Args:
            until: deadline by the event loop's clock; a try whose content may be sent later is not started.
            on_content: called whenever a server has the whole content and its reply is awaited, for minutes perhaps.

        Raises:
            NotSent: no server accepted it.
            MailServersAway: no server may be called now.
        """
        ...

    async def probe(self, *, until: float | None = None) -> HandOver:
        """Do all that `send` does except sending the mail: the outcome is that of a mail sent now.

        Args, Raises: as `send`.
        """
        ...

    async def until_ready(self) -> None:
        """Return once the circuit of at least one server lets a call through."""
        ...


@dataclass(frozen=True, slots=True)
class SendClaim:
    """The right to send one issue's mail, and what that takes.

    Attributes:
        wrapped: the registration's personal key, with which its address is sealed, wrapped; None if it was destroyed.
        streams: the registration's stream, and maybe others, read when the claim was had: so it has what the previous
            holder recorded. It may have an erasure that came after the key was read.
    """

    wrapped: bytes | None = field(repr=False)
    streams: Streams = field(repr=False)


class SendClaims(Protocol):
    """The right to send one issue's mail: at most one holder at a time, over all workers."""

    async def acquire(self, registration_id: UUID, serial: int) -> SendClaim | None:
        """The claim, until it is released or its lease ends; None: another worker may be sending the mail now."""
        ...

    async def is_erased(self, registration_id: UUID) -> bool:
        """Is the personal key destroyed since? Asked about letters that wait for long.

        Raises:
            Unavailable: the database is away.
        """
        ...

    def keep(self, registration_id: UUID, serial: int) -> None:
        """Extend the claim again and again, until it is released or lost."""
        ...

    async def release(self, registration_id: UUID, serial: int) -> None: ...
