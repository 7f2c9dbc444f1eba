"""What becomes of a registration whose mail came back, or was not wanted."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from application.bounce_reports import AT_ONCE, PAUSES, BounceReports, EarlyReport
from application.commands import (
    AllowMailbox,
    RecordEmailBounced,
    RecordEmailComplained,
    RecordEmailDispatched,
    RequestNewCode,
)
from application.mail_saga import DeadlineReached, react
from application.ports import Overloaded
from domain.errors import NotHandedOver
from domain.mail_outcome import Bounce, CancelReason, HandOver
from domain.mail_saga import MailSaga
from domain.mailbox import NEVER_OVER, Mailbox
from domain.policy import Policy
from domain.registration import Registration
from tests.support.facts import (
    REGISTRATION,
    T0,
    Fact,
    email_bounced,
    email_complained,
    email_discarded,
    email_dispatched,
    email_verified,
    email_withheld,
    end_awaited,
    eventually,
    given,
    mail_requested,
    mailbox_full,
    otp_issued,
    otp_revoked,
    recorded,
    registered,
    registration_cancelled,
    retry_scheduled,
    saga_started,
    stream,
)
from tests.support.scenarios import OPERATOR, InMemoryService, registers

HARD = Bounce("mailbox-unknown", permanent=True, reply_status="5.1.1", reported_by="dsn")
SOFT = Bounce("temporary", permanent=False, reply_status="4.2.2", reported_by="dsn")
HAND_OVER = HandOver("mail.example:25", 1, 250)

PENDING = (registered(), otp_issued())
SENT = (*PENDING, email_dispatched())
BOUNCED = (*SENT, email_bounced())
FULL = (*SENT, mailbox_full())


def bounce(registration: Registration, what: Bounce = HARD, serial: int = 1) -> list[Fact]:
    registration.record_bounced(serial=serial, bounce=what, now=T0)
    return recorded(registration)


# --- The registration -------------------------------------------------------------------------


def test_a_mail_that_came_back_counts_as_not_handed_over() -> None:
    registration = given(Registration, *SENT)

    facts = bounce(registration)

    assert facts == [email_bounced()]
    assert registration.wants_mail(1)


@pytest.mark.parametrize(
    ("history", "what"),
    [
        pytest.param(BOUNCED, HARD, id="the same again"),
        pytest.param(FULL, SOFT, id="the same for now again"),
        pytest.param(BOUNCED, SOFT, id="for now, after for good"),
        pytest.param((*SENT, email_verified()), HARD, id="verified"),
        pytest.param((*SENT, otp_revoked()), HARD, id="being undone"),
        pytest.param((*SENT, email_discarded()), HARD, id="given up"),
        pytest.param((*SENT, otp_revoked(), registration_cancelled()), HARD, id="undone"),
        pytest.param((*PENDING, otp_issued(2)), HARD, id="an older issue that nobody handed over"),
    ],
)
def test_a_bounce_that_changes_nothing_records_nothing(history: tuple[Fact, ...], what: Bounce) -> None:
    assert bounce(given(Registration, *history), what) == []


def test_that_a_mailbox_takes_none_for_good_is_news_after_that_it_was_full() -> None:
    assert bounce(given(Registration, *FULL)) == [email_bounced()]


def test_each_hand_over_may_bounce() -> None:
    assert bounce(given(Registration, *FULL, email_dispatched()), SOFT) == [mailbox_full()]


def test_an_older_issue_that_was_handed_over_may_bounce() -> None:
    assert bounce(given(Registration, *SENT, otp_issued(2, "requested"))) == [email_bounced()]


def test_a_bounce_before_its_hand_over_is_recorded_has_to_wait() -> None:
    registration = given(Registration, *PENDING)

    with pytest.raises(NotHandedOver):
        bounce(registration)


def test_the_next_hand_over_of_the_same_mail_is_recorded_too() -> None:
    registration = given(Registration, *FULL)

    registration.record_dispatched(serial=1, hand_over=HAND_OVER, now=T0)

    assert recorded(registration) == [email_dispatched()]


def test_what_was_undone_because_its_mail_came_back_may_be_reopened() -> None:
    undone = given(Registration, *BOUNCED, otp_revoked(), registration_cancelled(CancelReason.UNDELIVERABLE))

    assert undone.may_be_reopened


@pytest.mark.parametrize(
    "history",
    [SENT, (*SENT, email_verified()), (*SENT, registration_cancelled()), (*PENDING, email_withheld())],
)
def test_a_complaint_is_recorded_once_whatever_became_of_the_registration(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    for _ in range(2):
        registration.record_complained(serial=1, reported_by="ses", now=T0)

    assert recorded(registration) == [email_complained()]


# --- The saga ---------------------------------------------------------------------------------

AWAITING_END = (saga_started(), mail_requested(), end_awaited())


def decide(saga: MailSaga, fact: Fact) -> tuple[MailSaga, list[str]]:
    reacted, commands = react(saga, stream(REGISTRATION, fact, after=3)[0], T0, Policy())
    assert reacted is not None
    return reacted, [type(one).__name__ for one in commands]


def saga(*history: Fact) -> MailSaga:
    return given(MailSaga, *history, stream_id=MailSaga.stream_id(REGISTRATION))


def test_a_mail_that_came_back_for_good_undoes_the_registration() -> None:
    reacted, commands = decide(saga(*AWAITING_END), email_bounced())

    assert reacted.undoing is CancelReason.UNDELIVERABLE
    assert commands == ["RevokeOtp", "CancelRegistration"]


def test_a_mail_that_came_back_for_now_is_requested_again_in_time() -> None:
    reacted, commands = decide(saga(*AWAITING_END), mailbox_full())
    assert commands == []
    assert reacted.look_again_at is not None
    assert reacted.look_again_at < T0 + timedelta(minutes=1)
    again, then = react(reacted, DeadlineReached(REGISTRATION), T0 + timedelta(minutes=1), Policy())

    assert again is not None
    assert (again.serial, again.requests, then) == (1, 2, [])


@pytest.mark.parametrize(
    ("history", "fact"),
    [
        pytest.param(
            (saga_started(), mail_requested(serial=2), end_awaited(serial=2)), email_bounced(), id="an older issue"
        ),
        pytest.param((*AWAITING_END, retry_scheduled()), mailbox_full(), id="a retry waits already"),
    ],
)
def test_the_saga_has_nothing_to_do_about_a_bounce(history: tuple[Fact, ...], fact: Fact) -> None:
    reacted, commands = decide(saga(*history), fact)

    assert (recorded(reacted), commands) == ([], [])


# --- The mailbox ------------------------------------------------------------------------------


async def test_a_mailbox_with_a_complaint_is_sent_no_more_and_nobody_is_told() -> None:
    service = InMemoryService()
    first = await service.registered()
    await service.handle(RecordEmailComplained(registration_id=first, serial=1, reported_by="ses"))
    service.clock.move(timedelta(days=400))

    later = await service.handle(registers("Ada+news@example.com"))

    assert later.status == "PENDING"
    begun = service.registration(later.subject_id)
    assert begun.withholds_mail(1)
    assert begun.mailbox_id is not None
    assert [one.at for one in service.log.of(Mailbox, begun.mailbox_id).granted] == [NEVER_OVER]
    service.clock.move(timedelta(minutes=2))
    await service.handle(RequestNewCode(registration_id=later.subject_id))
    assert service.registration(later.subject_id).withholds_mail(2)


async def test_an_operator_has_a_mailbox_sent_mails_again_within_its_budget() -> None:
    service = InMemoryService()
    first = await service.registered()
    await service.handle(RecordEmailComplained(registration_id=first, serial=1, reported_by="ses"))
    later = (await service.handle(registers("Ada+news@example.com"))).subject_id

    allowed = await service.handle(AllowMailbox(registration_id=later), OPERATOR)
    again = await service.handle(AllowMailbox(registration_id=first), OPERATOR)

    assert (allowed.recorded, again.recorded) == (True, False)
    assert service.log.appends[-1] == ["OperatorActed", "MailDecided"]
    mailbox_id = service.registration(later).mailbox_id
    assert mailbox_id is not None
    assert [one.at for one in service.log.of(Mailbox, mailbox_id).granted] == [T0]
    at_once = (await service.handle(registers("Ada+more@example.com"))).subject_id
    assert service.registration(at_once).withholds_mail(1)
    service.clock.move(timedelta(minutes=2))
    await service.handle(RequestNewCode(registration_id=later))
    assert not service.registration(later).withholds_mail(2)


async def test_a_complaint_after_a_mailbox_was_allowed_suppresses_it_again() -> None:
    service = InMemoryService()
    first = await service.registered()
    await service.handle(RecordEmailComplained(registration_id=first, serial=1, reported_by="ses"))
    await service.handle(AllowMailbox(registration_id=first), OPERATOR)
    service.clock.move(timedelta(minutes=2))
    await service.handle(RequestNewCode(registration_id=first))
    mailbox_id = service.registration(first).mailbox_id
    assert mailbox_id is not None

    await service.handle(RecordEmailComplained(registration_id=first, serial=1, reported_by="ses"))
    assert not service.log.of(Mailbox, mailbox_id).latest.silences
    await service.handle(RecordEmailComplained(registration_id=first, serial=2, reported_by="ses"))

    assert service.log.of(Mailbox, mailbox_id).latest.silences


# --- Reports ----------------------------------------------------------------------------------


@pytest.mark.fault("E62")
async def test_an_early_report_waits_for_its_hand_over_and_comes_again_if_that_takes_long() -> None:
    service = InMemoryService()
    first = await service.registered()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == len(PAUSES) + 2:
            await service.handle(RecordEmailDispatched(registration_id=first, serial=1, hand_over=HAND_OVER))

    reports = BounceReports(service.handlers, sleep=sleep)

    with pytest.raises(EarlyReport):
        await reports.bounced(first, 1, HARD)
    await reports.bounced(first, 1, HARD)

    assert slept == [*PAUSES, *PAUSES[:2]]
    assert service.registration(first).bounced == {1: True}


async def test_a_report_about_a_registration_that_there_is_not_changes_nothing() -> None:
    service = InMemoryService()

    await BounceReports(service.handlers).bounced(REGISTRATION, 1, HARD)

    assert service.log.events == []


async def test_no_more_reports_are_under_way_than_may_be() -> None:
    service = InMemoryService()
    first = await service.registered()
    go_on = asyncio.Event()

    async def sleep(_: float) -> None:
        await go_on.wait()

    reports = BounceReports(service.handlers, sleep=sleep)
    waiting = [asyncio.create_task(reports.bounced(first, 1, HARD)) for _ in range(AT_ONCE)]
    await eventually(lambda: reports.full)

    with pytest.raises(Overloaded):
        await reports.bounced(first, 1, HARD)

    go_on.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not reports.full


async def test_the_same_complaint_again_records_nothing() -> None:
    service = InMemoryService()
    first = await service.registered()
    complaint = RecordEmailComplained(registration_id=first, serial=1, reported_by="ses")
    await service.handle(complaint)

    again = await service.handle(complaint)

    assert not again.recorded


@pytest.mark.fault("E60")
async def test_a_bounce_ends_the_sign_up_and_the_address_is_free_again() -> None:
    service = InMemoryService()
    first = await service.registered()
    await service.handle(RecordEmailDispatched(registration_id=first, serial=1, hand_over=HAND_OVER))
    await service.settle()

    await service.handle(RecordEmailBounced(registration_id=first, serial=1, bounce=HARD))
    await service.settle()

    assert service.registration(first).cancel_reason == CancelReason.UNDELIVERABLE
    assert service.saga_of(first).ended
    assert await service.registered() != first


async def test_that_an_earlier_mail_came_back_does_not_make_the_next_one_look_tried() -> None:
    service = InMemoryService()
    first = await service.registered()
    await service.handle(RecordEmailDispatched(registration_id=first, serial=1, hand_over=HAND_OVER))
    service.clock.move(timedelta(minutes=2))
    await service.handle(RequestNewCode(registration_id=first))
    await BounceReports(service.handlers).bounced(first, 1, HARD)

    registration = service.registration(first)

    assert registration.bounced == {1: True}
    assert registration.failed_version != registration.version
