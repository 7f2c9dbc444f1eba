"""What the service is at beside the log, as far as it says why a mail has not gone out yet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from application.story.words import duration, moment
from domain.recorded import Position

OVERDUE: Final = timedelta(minutes=1)
"""What should have been done so long ago is worth a word."""

SOON: Final = timedelta(seconds=10)
"""Within it the mail saga comes to what is new, even after a change of its leader, and a worker to a mail."""


@dataclass(frozen=True, slots=True)
class AtPresent:
    """All of it may be different a second later.

    Attributes:
        saga_behind: events that the mail saga has not come to yet.
        relayed_upto: up to this position every requested mail was handed over: to RabbitMQ, or to a mail server.
        parked_at: since when the mail saga has put this registration aside; None: it has not.
        parked_for: the kind of error for which it has.
        sending_until: a worker has the right to send a mail of this registration, until then at the latest.
        shut: mail servers that are not called now: their circuits are open.
        troubled: mail servers that may be called, and take none of our mails.
        servers: how many mail servers the workers use.
    """

    saga_behind: int
    relayed_upto: Position
    parked_at: datetime | None
    parked_for: str | None
    sending_until: datetime | None
    shut: tuple[str, ...]
    troubled: tuple[str, ...]
    servers: int


def under_way(request: Position, waits: timedelta, present: AtPresent | None) -> str:
    """Where a mail is that was asked for at this position, so long ago; empty where it is too early to ask."""
    if present is None or waits < SOON:
        return ""
    if present.sending_until is not None:
        return (
            " A worker is sending it now, or waits for a mail server's reply; it may do so until "
            f"{moment(present.sending_until)}."
        )
    if present.relayed_upto < request:
        where = " It has not been handed to a worker yet"
        if blocked := servers(present):
            return f"{where}.{blocked}"
        return f"{where}: does `registrar process` (or `up`) run, and is RabbitMQ there, if it is used?"
    return (
        " It was handed over, and no worker has told what became of it: does `registrar work` (or `up`) run, and how "
        f"long is RabbitMQ's queue, if it is used?{servers(present)}"
    )


def servers(present: AtPresent | None) -> str:
    """Which mail servers take nothing now; empty if all do."""
    if present is None:
        return ""
    shut, says = present.shut, ""
    if shut and len(shut) >= present.servers:
        says = f" No mail server is called at present: the circuit of {_list(shut)} is open."
    elif shut:
        says = f" The circuit of mail server {_list(shut)} is open; others are called."
    if present.troubled:
        says += f" Mail server {_list(present.troubled)} takes none of our mails at present."
    return says


def parked(present: AtPresent | None) -> str:
    """That the mail saga has put this registration aside, if it has."""
    if present is None or present.parked_at is None:
        return ""
    return (
        f" The mail saga has put this registration aside since {moment(present.parked_at)} ({present.parked_for}), and "
        "does nothing about it until that is mended: `registrar projections parked show` tells more."
    )


def late(due: datetime, now: datetime, present: AtPresent | None) -> str:
    """A question for whoever can look, about a saga that should have acted by now."""
    says = f"overdue by {duration(now - due)}"
    if present is None:
        return (
            f"{says}: does `registrar process` (or `up`) run, and is this registration's stream parked "
            "(`registrar projections parked list`)?"
        )
    if present.parked_at is not None:
        return f"{says}."
    behind = f"the mail saga is {present.saga_behind:,} events behind; " if present.saga_behind else ""
    return f"{says}: {behind}does `registrar process` (or `up`) run?"


def _list(names: tuple[str, ...]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
