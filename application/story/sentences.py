"""One event, one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from application.story.words import ACTS, CANCELLED, FAILURES, LOOKS, moment
from domain.email_claim import EmailClaim
from domain.kept_answer import KeptAnswer
from domain.mail_saga import MailSaga
from domain.mailbox import Mailbox
from domain.operator_act import OperatorAct
from domain.parked_retry import ParkedRetry
from domain.password_checks import PasswordChecks
from domain.recorded import AnyEvent
from domain.registration import Registration

_ISSUED: Final[Mapping[str, str]] = {
    "registered": "for the new registration",
    "requested": "because the person asked for another one",
    "stale": "because the one before would have been too old on arrival",
    "reopened": "because the registration was reopened",
    "invited": "for the invitation",
}

_BY_MAIL: Final[Mapping[str, str]] = {"dsn": "a notification by mail", "arf": "a feedback report by mail"}

_ENDED: Final[Mapping[str, str]] = {"active": "the account is active"} | dict(CANCELLED)

_PLAIN: Final[Mapping[type[AnyEvent], str]] = {
    Registration.UserInvited: "Invited to verify the address.",
    Registration.RegistrationReopened: "The registration was reopened.",
    Registration.PasswordSet: "The account has another password from here on.",
    Registration.PasswordRehashed: "The password was right, and is kept as a stronger hash from here on.",
}


def sentence(event: AnyEvent) -> str:
    """What an event says, without personal data; its name where there are no words for it.

    Over 40 lines, because it is one table.
    """
    if (plain := _PLAIN.get(type(event))) is not None:
        return plain
    match event:
        case Registration.UserRegistered(duplicate_of=None):
            return "Registered."
        case Registration.UserRegistered():
            return (
                f"Registered for an address that account {event.duplicate_of} holds: "
                "no code will match, and the owner gets a notice."
            )
        case Registration.UserImported(verified=verified):
            so = ", and waits for an invitation" if not verified else ", where the address was verified: an account"
            return f"Taken over from another system{so}."
        case Registration.OtpIssued():
            why = _ISSUED.get(event.reason, event.reason)
            unsent = "; its mail is withheld, because the mailbox has had as many as it is sent" * bool(event.withheld)
            return f"Code {event.serial} was issued {why}{unsent}."
        case Registration.EmailDispatched():
            return (
                f"Mail server {event.provider} accepted {mail(event)} with {event.reply_code}{tries(event.attempts)}."
            )
        case Registration.EmailWithheld():
            return f"Mail {event.serial} was withheld."
        case Registration.EmailDispatchFailed():
            return f"{mail(event).capitalize()} was not sent: {failure(event)}."
        case Registration.EmailBounced():
            return f"{mail(event).capitalize()} came back: {bounce(event)}."
        case Registration.EmailComplained():
            return f"{mail(event).capitalize()} was marked as unwanted, as {reported_by(event)} reported."
        case Registration.EmailRetryRequested():
            return f"Mail {event.serial} is to be tried again now."
        case Registration.EmailDiscarded():
            return f"Mail {event.serial} was given up; the registration is to be undone."
        case Registration.OwnerNotified():
            return f"The owner of this account was told by mail of registration {event.duplicate_id}."
        case Registration.CodeRejected():
            return f"A wrong code was entered for code {event.serial} (try {event.attempt})."
        case Registration.CodeLocked():
            return f"Code {event.serial} was locked: no tries are left."
        case Registration.EmailVerified():
            return f"Code {event.serial} was entered: the address is verified."
        case Registration.AccountActivated():
            return "The account was activated."
        case Registration.OtpRevoked():
            return f"Undone: code {event.serial} was revoked."
        case Registration.RegistrationCancelled():
            return f"Undone: the registration was cancelled, because {cancelled(event.reason)}."
        case Registration.RegistrationSuperseded():
            return f"Registration {event.by} has the address: no code of this one will match any more."
        case PasswordChecks.ChecksFailed():
            return f"The password was wrong {event.failed} times since {moment(event.since)}, and never right."
        case Registration.PersonalDataErased():
            return "The person's key was destroyed: address and name cannot be read any more."
        case EmailClaim.EmailClaimed():
            return "The address belongs to this registration."
        case Mailbox.MailDecided() if event.lifts:
            return "The mailbox is sent mails again, to whoever asks from now on."
        case Mailbox.MailDecided() if event.silences:
            return "The mailbox is sent no more: a mail there was marked as unwanted."
        case Mailbox.MailDecided():
            decided = "will be withheld" if event.withheld else "may be sent"
            return f"Mail {event.serial} {decided}: the mailbox was granted {len(event.granted)} within a day."
        case EmailClaim.EmailReleased():
            return "Undone: the address is free again."
        case MailSaga.MailSagaStarted():
            return f"Decided: if the address is not verified by {moment(event.ends_at)}, undo the registration."
        case MailSaga.MailRequested():
            again = "" if event.request == 1 else f" again (request {event.request})"
            return f"Decided: send mail {event.serial}{again}, and look again at {moment(event.look_again_at)}."
        case MailSaga.RetryScheduled():
            failures = f" (failure {event.failures})" if event.failures else ""
            return f"Decided: try mail {event.serial} again at {moment(event.look_again_at)}{failures}."
        case MailSaga.CodeFoundDead():
            return f"Noted: code {event.serial} is locked, so its mail is of no use."
        case MailSaga.FreshCodeAsked():
            return f"Decided: replace code {event.serial} instead of sending one that is too old on arrival."
        case MailSaga.EndAwaited():
            return f"Decided: wait for the person until {moment(event.look_again_at)}."
        case MailSaga.UndoDecided():
            return f"Decided: undo the registration, because {cancelled(event.reason)}."
        case MailSaga.MailSagaReopened():
            return f"Decided: begin again; if the address is not verified by {moment(event.ends_at)}, undo it."
        case MailSaga.MailSagaEnded():
            return f"Nothing is left to do: {_ENDED.get(event.outcome, event.outcome)}."
        case OperatorAct.OperatorActed():
            return f"An operator {did(event.act)}{because(event.reason)}."
        case OperatorAct.PersonalDataRead():
            where = LOOKS.get(event.act, event.act)
            return f"An operator was shown address and name in clear, {where}{because(event.reason)}."
        case KeptAnswer.AnswerKept():
            return f"The answer to this request ({event.request}) is kept, for whoever repeats it with its key."
        case ParkedRetry.ParkedRetryAsked():
            return f"Follower {event.follower} was asked to try its parked stream again."
        case _:
            return f"{type(event).__name__}."


def mail(
    event: Registration.EmailDispatched
    | Registration.EmailDispatchFailed
    | Registration.EmailBounced
    | Registration.EmailComplained,
) -> str:
    """Which mail it was."""
    return f"mail {event.serial}" + (", the notice to the owner of the account," if event.kind == "notice" else "")


def failure(event: Registration.EmailDispatchFailed) -> str:
    """Why a mail was not sent: the server, the class of its reply, and the reply."""
    where = "the broker" if event.provider == "broker" else f"mail server {event.provider}"
    reply = " ".join(str(part) for part in (event.reply_code, event.reply_status) if part is not None)
    said = f"{where} replied {reply}" if reply else f"no reply from {where}"
    if event.provider == "broker":
        said = f"{where} gave it back"
    final = "permanent" if event.permanent else "temporary"
    unknown = ". The connection was lost at the end, so that server may have it all the same" * event.outcome_unknown
    why = FAILURES.get(event.failure, event.failure)
    circuit = f"; the server's circuit was {event.circuit} then" if event.circuit is not None else ""
    return f"{said}{tries(event.attempts)} ({event.failure}, {final}): {why}{circuit}{unknown}"


def bounce(event: Registration.EmailBounced) -> str:
    """Why a mail came back, and who says so."""
    status = f" {event.reply_status}" if event.reply_status is not None else ""
    final = "permanent" if event.permanent else "temporary"
    why = FAILURES.get(event.failure, event.failure)
    return f"{reported_by(event)} reported{status} ({event.failure}, {final}) of the mailbox's server: {why}"


def reported_by(event: Registration.EmailBounced | Registration.EmailComplained) -> str:
    """Who reported it."""
    return _BY_MAIL.get(event.reported_by, event.reported_by)


def tries(attempts: int) -> str:
    """How many tries it took, where it took more than one."""
    return f" at try {attempts}" if attempts > 1 else ""


def cancelled(reason: str) -> str:
    """Why a registration was undone."""
    return CANCELLED.get(reason, reason)


def did(act: str) -> str:
    """What an operator did; its name where there are no words for it."""
    return ACTS.get(act, f"did {act}")


def because(reason: str | None) -> str:
    """The reason that an operator gave."""
    return f', because "{reason}"' if reason else ", without a reason"
