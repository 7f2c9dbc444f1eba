"""The answer to the question that support hears most: why did this person not get the mail?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from application.story.sentences import because, cancelled, failure, tries
from application.story.words import duration, moment
from domain.mail_outcome import CancelReason
from domain.mail_saga import MailSaga
from domain.operator_act import OperatorAct
from domain.recorded import Recorded
from domain.registration import Registration

OVERDUE: Final = timedelta(minutes=1)
"""What should have been done so long ago is worth a word."""

_SOON: Final = timedelta(seconds=10)
"""Within it the mail saga comes to what is new, even after a change of its leader."""


@dataclass(slots=True)
class _Known:
    """What the events have said so far.

    Attributes:
        issued, asked, sent, failed, withheld: about the latest code's mail.
        sent_before: an earlier code's.
        look_again_at: when the saga does the next thing; None: it has ended, or not begun.
        act: the latest act of an operator that had an effect.
    """

    issued: Recorded | None = None
    asked: Recorded | None = None
    sent: Recorded | None = None
    sent_before: Recorded | None = None
    failed: list[Recorded] = field(default_factory=list)
    withheld: Recorded | None = None
    discarded: Recorded | None = None
    locked: Recorded | None = None
    verified: Recorded | None = None
    cancelled: Recorded | None = None
    erased: Recorded | None = None
    look_again_at: datetime | None = None
    act: OperatorAct.OperatorActed | None = None


def why(events: Sequence[Recorded], now: datetime) -> str:
    """One answer, about the mail with the latest code; `events` are those of one registration, in order."""
    known = _Known()
    for recorded in events:
        _learn(known, recorded)
    answer = _answer(known, now)
    if known.sent is None and known.sent_before is not None:
        answer += f" An earlier one was sent: {_accepted(known.sent_before)}."
    if known.erased is not None:
        answer += f" The person was erased at {moment(known.erased.recorded_at)}."
    return answer


def _learn(known: _Known, recorded: Recorded) -> None:
    match recorded.event:
        case Registration.OtpIssued():
            known.issued, known.sent_before = recorded, known.sent or known.sent_before
            known.asked = known.sent = known.withheld = known.discarded = known.locked = None
            known.failed = []
        case MailSaga.MailRequested():
            known.asked = known.asked or recorded
        case Registration.EmailDispatched(serial=serial):
            if known.issued is not None and serial == known.issued.event.serial:  # type: ignore[attr-defined]
                known.sent = recorded
            else:
                known.sent_before = recorded
        case Registration.EmailDispatchFailed():
            known.failed.append(recorded)
        case Registration.EmailWithheld():
            known.withheld = recorded
        case Registration.EmailDiscarded():
            known.discarded = recorded
        case Registration.CodeLocked():
            known.locked = recorded
        case Registration.EmailVerified():
            known.verified = recorded
        case Registration.RegistrationCancelled():
            known.cancelled = recorded
        case Registration.RegistrationReopened():
            known.cancelled = None
        case Registration.PersonalDataErased():
            known.erased = recorded
        case OperatorAct.OperatorActed() as act:
            known.act = act
    if isinstance(recorded.event, MailSaga.Event | MailSaga.MailSagaStarted):
        event = recorded.event
        known.look_again_at = getattr(event, "look_again_at", None) or getattr(event, "ends_at", None)


def _answer(known: _Known, now: datetime) -> str:
    if known.sent is not None:
        kind = ""
        if known.sent.event.kind == "notice":  # type: ignore[attr-defined]
            kind = " It was a notice to the owner of the account: the address was taken, so there was no code in it."
        return f"It was sent: {_accepted(known.sent)}{_since(known, known.sent)}.{kind} What came after that, only that server knows."
    if known.withheld is not None:
        return (
            f"It was withheld at {moment(known.withheld.recorded_at)}: the address belongs to an account, "
            "whose owner got a notice within the day before."
        )
    if known.verified is not None:
        return f"That it was sent is not recorded, but its code was entered at {moment(known.verified.recorded_at)}."
    if known.cancelled is not None:
        return _undone(known, known.cancelled)
    if known.discarded is not None:
        return (
            f"It was given up by an operator at {moment(known.discarded.recorded_at)}{_reason(known)}; "
            "the registration is being undone."
        )
    if known.failed:
        return f"It is waiting: {_last_failure(known)}.{_next(known, now)}"
    if known.asked is not None:
        return (
            f"It is on its way: the mail saga asked for it at {moment(known.asked.recorded_at)}, and no server's reply "
            f"is recorded yet.{_next(known, now)}"
        )
    if known.issued is not None:
        waits = now - known.issued.recorded_at
        if waits < _SOON:
            return f"It is about to be asked for: its code was issued {duration(waits)} ago."
        return (
            f"It was never asked for: the mail saga has not come to it for {duration(waits)}; "
            "does `registrar process` (or `up`) run, and does it follow (`registrar projections list`)?"
        )
    return "There was never a code to send."


def _undone(known: _Known, ended: Recorded) -> str:
    reason: str = ended.event.reason  # type: ignore[attr-defined]
    at = moment(ended.recorded_at)
    match reason:
        case CancelReason.UNDELIVERABLE if known.failed:
            return f"It was refused: {_last_failure(known)}; so the registration was undone at {at}."
        case CancelReason.EXPIRED if known.failed:
            return (
                f"It could not be sent before the registration ended at {at}: {_last_failure(known)} "
                f"(failure {len(known.failed)})."
            )
        case CancelReason.DISCARDED | CancelReason.OPERATOR | CancelReason.ERASED:
            return (
                f"It was not sent, because the registration was cancelled at {at}: {cancelled(reason)}{_reason(known)}."
            )
        case _:
            failed = f" Before that, {_last_failure(known)}." if known.failed else ""
            return f"It was not sent, because the registration was cancelled at {at}: {cancelled(reason)}.{failed}"


def _reason(known: _Known) -> str:
    return because(known.act.reason) if known.act is not None else ""


def _accepted(sent: Recorded) -> str:
    event = sent.event
    assert isinstance(event, Registration.EmailDispatched)  # noqa: S101 - narrows
    return (
        f"at {moment(sent.recorded_at)} mail server {event.provider} accepted it "
        f"with {event.reply_code}{tries(event.attempts)}"
    )


def _since(known: _Known, sent: Recorded) -> str:
    if known.issued is None:
        return ""
    after = f", {duration(sent.recorded_at - known.issued.recorded_at)} after its code was issued"
    failures = len(known.failed)
    return after + (f" and {failures} failed {'try' if failures == 1 else 'tries'} before" if failures else "")


def _last_failure(known: _Known) -> str:
    last = known.failed[-1]
    assert isinstance(last.event, Registration.EmailDispatchFailed)  # noqa: S101 - narrows
    return f"at {moment(last.recorded_at)}, {failure(last.event)}"


def _next(known: _Known, now: datetime) -> str:
    if known.locked is not None:
        return " Its code was locked meanwhile; a new one will be sent."
    if known.look_again_at is None:
        return ""
    if now > known.look_again_at + OVERDUE:
        return (
            f" The next look was due at {moment(known.look_again_at)} and is overdue by "
            f"{duration(now - known.look_again_at)}: does `registrar process` (or `up`) run, and is this "
            "registration's stream parked (`registrar projections parked list`)?"
        )
    return f" The next look is at {moment(known.look_again_at)}."
