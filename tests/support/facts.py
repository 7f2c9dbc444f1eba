"""The words that tests are written in: what happened (given), what was recorded (then), and waiting for it.

    registration = given(Registration, registered(), otp_issued())
    registration.verify(offered="000000", expected="123456", now=T0, policy=Policy())
    assert recorded(registration) == [code_rejected(attempt=1)]

On the store the same facts go in as a stream: `await store.append(stream(REGISTRATION, registered()), CLIENT)`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from eventsourcing.domain import Aggregate, AggregateCreated

from application.ports import Context
from domain.email_claim import ClaimId, EmailClaim
from domain.mail_saga import MailSaga
from domain.mailbox import Mailbox, MailboxId, claim_mark, payload_mark
from domain.operator_act import OperatorAct
from domain.rebuild import Rebuild
from domain.recorded import AnyEvent
from domain.registration import Registration
from domain.stray_message import StrayMessage
from infrastructure.postgres.clock import DatabaseClock

A = TypeVar("A", bound=Aggregate)

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
REGISTRATION = UUID("019cab10-0000-7000-8000-000000000001")
CLAIM = ClaimId(UUID("c1a10000-0000-5000-8000-000000000001"))
MAILBOX = MailboxId(UUID("3a110000-0000-5000-8000-000000000001"))
NETWORK = "0badcafe"
DIGEST = "5f" * 32
STRAY = StrayMessage.stream_id(DIGEST)
CLIENT = Context("client", correlation_id=UUID("c0000000-0000-4000-8000-000000000001"))


PAUSE_PER_LOOK = 4
"""Times as long as a look took is the pause after it."""
LONGEST_PAUSE = 0.25
"""Seconds; for looks that were themselves kept waiting."""


class MovableClock(DatabaseClock):
    """Stands still until it is moved, whatever time a database tells it."""

    def __init__(self, now: datetime = T0) -> None:
        super().__init__()
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def set(self, told: datetime, *, asked_ago: timedelta = timedelta(0)) -> None:
        pass

    def move(self, by: timedelta) -> None:
        self.now += by


async def eventually(condition: Callable[[], Awaitable[Any] | Any], *, within: float = 60, every: float = 0.01) -> Any:
    """Wait until the condition holds (answers something true, without a failed assertion), and answer that.

    The only place in the tests that sleeps.

    Args:
        within: seconds.
        every: seconds between two looks at least. A look that takes long is not taken as often: most open a connection,
            and with three workers on two cores what they take is taken from what they wait for.

    Raises:
        AssertionError: it does not hold in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        failure: AssertionError | None = None
        looked_at = loop.time()
        try:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer
        except AssertionError as error:
            failure = error
        now = loop.time()
        if now > deadline:
            raise failure or AssertionError(f"not within {within:g} s: {inspect.getsource(condition).strip()}")
        await asyncio.sleep(max(every, min(PAUSE_PER_LOOK * (now - looked_at), LONGEST_PAUSE)))


# --- Facts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """What happened, without its place in a stream; two are equal wherever and whenever they happened."""

    event: type[AnyEvent]
    fields: Mapping[str, Any]
    at: datetime = field(default=T0, compare=False)


def stream(stream_id: UUID, *facts: Fact, after: int = 0) -> list[AnyEvent]:
    """The facts as events of a stream, following its version `after`."""
    events: list[AnyEvent] = []
    for version, fact in enumerate(facts, start=after + 1):
        event: Any = fact.event
        begins = {"originator_topic": event.TOPIC.partition(".")[0]} if issubclass(event, AggregateCreated) else {}
        events.append(
            event(originator_id=stream_id, originator_version=version, timestamp=fact.at, **begins, **fact.fields)
        )
    return events


def given(kind: type[A], *facts: Fact, stream_id: UUID = REGISTRATION) -> A:
    """The aggregate to which this happened."""
    aggregate: Any = None
    for event in stream(stream_id, *facts):
        aggregate = event.mutate(aggregate)
    assert isinstance(aggregate, kind)
    return aggregate


def recorded(aggregate: Aggregate) -> list[Fact]:
    """What the aggregate recorded and nobody collected yet."""
    placed = {"originator_id", "originator_version", "originator_topic", "timestamp"}
    return [
        Fact(type(event), {name: value for name, value in vars(event).items() if name not in placed}, event.timestamp)
        for event in aggregate.collect_events()
    ]


# --- Registration -----------------------------------------------------------------------------


def registered(
    *,
    claim_id: UUID = CLAIM,
    fingerprint: str = "fingerprint",
    personal_data: str = "sealed",
    locale: str = "en",
    duplicate_of: UUID | None = None,
    at: datetime = T0,
) -> Fact:
    return Fact(
        Registration.UserRegistered,
        {
            "claim_id": str(claim_id),
            "fingerprint": fingerprint,
            "personal_data": personal_data,
            "locale": locale,
            "duplicate_of": None if duplicate_of is None else str(duplicate_of),
        },
        at,
    )


