"""What a command of the saga records, and whether it would have recorded anything at some moment of the past."""

from __future__ import annotations

from datetime import datetime
from enum import Enum, auto
from typing import Any, Final

from application.commands import (
    ActivateAccount,
    CancelRegistration,
    Command,
    ReleaseEmail,
    ReplaceStaleCode,
    RevokeOtp,
)
from application.what_if.history import History, Mark
from domain.email_claim import EmailClaim
from domain.errors import Refused
from domain.mail_outcome import CancelReason
from domain.recorded import Position, Recorded
from domain.registration import Registration

EFFECTS: Final[dict[type[Command], str]] = {
    ActivateAccount: Registration.AccountActivated.TOPIC,
    CancelRegistration: Registration.RegistrationCancelled.TOPIC,
    ReleaseEmail: EmailClaim.EmailReleased.TOPIC,
    ReplaceStaleCode: Registration.OtpIssued.TOPIC,
    RevokeOtp: Registration.OtpRevoked.TOPIC,
}
"""The topic of what each of the saga's commands records when it has an effect."""


class Outcome(Enum):
    """What a command would have done."""

    SOMETHING = auto()
    NOTHING = auto()
    REFUSED = auto()


def is_effect_of(mark: Mark, command: Command) -> bool:
    """Can this event be what the command recorded?"""
    if EFFECTS.get(type(command)) != mark.topic:
        return False
    match command, mark:
        case CancelRegistration(reason=reason), Recorded(event=Registration.RegistrationCancelled() as cancelled):
            # One that expires after it was superseded says so.
            expired = reason is CancelReason.EXPIRED and cancelled.reason == CancelReason.SUPERSEDED
            return cancelled.reason == reason or expired
        case ReplaceStaleCode(serial=serial), Recorded(event=Registration.OtpIssued() as issued):
            return issued.serial == serial + 1
        case _:
            return True


def outcome_at(command: Command, history: History, position: Position, now: datetime) -> Outcome:
    """What the command would have done at a position."""
    registration: Any = None
    for one in history.registration:
        if one.position > position:
            break
        registration = one.event.mutate(registration)
    if registration is None:
        return Outcome.NOTHING
    try:
        changed = _run(command, registration, history, position, now)
    except Refused:
        return Outcome.REFUSED
    return Outcome.SOMETHING if changed is not None and changed.pending_events else Outcome.NOTHING


def _run(
    command: Command, registration: Registration, history: History, position: Position, now: datetime
) -> Registration | EmailClaim | None:
    """As `application.handlers` runs it."""
    match command:
        case ActivateAccount():
            registration.activate(now=now)
        case RevokeOtp():
            registration.revoke_code(now=now)
        case CancelRegistration(reason=reason):
            registration.cancel(reason=reason, now=now)
        case ReplaceStaleCode(serial=serial):
            registration.replace_stale_code(serial=serial, now=now)
        case ReleaseEmail():
            claim = history.claim_at(position)
            if claim is not None and not registration.is_pending:
                claim.release(registration_id=registration.id, now=now)
            return claim
        case _:
            raise TypeError(f"the saga has no command {type(command).__name__}; say here what it does")
    return registration
