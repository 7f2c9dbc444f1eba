"""The answer to the question that support hears most: why did this person not get the mail?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from application.story.at_present import OVERDUE, SOON, AtPresent, late, parked, servers, under_way
from application.story.sentences import because, bounce, cancelled, failure, tries
from application.story.words import duration, moment
from domain.mail_outcome import CancelReason, IssueReason, MailKind
from domain.mail_saga import MailSaga
from domain.mailbox import Mailbox
from domain.operator_act import OperatorAct
from domain.recorded import Recorded
from domain.registration import Registration

_BY_OPERATORS: Final = frozenset({CancelReason.DISCARDED, CancelReason.OPERATOR, CancelReason.ERASED})


@dataclass(slots=True)
class _Known:
    """What the events have said so far.

    Attributes:
        wanted: the first of the codes that were issued for the same wish; the later ones replaced it, because it would
            have been too old on arrival.
        codes: how many these are.
        asked, sent, bounced, withheld, locked: about the latest code's mail.
        silenced: the mailbox is sent no more; lifted: it is again.
        failed: about the mails with all of these codes.
        sent_before: an earlier code's.
        look_again_at: when the saga does the next thing; None: it has ended, or not begun.
        acts: of operators that had an effect, by their correlation ids.
        serial: of the latest code.
    """

    wanted: Recorded | None = None
    codes: int = 0
    asked: Recorded | None = None
    sent: Recorded | None = None
    sent_before: Recorded | None = None
    imported: Registration.UserImported | None = None
    failed: list[Recorded] = field(default_factory=list)
    withheld: Recorded | None = None
    over_budget: bool = False
    silenced: bool = False
    lifted: Recorded | None = None
    bounced: Recorded | None = None
    superseded: Recorded | None = None
    discarded: Recorded | None = None
    locked: Recorded | None = None
    verified: Recorded | None = None
    cancelled: Recorded | None = None
    erased: Recorded | None = None
    look_again_at: datetime | None = None
    acts: dict[UUID, OperatorAct.OperatorActed] = field(default_factory=dict)
    serial: int = 0


def why(events: Sequence[Recorded], now: datetime, present: AtPresent | None = None) -> str:
    """One answer, about the mail with the latest code; `events` are those of one registration, in order."""
    known = _Known()
    for recorded in events:
        _learn(known, recorded)
    answer = _answer(known, now, present)
    if known.sent is None and known.sent_before is not None:
        before = known.sent_before.event
        invalid = "" if before.kind == MailKind.NOTICE else "; its code is not valid any more"  # type: ignore[attr-defined]
        answer += f" An earlier one was sent: {_accepted(known.sent_before)}{invalid}."
    if known.cancelled is None:
        answer += parked(present)
    if known.erased is not None:
        answer += f" The person was erased at {moment(known.erased.recorded_at)}."
    return answer


def _learn(known: _Known, recorded: Recorded) -> None:
    match recorded.event:
        case Registration.UserImported() as imported:
            known.imported = imported
        case Registration.OtpIssued():
            _learn_code(known, recorded, recorded.event)
        case MailSaga.MailRequested(serial=serial) if serial == known.serial:
            known.asked = recorded
        case Registration.EmailDispatched(serial=serial) if serial == known.serial:
            known.sent, known.bounced = recorded, None
        case Registration.EmailBounced(serial=serial) if serial == known.serial:
            known.bounced = recorded
        case Mailbox.MailDecided(lifts=True):
            known.lifted = recorded
        case Mailbox.MailDecided() as decided:
            known.silenced, known.lifted = decided.silences, None
        case Registration.EmailDispatched():
            known.sent_before = recorded
        case Registration.EmailDispatchFailed():
            known.failed.append(recorded)
        case Registration.EmailWithheld():
            known.withheld = recorded
        case Registration.RegistrationSuperseded():
            known.superseded = recorded
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
            known.acts[recorded.correlation_id] = act
    if isinstance(recorded.event, MailSaga.Event | MailSaga.MailSagaStarted):
        event = recorded.event
        known.look_again_at = getattr(event, "look_again_at", None) or getattr(event, "ends_at", None)


def _learn_code(known: _Known, recorded: Recorded, event: Registration.OtpIssued) -> None:
    known.serial, known.over_budget = event.serial, bool(event.withheld)
    known.sent_before = known.sent or known.sent_before
    known.asked = known.sent = known.bounced = known.withheld = known.discarded = known.locked = None
    if event.reason == IssueReason.STALE and known.wanted is not None:
        known.codes += 1
    else:
        known.wanted, known.codes, known.failed = recorded, 1, []


def _withheld_because(known: _Known) -> str:
    if known.silenced and known.lifted is not None:
        lifted = moment(known.lifted.recorded_at)
        return f"the mailbox was sent no more. An operator has lifted that at {lifted}; a new code will be sent"
    if known.silenced:
        return (
            "the mailbox is sent no more, since a mail there was marked as unwanted; `registrar mail allow` lifts that"
        )
    if known.over_budget:
        return "the mailbox, or the part of it that the requester's network gets, has had as many mails as it is sent"
    if known.superseded is not None:
        return f"the address was proven by another registration at {moment(known.superseded.recorded_at)}"
    return "the address belongs to an account, whose owner got a notice within the day before"


def _answer(known: _Known, now: datetime, present: AtPresent | None) -> str:
    if known.imported is not None and known.wanted is None and known.cancelled is None:
        ended = "the address had been verified there" if known.imported.verified else "nobody has invited them yet"
        return f"There was none to be sent: the user was taken over from another system, and {ended}."
    if known.sent is not None and known.bounced is not None and known.verified is None:
        return f"It was sent: {_accepted(known.sent)}{_came_back(known, known.bounced, now, present)}"
    if known.sent is not None:
        kind = ""
        if known.sent.event.kind == MailKind.NOTICE:  # type: ignore[attr-defined]
            kind = " It was a notice to the owner of the account: the address was taken, so there was no code in it."
        return f"It was sent: {_accepted(known.sent)}{_since(known, known.sent)}.{kind} What came after that, only that server knows."
    if known.withheld is not None:
        return f"It was withheld at {moment(known.withheld.recorded_at)}: {_withheld_because(known)}."
    if known.verified is not None:
        return f"That it was sent is not recorded, but its code was entered at {moment(known.verified.recorded_at)}."
    if known.cancelled is not None:
        return _undone(known, known.cancelled)
    if known.discarded is not None:
        return (
            f"It was given up by an operator at {moment(known.discarded.recorded_at)}{_reason(known, known.discarded)}; "
            f"{_being_undone(known.discarded, now, present)}"
        )
    return _unsent(known, now, present)


def _came_back(known: _Known, bounced: Recorded, now: datetime, present: AtPresent | None) -> str:
    event = bounced.event
    assert isinstance(event, Registration.EmailBounced)  # noqa: S101 - narrows
    why_so = f". It came back at {moment(bounced.recorded_at)}: {bounce(event)}"
    if known.cancelled is not None:
        return f"{why_so}; the registration was undone at {moment(known.cancelled.recorded_at)}."
    if event.permanent:
        return f"{why_so}; {_being_undone(bounced, now, present)}"
    return f"{why_so}. It is to be sent again.{_next(known, now, present)}"


def _unsent(known: _Known, now: datetime, present: AtPresent | None) -> str:
    """Of a mail that is still to be sent."""
    last, asked = known.failed[-1] if known.failed else None, known.asked
    # A failure after the latest request is its outcome.
    if last is not None and (asked is None or last.position > asked.position):
        if last.event.permanent:  # type: ignore[attr-defined]
            return f"It was refused: {_last_failure(known)}; {_being_undone(last, now, present)}"
        return f"It is waiting: {_last_failure(known)}.{_earlier(known)}{servers(present)}{_next(known, now, present)}"
    if asked is not None:
        failed = f" Before that, {_last_failure(known)}.{_earlier(known)}" if known.failed else ""
        return (
            f"It is on its way: the mail saga asked for it at {moment(asked.recorded_at)}, and no server's reply "
            f"is recorded yet.{under_way(asked.position, now - asked.recorded_at, present)}{failed}"
            f"{_next(known, now, present)}"
        )
    if known.wanted is None:
        return "There was never a code to send."
    waits = now - known.wanted.recorded_at
    if waits < SOON:
        return f"It is about to be asked for: its code was issued {duration(waits)} ago."
    if present is not None and present.parked_at is not None:
        return "It was never asked for."
    behind = f"; it is {present.saga_behind:,} events behind" if present is not None and present.saga_behind else ""
    return (
        f"It was never asked for: the mail saga has not come to it for {duration(waits)}{behind}; "
        "does `registrar process` (or `up`) run, and does it follow (`registrar projections list`)?"
    )


def _undone(known: _Known, ended: Recorded) -> str:
    reason: str = ended.event.reason  # type: ignore[attr-defined]
    at = moment(ended.recorded_at)
    match reason:
        case CancelReason.UNDELIVERABLE if known.failed:
            return f"It was refused: {_last_failure(known)}; so the registration was undone at {at}.{_earlier(known)}"
        case CancelReason.EXPIRED if known.failed:
            return (
                f"It could not be sent before the registration ended at {at}. The last time, {_last_failure(known)}."
                f"{_earlier(known)}"
            )
        case CancelReason.EXPIRED if known.asked is not None:
            return (
                f"It was asked for at {moment(known.asked.recorded_at)}, and no server's reply was recorded before the "
                f"registration ended at {at}: did `registrar work` (or `up`) run then?"
            )
    failed = f" Before that, {_last_failure(known)}.{_earlier(known)}" if known.failed else ""
    why_so = _reason(known, ended) if reason in _BY_OPERATORS else ""
    return f"It was not sent, because the registration was cancelled at {at}: {cancelled(reason)}{why_so}.{failed}"


def _reason(known: _Known, happened: Recorded) -> str:
    """That of the operator's act which led to it; empty if none did, or it is not in the read model yet."""
    act = known.acts.get(happened.correlation_id)
    return because(act.reason) if act is not None else ""


