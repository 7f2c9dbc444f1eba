"""The mail saga's decisions: a pure function of its state, an event or deadline, and the time.

It only issues commands, all of them idempotent, and records its decisions in a stream of its own. The process manager
(`infrastructure/followers/process_manager.py`) runs the commands first and then saves those events together with its
position; after a crash in between, the commands are repeated without effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Final
from uuid import UUID

from application.commands import (
    ActivateAccount,
    CancelRegistration,
    Command,
    ReleaseEmail,
    ReplaceStaleCode,
    RevokeOtp,
)
from domain.email_claim import ClaimId
from domain.mail_outcome import CancelReason, MailKind
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import AnyEvent
from domain.registration import Registration

SECOND_LOOK = timedelta(minutes=2)
"""A mail neither dispatched nor failed by then is requested again; the delay doubles with each request."""

RETRY_DELAYS = tuple(timedelta(seconds=s) for s in (30, 120, 360, 900, 3600))
"""Delays after transient failures; the last one repeats until the registration ends. Chosen to outlast a greylisting
(5 minutes) while the first code is still valid, and an outage of hours without undoing anything."""

UNTRIED: Final = "expired"
"""Failure of a request that waited too long in the broker: no mail server was called, so it does not count as a try."""

JITTER = 0.2
"""A retry comes earlier or later by up to this fraction, so that an outage's backlog does not return as one wave."""


SOURCES = tuple(
    event.TOPIC
    for event in (
        Registration.UserRegistered,
        Registration.UserInvited,
        Registration.OtpIssued,
        Registration.EmailDispatched,
        Registration.EmailWithheld,
        Registration.EmailDispatchFailed,
        Registration.EmailBounced,
        Registration.EmailRetryRequested,
        Registration.EmailDiscarded,
        Registration.CodeLocked,
        Registration.EmailVerified,
        Registration.AccountActivated,
        Registration.RegistrationCancelled,
        Registration.RegistrationReopened,
    )
)
"""The topics that the saga reacts to."""


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """The saga's `look_again_at` has passed."""

    registration_id: UUID


def react(
    saga: MailSaga | None, happened: AnyEvent | DeadlineReached, now: datetime, policy: Policy
) -> tuple[MailSaga | None, list[Command]]:
    """Decide what follows from an event or a deadline.

    Returns the saga (new on the first event), with its decisions as pending events, and the commands to run, in order.

    Over 40 lines, because it is one table of cases, best read in one piece.
    """
    match happened:
        case Registration.UserRegistered() | Registration.UserInvited():
            if saga is None:
                notice = isinstance(happened, Registration.UserRegistered) and happened.duplicate_of is not None
                saga = MailSaga.start(
                    registration_id=happened.originator_id,
                    claim_id=ClaimId(UUID(happened.claim_id)),
                    kind=MailKind.NOTICE if notice else MailKind.CODE,
                    ends_at=happened.timestamp + policy.registration_ttl,
                    now=now,
                )
            return saga, []
        case Registration.RegistrationReopened() if saga is not None:
            saga.reopen(ends_at=happened.timestamp + policy.registration_ttl, now=now)
            return saga, []
        case _ if saga is None or saga.ended:
            return saga, []
        case DeadlineReached():
            return saga, _look_again(saga, now, policy)
        case Registration.OtpIssued(serial=serial) if serial > saga.serial:
            saga.request_mail(serial=serial, issued_at=happened.timestamp, look_again_at=now + SECOND_LOOK, now=now)
            return saga, []
        case Registration.EmailDispatched(serial=serial) | Registration.EmailWithheld(serial=serial):
            if serial == saga.serial and saga.awaits_outcome:
                saga.await_end(now=now)
            return saga, []
        case Registration.EmailDispatchFailed(serial=serial, permanent=permanent):
            if serial != saga.serial or not saga.awaits_outcome:
                return saga, []
            if permanent:
                return saga, _undo(saga, CancelReason.UNDELIVERABLE, now)
            if happened.failure == UNTRIED:
                saga.schedule_retry(look_again_at=now + _untried_delay(saga), untried=True, now=now)
                return saga, []
            saga.schedule_retry(look_again_at=now + _retry_delay(saga), now=now)
            return saga, []
        case Registration.EmailBounced(serial=serial, permanent=permanent):
            if serial != saga.serial or saga.undoing is not None:
                return saga, []
            if permanent:
                return saga, _undo(saga, CancelReason.UNDELIVERABLE, now)
            saga.schedule_retry(look_again_at=now + _retry_delay(saga), now=now)
            return saga, []
        case Registration.CodeLocked(serial=serial) if serial == saga.serial and saga.awaits_outcome:
            saga.note_dead_code(now=now)
            return saga, []
        case Registration.EmailRetryRequested():
            return saga, _try_again(saga, now, policy)
        case Registration.EmailDiscarded():
            return saga, _undo(saga, CancelReason.DISCARDED, now)
        case Registration.EmailVerified():
            # The saga ends only once the activation is in the log, too.
            return saga, [ActivateAccount(registration_id=saga.registration_id)]
        case Registration.AccountActivated():
            saga.end(outcome="active", now=now)
            return saga, []
        case Registration.RegistrationCancelled(reason=reason):
            # By the saga's compensation or an operator; it may hold its address, if the log is of release 0.1.0.
            saga.end(outcome=reason, now=now)
            return saga, [ReleaseEmail(registration_id=saga.registration_id, claim_id=saga.claim_id)]
        case _:
            return saga, []