def user_imported(
    *, claim_id: UUID = CLAIM, personal_data: str = "sealed", verified: bool = True, at: datetime = T0
) -> Fact:
    fields = {"claim_id": str(claim_id), "personal_data": personal_data, "locale": "en", "verified": verified}
    return Fact(Registration.UserImported, fields, at)


def user_invited(*, at: datetime = T0) -> Fact:
    return Fact(Registration.UserInvited, {"claim_id": str(CLAIM)}, at)


def otp_issued(
    serial: int = 1,
    reason: str = "registered",
    *,
    withheld: bool = False,
    mailbox_id: UUID | str | None = MAILBOX,
    at: datetime = T0,
) -> Fact:
    told = None if mailbox_id is None else str(mailbox_id)
    return Fact(
        Registration.OtpIssued, {"serial": serial, "reason": reason, "withheld": withheld, "mailbox_id": told}, at
    )


def email_dispatched(
    serial: int = 1,
    *,
    kind: str = "code",
    provider: str = "mail.example:25",
    attempts: int = 1,
    reply_code: int = 250,
    at: datetime = T0,
) -> Fact:
    return Fact(
        Registration.EmailDispatched,
        {"serial": serial, "kind": kind, "provider": provider, "attempts": attempts, "reply_code": reply_code},
        at,
    )


def email_withheld(serial: int = 1, *, at: datetime = T0) -> Fact:
    return Fact(Registration.EmailWithheld, {"serial": serial}, at)


def email_dispatch_failed(
    serial: int = 1,
    *,
    kind: str = "code",
    permanent: bool = False,
    failure: str = "greylisted",
    provider: str = "mail.example:25",
    attempts: int = 3,
    reply_code: int | None = 451,
    reply_status: str | None = "4.7.1",
    outcome_unknown: bool = False,
    circuit: str | None = None,
    request_position: int | None = None,
    at: datetime = T0,
) -> Fact:
    return Fact(
        Registration.EmailDispatchFailed,
        {
            "serial": serial,
            "kind": kind,
            "permanent": permanent,
            "failure": failure,
            "provider": provider,
            "attempts": attempts,
            "reply_code": reply_code,
            "reply_status": reply_status,
            "outcome_unknown": outcome_unknown,
            "circuit": circuit,
            "request_position": request_position,
        },
        at,
    )


def email_dead(request_position: int | None, serial: int = 1, *, at: datetime = T0) -> Fact:
    """The mail's request died in the broker: no worker took it in time."""
    return email_dispatch_failed(
        serial,
        failure="expired",
        provider="broker",
        attempts=0,
        reply_code=None,
        reply_status=None,
        request_position=request_position,
        at=at,
    )


def mailbox_unknown(serial: int = 1, *, at: datetime = T0) -> Fact:
    """The mail server refused the mail for good."""
    return email_dispatch_failed(
        serial, permanent=True, failure="mailbox-unknown", attempts=1, reply_code=550, reply_status="5.1.1", at=at
    )


def email_bounced(
    serial: int = 1,
    *,
    kind: str = "code",
    failure: str = "mailbox-unknown",
    permanent: bool = True,
    reply_status: str | None = "5.1.1",
    reported_by: str = "dsn",
    at: datetime = T0,
) -> Fact:
    return Fact(
        Registration.EmailBounced,
        {
            "serial": serial,
            "kind": kind,
            "failure": failure,
            "permanent": permanent,
            "reply_status": reply_status,
            "reported_by": reported_by,
        },
        at,
    )


def mailbox_full(serial: int = 1, *, at: datetime = T0) -> Fact:
    """The mail came back, because its mailbox took none at the time."""
    return email_bounced(serial, failure="temporary", permanent=False, reply_status="4.2.2", at=at)


def email_complained(serial: int = 1, *, kind: str = "code", reported_by: str = "ses", at: datetime = T0) -> Fact:
    return Fact(Registration.EmailComplained, {"serial": serial, "kind": kind, "reported_by": reported_by}, at)


def email_retry_requested(serial: int = 1, *, at: datetime = T0) -> Fact:
    return Fact(Registration.EmailRetryRequested, {"serial": serial}, at)


def email_discarded(serial: int = 1, *, at: datetime = T0) -> Fact:
    return Fact(Registration.EmailDiscarded, {"serial": serial}, at)


def owner_notified(duplicate_id: UUID, *, at: datetime = T0) -> Fact:
    return Fact(Registration.OwnerNotified, {"duplicate_id": str(duplicate_id)}, at)