def _accepted(sent: Recorded) -> str:
    event = sent.event
    assert isinstance(event, Registration.EmailDispatched)  # noqa: S101 - narrows
    return (
        f"at {moment(sent.recorded_at)} mail server {event.provider} accepted it "
        f"with {event.reply_code}{tries(event.attempts)}"
    )


def _since(known: _Known, sent: Recorded) -> str:
    if known.wanted is None:
        return ""
    after = f", {duration(sent.recorded_at - known.wanted.recorded_at)} after "
    after += f"the first of {known.codes} codes" if known.codes > 1 else "its code"
    failures = len(known.failed)
    return f"{after} was issued" + (
        f" and {failures:,} failed {'try' if failures == 1 else 'tries'} before" if failures else ""
    )


def _last_failure(known: _Known) -> str:
    last = known.failed[-1]
    assert isinstance(last.event, Registration.EmailDispatchFailed)  # noqa: S101 - narrows
    return f"at {moment(last.recorded_at)}, {failure(last.event)}"


def _earlier(known: _Known) -> str:
    """How often it failed before the last time."""
    earlier = len(known.failed) - 1
    if earlier < 1:
        return ""
    return f" It had failed {'once' if earlier == 1 else f'{earlier:,} times'} before, since {moment(known.failed[0].recorded_at)}."


def _being_undone(since: Recorded, now: datetime, present: AtPresent | None) -> str:
    if now - since.recorded_at < OVERDUE:
        return "the registration is being undone."
    return f"undoing the registration is {late(since.recorded_at, now, present)}"


def _next(known: _Known, now: datetime, present: AtPresent | None) -> str:
    if known.locked is not None:
        return " Its code was locked meanwhile; a new one will be sent."
    if known.look_again_at is None:
        return ""
    if now > known.look_again_at + OVERDUE:
        return (
            f" The next look was due at {moment(known.look_again_at)} and is {late(known.look_again_at, now, present)}"
        )
    return f" The next look is at {moment(known.look_again_at)}."
