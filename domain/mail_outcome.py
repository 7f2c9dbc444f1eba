"""What happened to a mail, why a code was issued, why a registration was undone: the values that events record.

The log stores these strings, so their spelling never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, get_args


class MailKind(StrEnum):
    """What a registration's mails contain: a code or, for a duplicate, a notice to the owner of the account."""

    CODE = "code"
    NOTICE = "notice"


class IssueReason(StrEnum):
    """Why a code was issued."""

    REGISTERED = "registered"
    REQUESTED = "requested"
    STALE = "stale"
    REOPENED = "reopened"
    INVITED = "invited"


class CancelReason(StrEnum):
    """Why a registration was undone."""

    EXPIRED = "expired"
    UNDELIVERABLE = "undeliverable"
    DISCARDED = "discarded"
    SUPERSEDED = "superseded"
    GUESSED = "guessed"
    OPERATOR = "operator"
    ERASED = "erased"


MailFailure = Literal[
    # At a mail server (`infrastructure.mail.smtp.replies.judge_reply`):
    "timeout", "connection", "throttled", "greylisted", "mailbox-unknown", "refused", "content", "authentication", "tls",
    "temporary", "permanent",
    # In the broker, before any mail server was called (`infrastructure.rabbitmq.dead_letters.FAILURES`):
    "expired", "crashed", "rejected", "overflow",
]  # fmt: skip
"""Why a mail was not sent: classes to count and to act on."""

MAIL_FAILURES: Final[tuple[str, ...]] = get_args(MailFailure)


@dataclass(frozen=True, slots=True)
class HandOver:
    """A mail server accepted the mail (reply 250 to the end of data).

    Attributes:
        provider: `host:port` of the server.
        attempts: number of tries, 1 to 3.
        reply_code: the server's reply code.
    """

    provider: str
    attempts: int
    reply_code: int


@dataclass(frozen=True, slots=True)
class Bounce:
    """A mail that a server had accepted came back.

    Attributes:
        failure: "mailbox-unknown", "refused", "content", "permanent" or "temporary".
        permanent: the mailbox takes none; otherwise it may take one later.
        reply_status: enhanced status code (5.1.1, RFC 3463) where there was one; never the notification's text, which
            may quote the address.
        reported_by: "dsn" (a notification by mail) or the provider's name ("ses"); of complaints also "arf" (a feedback
            report by mail).
    """

    failure: MailFailure
    permanent: bool
    reply_status: str | None
    reported_by: str


@dataclass(frozen=True, slots=True)
class DispatchFailure:
    """No mail server accepted the mail.

    Attributes:
        permanent: retrying is pointless (5xx about this mailbox or this mail).
        provider: the server tried last, `host:port`; "broker" if the request became a dead letter.
        attempts: number of tries.
        reply_code, reply_status: SMTP reply (550) and enhanced status code (5.1.1, RFC 3463) where there was one;
            never the reply's text, which may quote the address.
        outcome_unknown: the connection was lost after the end of data: the server may have accepted the mail.
        circuit: state of that server's circuit after the last try: "closed", "half-opened" or "opened"; None without a
            server.
    """

    failure: MailFailure
    permanent: bool
    provider: str
    attempts: int
    reply_code: int | None = None
    reply_status: str | None = None
    outcome_unknown: bool = False
    circuit: str | None = None