def code_rejected(attempt: int = 1, serial: int = 1, *, at: datetime = T0) -> Fact:
    return Fact(Registration.CodeRejected, {"serial": serial, "attempt": attempt}, at)


def code_locked(serial: int = 1, *, at: datetime = T0) -> Fact:
    return Fact(Registration.CodeLocked, {"serial": serial}, at)


def email_verified(serial: int = 1, *, at: datetime = T0) -> Fact:
    return Fact(Registration.EmailVerified, {"serial": serial}, at)


def account_activated(*, at: datetime = T0) -> Fact:
    return Fact(Registration.AccountActivated, {}, at)


def otp_revoked(serial: int = 1, *, at: datetime = T0) -> Fact:
    return Fact(Registration.OtpRevoked, {"serial": serial}, at)


def registration_cancelled(reason: str = "expired", *, at: datetime = T0) -> Fact:
    return Fact(Registration.RegistrationCancelled, {"reason": reason}, at)


def registration_superseded(by: UUID, *, at: datetime = T0) -> Fact:
    return Fact(Registration.RegistrationSuperseded, {"by": str(by)}, at)


def registration_reopened(*, duplicate_of: UUID | None = None, at: datetime = T0) -> Fact:
    said = registered(duplicate_of=duplicate_of).fields
    return Fact(Registration.RegistrationReopened, {name: said[name] for name in said if name != "fingerprint"}, at)


def password_set(personal_data: str = "sealed anew", *, at: datetime = T0) -> Fact:
    return Fact(Registration.PasswordSet, {"personal_data": personal_data}, at)


def password_rehashed(personal_data: str = "sealed anew", *, at: datetime = T0) -> Fact:
    return Fact(Registration.PasswordRehashed, {"personal_data": personal_data}, at)


def personal_data_erased(*, at: datetime = T0) -> Fact:
    return Fact(Registration.PersonalDataErased, {}, at)


# --- EmailClaim -------------------------------------------------------------------------------


def email_claimed(registration_id: UUID = REGISTRATION, *, at: datetime = T0) -> Fact:
    return Fact(EmailClaim.EmailClaimed, {"registration_id": str(registration_id)}, at)


def email_released(registration_id: UUID = REGISTRATION, *, at: datetime = T0) -> Fact:
    return Fact(EmailClaim.EmailReleased, {"registration_id": str(registration_id)}, at)


# --- Mailbox ----------------------------------------------------------------------------------


def mail_decided(
    registration_id: UUID = REGISTRATION,
    serial: int = 1,
    *,
    withheld: bool = False,
    granted: Sequence[tuple[datetime, str]] = ((T0, NETWORK),),
    applicants: Sequence[tuple[UUID, UUID]] = ((REGISTRATION, CLAIM),),
    network: str = NETWORK,
    fingerprint: str = "fingerprint",
    at: datetime = T0,
) -> Fact:
    """`network`, `fingerprint`: of the applicants."""
    return Fact(
        Mailbox.MailDecided,
        {
            "registration_id": str(registration_id),
            "serial": serial,
            "withheld": withheld,
            "granted": [f"{moment.isoformat()} {of}" for moment, of in granted],
            "applicants": [
                f"{one.hex} {claim_mark(claim_id)} {network} {payload_mark(fingerprint)}"
                for one, claim_id in applicants
            ],
        },
        at,
    )


# --- MailSaga ---------------------------------------------------------------------------------


def saga_started(
    registration_id: UUID = REGISTRATION,
    *,
    claim_id: UUID = CLAIM,
    kind: str = "code",
    ends_at: datetime = T0 + timedelta(hours=24),
    at: datetime = T0,
) -> Fact:
    return Fact(
        MailSaga.MailSagaStarted,
        {"registration_id": str(registration_id), "claim_id": str(claim_id), "kind": kind, "ends_at": ends_at},
        at,
    )


def mail_requested(
    registration_id: UUID = REGISTRATION,
    *,
    serial: int = 1,
    kind: str = "code",
    request: int = 1,
    issued_at: datetime = T0,
    look_again_at: datetime = T0 + timedelta(minutes=2),
    at: datetime = T0,
) -> Fact:
    return Fact(
        MailSaga.MailRequested,
        {
            "registration_id": str(registration_id),
            "kind": kind,
            "serial": serial,
            "issued_at": issued_at,
            "request": request,
            "look_again_at": look_again_at,
        },
        at,
    )


def _looking_again(
    event: type[AnyEvent], registration_id: UUID, look_again_at: datetime, at: datetime, **fields: Any
) -> Fact:
    return Fact(event, {"registration_id": str(registration_id), "look_again_at": look_again_at, **fields}, at)


