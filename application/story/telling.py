"""The story as a tree: what came from outside, and below it what followed from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from uuid import UUID

from application.story.at_present import AtPresent
from application.story.sentences import did, sentence
from application.story.why import why
from application.story.words import ACTORS, duration, moment
from domain.email_claim import EmailClaim
from domain.mail_outcome import CancelReason
from domain.mail_saga import MailSaga
from domain.operator_act import OperatorAct
from domain.password_checks import PasswordChecks
from domain.recorded import Actor, AnyEvent, Position, Recorded
from domain.registration import Registration, Status

_TRACE_ID: Final = slice(3, 35)
"""Where a `traceparent` has it (W3C Trace Context, 3.2.2)."""

QUESTION: Final = "Why did this person not get the mail?"


@dataclass(frozen=True, slots=True)
class Told:
    """One event in words.

    Attributes:
        after: time since what led to it; None at the beginning.
    """

    position: Position
    at: datetime
    after: timedelta | None
    type: str
    says: str


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody did at once, and what followed from it.

    Attributes:
        headline: who did what.
        cause: position of the event that led to it; None: it came from outside.
    """

    headline: str
    actor: str
    correlation_id: UUID
    trace: str | None
    cause: Position | None
    events: list[Told]
    consequences: list[Act]


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to one registration.

    Attributes:
        answer: to "Why did this person not get the mail?"
    """

    registration_id: UUID
    status: str
    begun_at: datetime
    answer: str
    acts: list[Act]


def told(registration_id: UUID, events: Sequence[Recorded], now: datetime, present: AtPresent | None = None) -> Story:
    """The story of a registration.

    Args:
        events: all about it, in the order of the log; there is at least one.
        present: None: not known.
    """
    groups: dict[object, list[Recorded]] = {}
    for one in events:
        # What the saga did and noted because of the same event belongs together, though it takes several commits.
        commit = one.recorded_at if one.causation_position is None else None
        groups.setdefault((one.causation_position, one.actor, one.correlation_id, commit), []).append(one)
    times = {one.position: one.recorded_at for one in events}
    outside: list[Act] = []
    of_position: dict[Position, Act] = {}
    for group in groups.values():  # causes come before what they lead to
        act = _act(group, times)
        led_to = of_position.get(act.cause) if act.cause is not None else None
        (outside if led_to is None else led_to.consequences).append(act)
        of_position |= dict.fromkeys((one.position for one in group), act)
    return Story(registration_id, _status(events), events[0].recorded_at, why(events, now, present), outside)


def _act(group: Sequence[Recorded], times: Mapping[Position, datetime]) -> Act:
    first = group[0]
    since = first.recorded_at if first.causation_position is None else times.get(first.causation_position)
    # The decision before what it led to, which is recorded first.
    ordered = sorted(group, key=lambda one: (not _decides(one), one.position))
    return Act(
        headline=_headline(ordered),
        actor=first.actor,
        correlation_id=first.correlation_id,
        trace=first.trace,
        cause=first.causation_position,
        events=[_told(one, since) for one in ordered],
        consequences=[],
    )


def _told(one: Recorded, since: datetime | None) -> Told:
    after = None if since is None or since == one.recorded_at else one.recorded_at - since
    return Told(one.position, one.recorded_at, after, one.topic, sentence(one.event))


def _decides(one: Recorded) -> bool:
    return isinstance(one.event, MailSaga.UndoDecided | MailSaga.FreshCodeAsked)


def _headline(group: Sequence[Recorded]) -> str:
    # Who is superseded may have been told so by a code of their own; who waits for an invitation ends with it.
    first = next((one for one in group if not _gives_way(one.event)), group[0])
    who = ACTORS.get(first.actor, first.actor)
    what = "erased the person again" if first.actor == Actor.RESTORE else _did(first.event)
    if isinstance(first.event, Registration.RegistrationSuperseded) and first.actor == Actor.OPERATOR:
        what = "took over a user from another system, who has the address since"
        if len(group) > 1:
            what = "wanted to invite the user, whose address an account has by now"
    return f"{who[0].upper()}{who[1:]} {what}"


def _gives_way(event: AnyEvent) -> bool:
    if isinstance(event, Registration.RegistrationCancelled):
        return event.reason == CancelReason.SUPERSEDED
    return isinstance(event, Registration.RegistrationSuperseded)


def _did(event: AnyEvent) -> str:
    """What somebody did, by the first event of it.

    Over 40 lines, because it is one table.
    """
    match event:
        case OperatorAct.OperatorActed():
            return did(event.act)
        case OperatorAct.PersonalDataRead():
            return "looked at the person"
        case Registration.UserRegistered():
            return "asked to register"
        case Registration.UserImported():
            return "took the user over from another system"
        case Registration.UserInvited():
            return "invited the user"
        case Registration.OtpIssued(reason="requested"):
            return "asked for a new code"
        case Registration.CodeRejected():
            return "entered a wrong code"
        case Registration.RegistrationSuperseded():
            return "entered the code of another registration, which has the address since"
        case Registration.EmailVerified():
            return "entered the code"
        case Registration.EmailDispatchFailed(provider="broker"):
            return "got back what no worker had done"
        case Registration.EmailDispatched() | Registration.EmailDispatchFailed() | Registration.EmailWithheld():
            return "had a mail to send"
        case Registration.EmailBounced() | Registration.EmailComplained():
            return "reported what became of a mail"
        case Registration.OwnerNotified():
            return "sent the owner a notice"
        case Registration.AccountActivated():
            return "activated the account"
        case PasswordChecks.ChecksFailed():
            return "offered wrong passwords"
        case Registration.PasswordRehashed():
            return "offered the right password"
        case MailSaga.MailSagaStarted() | MailSaga.MailSagaReopened():
            return "took it up"
        case MailSaga.MailRequested():
            return "asked for the mail"
        case MailSaga.RetryScheduled():
            return "set a time for the next try"
        case MailSaga.EndAwaited():
            return "left the rest to the person"
        case MailSaga.FreshCodeAsked():
            return "had the code replaced"
        case MailSaga.UndoDecided():
            return "undid the registration"
        case MailSaga.MailSagaEnded() | EmailClaim.EmailReleased():
            return "came to an end"
    return "went on"


def _status(events: Sequence[Recorded]) -> str:
    status = Status.PENDING
    for recorded in events:
        match recorded.event:
            case Registration.EmailVerified():
                status = Status.VERIFIED
            case Registration.AccountActivated() | Registration.UserImported(verified=True):
                status = Status.ACTIVE
            case Registration.RegistrationCancelled():
                status = Status.CANCELLED
            case Registration.RegistrationReopened():
                status = Status.PENDING
    return status.value


# --- On paper -----------------------------------------------------------------------------------


def lines(story: Story) -> Iterator[str]:
    """The story for a person: the answer first, then the tree."""
    yield f"{QUESTION} {story.answer}"
    yield ""
    yield f"Registration {story.registration_id}, {story.status}, begun at {moment(story.begun_at)}"
    yield from _lines(story.acts, "")


def _lines(acts: Sequence[Act], indent: str, day: date | None = None, trace: str | None = None) -> Iterator[str]:
    """A level of the tree. What alone follows from an act stands below it on the same level: a mail that is tried for a
    day would go far to the right.

    Args:
        trace: of what led to them. A trace's id is told where it begins.
    """
    rows: list[tuple[Act, str | None]] = []
    for act in acts:
        rows.append((act, trace))
        while len(rows[-1][0].consequences) == 1:
            led_to = rows[-1][0]
            rows.append((led_to.consequences[0], led_to.trace))
    outside = set() if indent else {id(act) for act in acts}
    for number, (act, before) in enumerate(rows):
        from_outside = id(act) in outside
        last = number == len(rows) - 1
        known_by = [f"request {act.correlation_id}"] if from_outside and act.actor == Actor.CLIENT else []
        if act.trace is not None and (before is None or before[_TRACE_ID] != act.trace[_TRACE_ID]):
            known_by.append(f"trace {act.trace[_TRACE_ID]}")
        ids = f" ({', '.join(known_by)})" if known_by else ""
        when = f"{moment(act.events[0].at)}: " if from_outside else ""
        day = act.events[0].at.astimezone(UTC).date() if from_outside else day
        yield f"{indent}{'└─' if last else '├─'} {when}{act.headline}{ids}"
        deeper = indent + ("   " if last else "│  ")
        for one in act.events:
            took = "" if one.after is None else f" (+{duration(one.after)})"
            at = one.at.astimezone(UTC)
            on = "" if day == at.date() else f"{at:%Y-%m-%d} "
            day = at.date()
            yield f"{deeper}{on}{f'{at:%H:%M:%S.%f}'[:-3]}  {one.says}{took}"
        if len(act.consequences) > 1:
            yield from _lines(act.consequences, deeper, day, act.trace)
