"""What becomes of a mail, and why a code or a registration begins or ends: the values that events record.

The log holds them as the words they stand for, so their spelling is for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, get_args


class MailKind(StrEnum):
    """What a registration's mails are: a code, or for a duplicate a notice to the account's owner."""

    CODE = "code"
    NOTICE = "notice"


class IssueReason(StrEnum):
    """Why a code came into force."""

    REGISTERED = "registered"
    REQUESTED = "requested"
    STALE = "stale"


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
    "timeout", "connection", "throttled", "greylisted", "mailbox-unknown", "content", "authentication", "tls",
    "temporary", "permanent",
    # In the broker, before any was called (`infrastructure.rabbitmq.dead_letters.FAILURES`):
    "expired", "crashed", "rejected", "overflow",
]  # fmt: skip
"""Why a mail was not sent, in classes fit for counting and for acting on."""

MAIL_FAILURES: Final[tuple[str, ...]] = get_args(MailFailure)


@dataclass(frozen=True, slots=True)
class HandOver:
    """A mail server took the mail over (reply 250 to the end of data).

    Attributes:
        provider: `host:port` of the server.
        attempts: tries used up, 1 to 3.
        reply_code: the server's reply code.
    """

    provider: str
    attempts: int
    reply_code: int


@dataclass(frozen=True, slots=True)
class DispatchFailure:
    """No mail server took the mail.

    Attributes:
        permanent: trying again is pointless (5xx about this mailbox or this mail).
        provider: the server tried last, `host:port`; "broker" if the request died there.
        attempts: tries used up.
        reply_code, reply_status: SMTP reply (550) and enhanced status code (5.1.1, RFC 3463) where there was one;
            never the reply's text, which may quote the address.
        outcome_unknown: the connection was lost after the end of data: the server may have taken it.
    """

    failure: MailFailure
    permanent: bool
    provider: str
    attempts: int
    reply_code: int | None = None
    reply_status: str | None = None
    outcome_unknown: bool = False