def retry_scheduled(
    registration_id: UUID = REGISTRATION,
    *,
    serial: int = 1,
    failures: int = 1,
    look_again_at: datetime = T0 + timedelta(seconds=30),
    at: datetime = T0,
) -> Fact:
    return _looking_again(MailSaga.RetryScheduled, registration_id, look_again_at, at, serial=serial, failures=failures)


def code_found_dead(
    registration_id: UUID = REGISTRATION,
    *,
    serial: int = 1,
    look_again_at: datetime = T0 + timedelta(minutes=2),
    at: datetime = T0,
) -> Fact:
    return _looking_again(MailSaga.CodeFoundDead, registration_id, look_again_at, at, serial=serial)


def fresh_code_asked(
    registration_id: UUID = REGISTRATION,
    *,
    serial: int = 1,
    look_again_at: datetime = T0 + timedelta(minutes=2),
    at: datetime = T0,
) -> Fact:
    return _looking_again(MailSaga.FreshCodeAsked, registration_id, look_again_at, at, serial=serial)


def end_awaited(
    registration_id: UUID = REGISTRATION,
    *,
    serial: int = 1,
    look_again_at: datetime = T0 + timedelta(hours=24),
    at: datetime = T0,
) -> Fact:
    return _looking_again(MailSaga.EndAwaited, registration_id, look_again_at, at, serial=serial)


def undo_decided(
    registration_id: UUID = REGISTRATION,
    *,
    reason: str = "expired",
    look_again_at: datetime = T0 + timedelta(minutes=2),
    at: datetime = T0,
) -> Fact:
    return _looking_again(MailSaga.UndoDecided, registration_id, look_again_at, at, reason=reason)


def saga_reopened(
    registration_id: UUID = REGISTRATION, *, ends_at: datetime = T0 + timedelta(hours=24), at: datetime = T0
) -> Fact:
    return Fact(MailSaga.MailSagaReopened, {"registration_id": str(registration_id), "ends_at": ends_at}, at)


def saga_ended(registration_id: UUID = REGISTRATION, *, outcome: str = "active", at: datetime = T0) -> Fact:
    return Fact(MailSaga.MailSagaEnded, {"registration_id": str(registration_id), "outcome": outcome}, at)


# --- StrayMessage -----------------------------------------------------------------------------


def stray_kept(
    digest: str = DIGEST,
    *,
    reason: str = "not-a-mail-request",
    died_of: str = "rejected",
    size: int = 42,
    content_type: str | None = "application/json",
    fields: str = "kind,serial",
    other_fields: int = 3,
    at: datetime = T0,
) -> Fact:
    return Fact(
        StrayMessage.StrayMessageKept,
        {
            "digest": digest,
            "reason": reason,
            "died_of": died_of,
            "size": size,
            "content_type": content_type,
            "fields": fields,
            "other_fields": other_fields,
        },
        at,
    )


def stray_discarded(*, at: datetime = T0) -> Fact:
    return Fact(StrayMessage.StrayMessageDiscarded, {}, at)


# --- OperatorAct ------------------------------------------------------------------------------


def operator_acted(
    act: str = "retry-mail", *, registration: UUID | None = REGISTRATION, reason: str | None = None, at: datetime = T0
) -> Fact:
    about = None if registration is None else str(registration)
    return Fact(OperatorAct.OperatorActed, {"act": act, "registration_id": about, "reason": reason}, at)


def personal_data_read(
    act: str = "show-registration", *, registration: UUID = REGISTRATION, reason: str | None = None, at: datetime = T0
) -> Fact:
    fields = {"act": act, "registration_id": str(registration), "reason": reason}
    return Fact(OperatorAct.PersonalDataRead, fields, at)


# --- Rebuild ----------------------------------------------------------------------------------


def rebuild_begun(read_model: str = "mail", *, at: datetime = T0) -> Fact:
    return Fact(Rebuild.RebuildBegun, {"read_model": read_model}, at)


def rebuild_swapped(
    read_model: str = "mail", *, position: int = 7, differences: int = 0, decision: str = "equal", at: datetime = T0
) -> Fact:
    fields = {"read_model": read_model, "position": position, "differences": differences, "decision": decision}
    return Fact(Rebuild.RebuildSwapped, fields, at)


def version_dropped(read_model: str = "mail", *, position: int = 8, at: datetime = T0) -> Fact:
    return Fact(Rebuild.VersionDropped, {"read_model": read_model, "position": position}, at)


def rebuild_rolled_back(read_model: str = "mail", *, position: int = 9, at: datetime = T0) -> Fact:
    return Fact(Rebuild.RebuildRolledBack, {"read_model": read_model, "position": position}, at)


def rebuild_aborted(read_model: str = "mail", *, at: datetime = T0) -> Fact:
    return Fact(Rebuild.RebuildAborted, {"read_model": read_model}, at)