def _look_again(saga: MailSaga, now: datetime, policy: Policy) -> list[Command]:
    if saga.look_again_at is None or now < saga.look_again_at:
        return []
    if saga.undoing is not None:
        return _undo(saga, saga.undoing, now)
    if now >= saga.ends_at:
        return _undo(saga, CancelReason.EXPIRED, now)
    if saga.awaits_outcome:
        return _try_again(saga, now, policy)
    return []


def _try_again(saga: MailSaga, now: datetime, policy: Policy) -> list[Command]:
    """Request the current mail again, or a new code if the current one would be stale on arrival."""
    if not saga.awaits_outcome or saga.issued_at is None:
        return []
    # The delay doubles with each request: a long outage must not pile up requests for one mail.
    wait = min(SECOND_LOOK * 2 ** min(saga.requests, 5), RETRY_DELAYS[-1])
    if saga.code_dead or now >= saga.issued_at + policy.otp_ttl:
        saga.ask_fresh_code(look_again_at=now + wait, now=now)
        return [ReplaceStaleCode(registration_id=saga.registration_id, serial=saga.serial)]
    saga.request_mail(serial=saga.serial, issued_at=saga.issued_at, look_again_at=now + wait, now=now)
    return []


def _undo(saga: MailSaga, reason: CancelReason, now: datetime) -> list[Command]:
    """Compensate, in reverse order: revoke the code, cancel the registration, release the address.

    The last step waits until the cancellation is in the log: if the registrant has verified in the meantime, the
    cancellation is refused, and the address must stay with the account.
    """
    saga.undo(reason=reason, look_again_at=now + SECOND_LOOK, now=now)
    return [
        RevokeOtp(registration_id=saga.registration_id),
        CancelRegistration(registration_id=saga.registration_id, reason=reason),
    ]


def _retry_delay(saga: MailSaga) -> timedelta:
    return _jittered(RETRY_DELAYS[min(saga.failures, len(RETRY_DELAYS) - 1)], saga, saga.failures)


def _untried_delay(saga: MailSaga) -> timedelta:
    """Doubled with each request: too few workers must not be given each mail ever more often."""
    return _jittered(min(RETRY_DELAYS[0] * 2 ** min(saga.requests - 1, 10), RETRY_DELAYS[-1]), saga, saga.requests)


def _jittered(delay: timedelta, saga: MailSaga, number: int) -> timedelta:
    # Derived from the ids instead of random: the same decision on every machine and in every replay of a test.
    digest = blake2b(saga.registration_id.bytes + number.to_bytes(4, "big"), digest_size=8).digest()
    part = int.from_bytes(digest, "big") / 2**64
    return delay * (1 + JITTER * (2 * part - 1))
