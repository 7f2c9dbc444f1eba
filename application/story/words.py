"""Times, durations and names in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from application.operator_acts import SEARCH_REGISTRATIONS, SHOW_REGISTRATION
from domain.mail_outcome import CancelReason
from domain.recorded import Actor

ACTORS: Final[Mapping[str, str]] = {
    Actor.CLIENT: "a client",
    Actor.OPERATOR: "an operator",
    Actor.MAIL_SAGA: "the mail saga",
    Actor.MAIL_WORKER: "the mail worker",
    Actor.DEAD_LETTER_CONSUMER: "the consumer of dead letters",
    Actor.RESTORE: "the first start after a restore",
    Actor.PROBE: "the probe",
    Actor.BOUNCE_REPORT: "a report of a bounce",
}

ACTS: Final[Mapping[str, str]] = {
    "cancel-registration": "cancelled the registration",
    "erase-registration": "erased the person",
    "set-password": "set the password",
    "retry-mail": "had the mail tried again",
    "discard-mail": "gave the mail up",
    "allow-mailbox": "had the mailbox sent mails again",
    "discard-stray-message": "discarded a foreign message",
    "import-users": "took users over from another system",
    "retry-parked-stream": "had a parked stream tried again",
}
"""By `application.operator_acts.act_of`; for a registration's story."""

LOOKS: Final[Mapping[str, str]] = {SEARCH_REGISTRATIONS: "in a search", SHOW_REGISTRATION: "with all about it"}

CANCELLED: Final[Mapping[str, str]] = {
    CancelReason.EXPIRED: "the address was not verified in time",
    CancelReason.UNDELIVERABLE: "the mail could not be delivered",
    CancelReason.DISCARDED: "an operator gave the mail up",
    CancelReason.SUPERSEDED: "another registration of the same address took its place",
    CancelReason.GUESSED: "too many wrong codes were entered",
    CancelReason.OPERATOR: "an operator cancelled it",
    CancelReason.ERASED: "the person was erased",
}

FAILURES: Final[Mapping[str, str]] = {
    "timeout": "it did not reply in time",
    "connection": "it could not be reached",
    "throttled": "it takes fewer mails from us at present",
    "greylisted": "it asked us to come again later",
    "mailbox-unknown": "it knows no such mailbox",
    "refused": "it refuses mail from us",
    "content": "it refused what the mail contains",
    "authentication": "it did not accept our login",
    "tls": "the connection could not be encrypted",
    "temporary": "it had a temporary failure",
    "permanent": "it refused the mail for good",
    "expired": "the request had waited there too long, and no mail server was called",
    "crashed": "its workers had crashed over the request",
    "rejected": "a worker had rejected the request",
    "overflow": "the queue was full",
}
"""By `domain.mail_outcome.MailFailure`; "it" is the mail server, or the broker."""


def moment(at: datetime) -> str:
    """A time (UTC), to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(took: timedelta) -> str:
    """A duration with two units at most."""
    seconds = took.total_seconds()
    if seconds < 0:
        return f"-{duration(-took)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {name}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError  # a minute at least
