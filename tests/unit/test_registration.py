"""The rules of one registration: each command succeeds, repeats in silence, or is refused."""

from collections.abc import Callable
from dataclasses import fields
from datetime import datetime, timedelta
from uuid import UUID

import pytest

from domain.errors import CodeExpired, CodeLocked, NotPending, Refused, TooManyRequests, WrongCode
from domain.mail_outcome import CancelReason, DispatchFailure, HandOver
from domain.policy import Policy
from domain.registration import Registration, Status
from tests.support.facts import (
    CLAIM,
    MAILBOX,
    REGISTRATION,
    T0,
    Fact,
    account_activated,
    code_locked,
    code_rejected,
    email_dead,
    email_discarded,
    email_dispatch_failed,
    email_dispatched,
    email_retry_requested,
    email_verified,
    email_withheld,
    given,
    mailbox_unknown,
    otp_issued,
    otp_revoked,
    owner_notified,
    personal_data_erased,
    recorded,
    registered,
    registration_cancelled,
    registration_reopened,
    registration_superseded,
)

OWNER = UUID("019cab10-0000-7000-8000-00000000000a")
DUPLICATE = UUID("019cab10-0000-7000-8000-00000000000b")
POLICY = Policy()
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
INSTANT = timedelta(microseconds=1)

PENDING = (registered(), otp_issued())
VERIFIED = (*PENDING, email_verified())
ACTIVE = (*VERIFIED, account_activated())
REVOKED = (*PENDING, otp_revoked())
CANCELLED = (*REVOKED, registration_cancelled())
DISCARDED = (*PENDING, email_discarded())


def verify(
    registration: Registration, offered: str = "123456", *, expected: str = "123456", at: datetime = T0
) -> Refused | None:
    return registration.verify(offered=offered, expected=expected, now=at, policy=POLICY)


def dispatch(registration: Registration, serial: int = 1) -> None:
    registration.record_dispatched(serial=serial, hand_over=HandOver("mail.example:25", 1, 250), now=T0)


def die(registration: Registration, request_position: int | None, serial: int = 1) -> None:
    recorded_fields = email_dead(request_position, serial).fields
    failure = DispatchFailure(**{field.name: recorded_fields[field.name] for field in fields(DispatchFailure)})
    registration.record_dispatch_failed(serial=serial, failure=failure, now=T0, request_position=request_position)


def fail(registration: Registration, serial: int = 1, *, permanent: bool = False) -> None:
    registration.record_dispatch_failed(
        serial=serial,
        failure=DispatchFailure(
            "mailbox-unknown" if permanent else "greylisted",
            permanent=permanent,
            provider="mail.example:25",
            attempts=1 if permanent else 3,
            reply_code=550 if permanent else 451,
            reply_status="5.1.1" if permanent else "4.7.1",
        ),
        now=T0,
    )


# --- Beginning --------------------------------------------------------------------------------


def test_registering_issues_the_first_code_in_the_same_breath() -> None:
    registration = Registration.register(
        registration_id=REGISTRATION,
        claim_id=CLAIM,
        fingerprint="fingerprint",
        personal_data="sealed",
        locale="en",
        duplicate_of=None,
        mailbox_id=MAILBOX,
        withheld=False,
        now=T0,
    )

    facts = recorded(registration)

    assert facts == [registered(), otp_issued()]
    assert [fact.at for fact in facts] == [T0, T0]
    assert (registration.id, registration.version, registration.created_on) == (REGISTRATION, 2, T0)


def test_a_new_registration_is_pending_with_a_mail_to_be_sent() -> None:
    registration = given(Registration, *PENDING)

    assert registration.status is Status.PENDING
    assert registration.claim_id == CLAIM
    assert registration.duplicate_of is None
    assert registration.wants_mail(1)


def test_a_duplicate_names_the_account_that_holds_the_address() -> None:
    registration = given(Registration, registered(duplicate_of=OWNER), otp_issued())

    assert registration.duplicate_of == OWNER


# --- Proving the address ----------------------------------------------------------------------


def test_the_right_code_verifies() -> None:
    registration = given(Registration, *PENDING)

    refusal = verify(registration)

    assert refusal is None
    assert recorded(registration) == [email_verified()]
    assert registration.status is Status.VERIFIED


@pytest.mark.parametrize("history", [VERIFIED, ACTIVE], ids=["verified", "active"])
def test_verifying_again_records_nothing_whatever_is_offered(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    refusals = [verify(registration, offered) for offered in ("123456", "000000")]

    assert refusals == [None, None]
    assert recorded(registration) == []


def test_a_wrong_code_is_recorded_and_says_how_many_tries_are_left() -> None:
    registration = given(Registration, *PENDING)

    refusal = verify(registration, "000000")

    assert isinstance(refusal, WrongCode)
    assert refusal.attempts_left == 4
    assert recorded(registration) == [code_rejected(1)]


def test_the_fifth_wrong_code_locks_the_issue() -> None:
    registration = given(Registration, *PENDING, *(code_rejected(attempt) for attempt in (1, 2, 3, 4)))

    refusal = verify(registration, "000000")

    assert isinstance(refusal, WrongCode)
    assert refusal.attempts_left == 0
    assert recorded(registration) == [code_rejected(5), code_locked()]


def test_the_right_code_still_verifies_after_four_wrong_ones() -> None:
    registration = given(Registration, *PENDING, *(code_rejected(attempt) for attempt in (1, 2, 3, 4)))

    refusal = verify(registration)

    assert refusal is None
    assert recorded(registration) == [email_verified()]


def test_the_right_code_is_refused_once_the_issue_is_locked() -> None:
    registration = given(Registration, *PENDING, *(code_rejected(n) for n in (1, 2, 3, 4, 5)), code_locked())

    refusal = verify(registration)

    assert isinstance(refusal, CodeLocked)
    assert recorded(registration) == []


def test_the_fifth_locked_code_ends_the_registration_so_guesses_are_bounded() -> None:
    locked_four_times = [
        fact for serial in (1, 2, 3, 4) for fact in (code_locked(serial), otp_issued(serial + 1, "requested"))
    ]
    registration = given(Registration, *PENDING, *locked_four_times, *(code_rejected(n, 5) for n in (1, 2, 3, 4)))

    refusal = verify(registration, "000000")

    assert isinstance(refusal, WrongCode)
    assert recorded(registration) == [
        code_rejected(5, 5),
        code_locked(5),
        otp_revoked(5),
        registration_cancelled("guessed"),
    ]
    assert isinstance(verify(registration), NotPending)


def test_the_mail_of_a_locked_code_is_not_sent_but_replaced() -> None:
    registration = given(Registration, *PENDING, code_rejected(5), code_locked())

    assert not registration.wants_mail(1)
    registration.replace_stale_code(serial=1, now=T0)

    assert recorded(registration) == [otp_issued(2, "stale")]
    assert registration.wants_mail(2)


def test_a_mail_that_was_handed_over_cannot_be_given_up_any_more() -> None:
    registration = given(Registration, *PENDING, email_dispatched())

    registration.discard_mail(now=T0)

    assert recorded(registration) == []


def test_a_lock_lasts_longer_than_the_codes_time() -> None:
    registration = given(Registration, *PENDING, email_dispatched(), code_rejected(5), code_locked())

    refusal = verify(registration, at=T0 + timedelta(hours=1))

    assert isinstance(refusal, CodeLocked)


def test_a_new_issue_brings_new_tries() -> None:
    registration = given(
        Registration, *PENDING, *(code_rejected(n) for n in (1, 2, 3, 4, 5)), code_locked(), otp_issued(2, "requested")
    )

    refusal = verify(registration, "000000")

    assert isinstance(refusal, WrongCode)
    assert refusal.attempts_left == 4
    assert recorded(registration) == [code_rejected(1, serial=2)]


def test_a_stricter_limit_in_force_later_never_counts_below_zero() -> None:
    registration = given(Registration, *PENDING, *(code_rejected(attempt) for attempt in (1, 2, 3, 4)))

    refusal = registration.verify(offered="000000", expected="123456", now=T0, policy=Policy(otp_max_attempts=3))

    assert isinstance(refusal, WrongCode)
    assert refusal.attempts_left == 0
    assert recorded(registration) == [code_rejected(5), code_locked()]


@pytest.mark.parametrize("hand_over", [email_dispatched, email_withheld])
@pytest.mark.parametrize(
    ("after", "holds"),
    [(timedelta(0), True), (10 * MINUTE - INSTANT, True), (10 * MINUTE, False), (10 * MINUTE + INSTANT, False)],
)
def test_a_code_holds_ten_minutes_from_its_hand_over(
    hand_over: Callable[..., Fact], after: timedelta, holds: bool
) -> None:
    handed_over_at = T0 + timedelta(hours=3)
    registration = given(Registration, *PENDING, hand_over(at=handed_over_at))

    refusal = verify(registration, at=handed_over_at + after)

    assert (refusal is None) is holds
    assert recorded(registration) == ([email_verified()] if holds else [])
    assert holds or isinstance(refusal, CodeExpired)


def test_a_code_not_handed_over_does_not_expire() -> None:
    registration = given(Registration, *PENDING, email_dispatch_failed())

    refusal = verify(registration, at=T0 + timedelta(days=30))

    assert refusal is None


def test_an_expired_code_costs_no_try() -> None:
    registration = given(Registration, *PENDING, email_dispatched())

    refusal = verify(registration, "000000", at=T0 + timedelta(hours=1))

    assert isinstance(refusal, CodeExpired)
    assert recorded(registration) == []


def test_the_hand_over_of_the_code_before_does_not_start_the_new_codes_time() -> None:
    registration = given(Registration, *PENDING, email_dispatched(), otp_issued(2, "requested", at=T0 + 5 * MINUTE))

    refusal = verify(registration, at=T0 + timedelta(hours=1))

    assert refusal is None


def test_the_old_code_is_wrong_after_a_resend() -> None:
    registration = given(Registration, *PENDING, email_dispatched(), otp_issued(2, "requested"))

    refusal = verify(registration, "111111", expected="222222")

    assert isinstance(refusal, WrongCode)
    assert recorded(registration) == [code_rejected(1, serial=2)]


def test_a_hand_over_that_becomes_known_late_counts_for_its_own_issue_only() -> None:
    registration = given(Registration, *PENDING, otp_issued(2, "stale", at=T0 + 20 * MINUTE))

    dispatch(registration, serial=1)

    assert recorded(registration) == [email_dispatched(1)]
    assert registration.wants_mail(2)
    assert verify(registration, at=T0 + timedelta(hours=2)) is None


def test_no_code_ever_matches_for_a_duplicate() -> None:
    registration = given(Registration, registered(duplicate_of=OWNER), otp_issued())

    refusal = verify(registration, "123456", expected="123456")

    assert isinstance(refusal, WrongCode)
    assert refusal.attempts_left == 4
    assert recorded(registration) == [code_rejected(1)]


@pytest.mark.parametrize("right", [0, 1, 2, 3, 4])
def test_a_duplicate_answers_five_tries_as_any_registration_does(right: int) -> None:
    """Even for whoever offers the derived code among the wrong ones: the answers tell nothing."""
    duplicate = given(Registration, registered(duplicate_of=OWNER), otp_issued())
    ordinary = given(Registration, *PENDING)
    offers = ["123456" if n == right else "000000" for n in range(5)]

    for_duplicate = [verify(duplicate, offered) for offered in offers]
    for_ordinary = [verify(ordinary, "000000") for _ in offers]

    assert [vars(refusal) for refusal in for_duplicate if refusal] == [vars(r) for r in for_ordinary if r]
    assert recorded(duplicate) == recorded(ordinary)
    assert isinstance(verify(duplicate), CodeLocked)


def test_a_code_that_is_not_ascii_is_only_a_wrong_code() -> None:
    registration = given(Registration, *PENDING)

    refusal = verify(registration, "\uff11\uff12\uff13\uff14\uff15\uff16")

    assert isinstance(refusal, WrongCode)


def test_a_revoked_code_has_expired() -> None:
    registration = given(Registration, *REVOKED)

    refusal = verify(registration)

    assert isinstance(refusal, CodeExpired)
    assert recorded(registration) == []


def test_after_cancellation_there_is_nothing_left_to_prove() -> None:
    registration = given(Registration, *CANCELLED)

    refusal = verify(registration)

    assert isinstance(refusal, NotPending)
    assert recorded(registration) == []


# --- New codes --------------------------------------------------------------------------------


def test_a_new_code_replaces_the_old_one() -> None:
    registration = given(Registration, *PENDING, email_dispatched())

    registration.request_new_code(now=T0 + MINUTE, policy=POLICY)

    assert recorded(registration) == [otp_issued(2, "requested")]
    assert not registration.wants_mail(1)
    assert registration.wants_mail(2)


@pytest.mark.parametrize(
    ("after", "retry_after"),
    [(timedelta(0), MINUTE), (SECOND, 59 * SECOND), (MINUTE - INSTANT, INSTANT)],
)
def test_within_the_cooldown_a_new_code_is_refused_and_says_how_long_to_wait(
    after: timedelta, retry_after: timedelta
) -> None:
    registration = given(Registration, *PENDING)

    with pytest.raises(TooManyRequests) as refusal:
        registration.request_new_code(now=T0 + after, policy=POLICY)

    assert refusal.value.retry_after == retry_after
    assert recorded(registration) == []


@pytest.mark.parametrize("after", [MINUTE, MINUTE + INSTANT])
def test_a_new_code_is_given_as_soon_as_the_cooldown_is_over(after: timedelta) -> None:
    registration = given(Registration, *PENDING)

    registration.request_new_code(now=T0 + after, policy=POLICY)

    assert recorded(registration) == [otp_issued(2, "requested")]


def test_the_wait_that_was_told_is_long_enough() -> None:
    registration = given(Registration, *PENDING)
    at = T0 + timedelta(seconds=13.37)
    with pytest.raises(TooManyRequests) as refusal:
        registration.request_new_code(now=at, policy=POLICY)

    registration.request_new_code(now=at + refusal.value.retry_after, policy=POLICY)

    assert recorded(registration) == [otp_issued(2, "requested")]


def test_the_cooldown_counts_from_any_issue() -> None:
    registration = given(Registration, *PENDING, otp_issued(2, "stale", at=T0 + 30 * MINUTE))

    with pytest.raises(TooManyRequests) as refusal:
        registration.request_new_code(now=T0 + 30 * MINUTE + SECOND, policy=POLICY)

    assert refusal.value.retry_after == 59 * SECOND


FIVE_IN_THE_HOUR = tuple(otp_issued(n + 1, "requested", at=T0 + n * 10 * MINUTE) for n in (1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("at", "retry_after"),
    [
        (T0 + 51 * MINUTE, 19 * MINUTE),
        (T0 + 60 * MINUTE, 10 * MINUTE),
        (T0 + 70 * MINUTE - INSTANT, INSTANT),
    ],
)
def test_the_sixth_new_code_within_an_hour_is_refused_until_the_first_is_an_hour_old(
    at: datetime, retry_after: timedelta
) -> None:
    registration = given(Registration, *PENDING, *FIVE_IN_THE_HOUR)

    with pytest.raises(TooManyRequests) as refusal:
        registration.request_new_code(now=at, policy=POLICY)

    assert refusal.value.retry_after == retry_after
    assert recorded(registration) == []


def test_the_hour_slides() -> None:
    registration = given(Registration, *PENDING, *FIVE_IN_THE_HOUR)

    registration.request_new_code(now=T0 + 70 * MINUTE, policy=POLICY)

    assert recorded(registration) == [otp_issued(7, "requested")]
    with pytest.raises(TooManyRequests) as refusal:
        registration.request_new_code(now=T0 + 72 * MINUTE, policy=POLICY)
    assert refusal.value.retry_after == 8 * MINUTE


def test_the_longer_of_the_two_waits_is_told() -> None:
    bunched = [otp_issued(n + 1, "requested", at=T0 + n * MINUTE) for n in (1, 2, 3, 4, 5)]
    registration = given(Registration, *PENDING, *bunched, otp_issued(7, "stale", at=T0 + 61 * MINUTE - SECOND))

    with pytest.raises(TooManyRequests) as refusal:
        registration.request_new_code(now=T0 + 61 * MINUTE - SECOND, policy=POLICY)

    assert refusal.value.retry_after == MINUTE


def test_a_stricter_limit_in_force_later_waits_for_the_newest_that_count() -> None:
    registration = given(Registration, *PENDING, *FIVE_IN_THE_HOUR)

    with pytest.raises(TooManyRequests) as refusal:
        registration.request_new_code(now=T0 + 60 * MINUTE, policy=Policy(resends_per_hour=2))

    assert refusal.value.retry_after == 40 * MINUTE


def test_only_codes_that_the_registrant_asked_for_count_towards_the_hour() -> None:
    stale = [otp_issued(n + 1, "stale", at=T0 + n * MINUTE) for n in range(1, 11)]
    registration = given(Registration, *PENDING, *stale)

    registration.request_new_code(now=T0 + 11 * MINUTE, policy=POLICY)

    assert recorded(registration) == [otp_issued(12, "requested")]


@pytest.mark.parametrize(
    "history",
    [VERIFIED, ACTIVE, REVOKED, CANCELLED, DISCARDED],
    ids=["verified", "active", "revoked", "cancelled", "discarded"],
)
def test_a_new_code_is_refused_when_there_is_nothing_to_prove(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    with pytest.raises(NotPending):
        registration.request_new_code(now=T0 + timedelta(hours=1), policy=POLICY)

    assert recorded(registration) == []


def test_a_stale_code_is_replaced_without_a_cooldown() -> None:
    registration = given(Registration, *PENDING)

    registration.replace_stale_code(serial=1, now=T0)

    assert recorded(registration) == [otp_issued(2, "stale")]


def test_replacing_the_same_stale_code_again_records_nothing() -> None:
    registration = given(Registration, *PENDING, otp_issued(2, "stale"))

    registration.replace_stale_code(serial=1, now=T0)

    assert recorded(registration) == []


@pytest.mark.parametrize(
    "history",
    [(*PENDING, email_dispatched()), (*PENDING, email_withheld()), VERIFIED, REVOKED, CANCELLED, DISCARDED],
    ids=["dispatched", "withheld", "verified", "revoked", "cancelled", "discarded"],
)
def test_a_code_whose_mail_is_not_wanted_is_not_replaced(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    registration.replace_stale_code(serial=1, now=T0)

    assert recorded(registration) == []


# --- Mail -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "serial", "wanted"),
    [
        (PENDING, 1, True),
        (PENDING, 2, False),
        ((*PENDING, email_dispatch_failed()), 1, True),
        ((*PENDING, mailbox_unknown()), 1, True),
        ((*PENDING, email_retry_requested()), 1, True),
        ((*PENDING, email_dispatched()), 1, False),
        ((*PENDING, email_withheld()), 1, False),
        ((*PENDING, otp_issued(2, "requested")), 1, False),
        ((*PENDING, email_dispatched(), otp_issued(2, "requested")), 2, True),
        (VERIFIED, 1, False),
        (ACTIVE, 1, False),
        (REVOKED, 1, False),
        (CANCELLED, 1, False),
        (DISCARDED, 1, False),
    ],
)
def test_a_mail_is_wanted_while_pending_current_in_force_and_not_handed_over(
    history: tuple[Fact, ...], serial: int, wanted: bool
) -> None:
    registration = given(Registration, *history)

    assert registration.wants_mail(serial) is wanted


@pytest.mark.parametrize("history", [PENDING, VERIFIED, ACTIVE, REVOKED, CANCELLED, (*PENDING, otp_issued(2, "stale"))])
def test_a_hand_over_is_a_fact_whatever_became_of_the_registration(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    dispatch(registration)

    assert recorded(registration) == [email_dispatched()]


@pytest.mark.parametrize("earlier", [email_dispatched(), email_withheld()])
def test_a_hand_over_is_recorded_once(earlier: Fact) -> None:
    registration = given(Registration, *PENDING, earlier)

    dispatch(registration)

    assert recorded(registration) == []


def test_withholding_a_mail_is_recorded_once() -> None:
    registration = given(Registration, registered(duplicate_of=OWNER), otp_issued())

    registration.withhold_mail(serial=1, now=T0)
    registration.withhold_mail(serial=1, now=T0)

    assert recorded(registration) == [email_withheld()]


@pytest.mark.parametrize("history", [CANCELLED, (*PENDING, otp_issued(2, "requested")), (*PENDING, email_dispatched())])
def test_a_mail_that_is_not_wanted_is_not_withheld(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    registration.withhold_mail(serial=1, now=T0)

    assert recorded(registration) == []


def test_a_failure_is_recorded_with_what_the_server_said() -> None:
    registration = given(Registration, *PENDING)

    fail(registration)
    fail(registration, permanent=True)

    assert recorded(registration) == [email_dispatch_failed(), mailbox_unknown()]


def test_a_request_that_died_is_one_failure_however_often_that_is_told_and_whatever_came_between() -> None:
    registration = given(Registration, *PENDING, email_dead(3))

    die(registration, 3)
    registration.retry_mail(now=T0)
    die(registration, 7)
    fail(registration)
    die(registration, 3)
    die(registration, 7)

    assert recorded(registration) == [email_retry_requested(), email_dead(7), email_dispatch_failed()]


def test_a_request_that_died_without_its_position_is_a_failure_each_time() -> None:
    registration = given(Registration, *PENDING)

    die(registration, None)
    die(registration, None)

    assert recorded(registration) == [email_dead(None)] * 2


@pytest.mark.parametrize("history", [(*PENDING, otp_issued(2, "stale")), CANCELLED], ids=["superseded", "cancelled"])
def test_a_request_that_died_is_of_no_interest_once_its_mail_is_not_wanted(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    die(registration, 3)

    assert recorded(registration) == []


@pytest.mark.parametrize(
    "history",
    [
        (*PENDING, otp_issued(2, "stale")),
        (*PENDING, email_dispatched()),
        VERIFIED,
        ACTIVE,
        REVOKED,
        CANCELLED,
        DISCARDED,
    ],
    ids=["superseded serial", "dispatched", "verified", "active", "revoked", "cancelled", "discarded"],
)
def test_a_failure_is_of_no_interest_once_the_mail_is_not_wanted(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    fail(registration, permanent=True)

    assert recorded(registration) == []


def test_an_operators_retry_is_recorded() -> None:
    registration = given(Registration, *PENDING, email_dispatch_failed())

    registration.retry_mail(now=T0)

    assert recorded(registration) == [email_retry_requested()]


@pytest.mark.parametrize(
    "history", [(*PENDING, email_dispatched()), REVOKED, DISCARDED], ids=["dispatched", "revoked", "discarded"]
)
def test_a_retry_is_silent_where_no_mail_is_to_be_sent(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    registration.retry_mail(now=T0)

    assert recorded(registration) == []


@pytest.mark.parametrize("history", [VERIFIED, ACTIVE, CANCELLED], ids=["verified", "active", "cancelled"])
def test_a_retry_is_refused_once_the_registration_has_ended(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    with pytest.raises(NotPending):
        registration.retry_mail(now=T0)

    assert recorded(registration) == []


UNDELIVERABLE = (*PENDING, mailbox_unknown(), otp_revoked(), registration_cancelled("undeliverable"))


@pytest.mark.parametrize(
    "history",
    [UNDELIVERABLE, (*PENDING, email_dispatch_failed(), otp_revoked(), registration_cancelled("expired"))],
    ids=["undeliverable", "expired without a mail"],
)
def test_what_was_undone_for_want_of_a_mail_is_reopened_with_a_new_code(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    registration.reopen(now=T0)

    assert recorded(registration) == [registration_reopened(), otp_issued(2, "reopened")]
    assert registration.is_pending
    assert registration.wants_mail(2)


@pytest.mark.parametrize(
    "history",
    [
        PENDING,
        ACTIVE,
        (*PENDING, registration_cancelled("superseded")),
        (*PENDING, registration_cancelled("operator")),
        (*PENDING, email_dispatched(), otp_revoked(), registration_cancelled("expired")),
        (*UNDELIVERABLE, personal_data_erased()),
        (*PENDING, registration_superseded(OWNER), otp_revoked(), registration_cancelled("undeliverable")),
        (*UNDELIVERABLE, registration_reopened(), otp_issued(2, "reopened")),
    ],
    ids=[
        "pending",
        "active",
        "superseded in an old log",
        "cancelled by an operator",
        "had its mail",
        "erased",
        "superseded",
        "reopened already",
    ],
)
def test_nothing_else_is_reopened(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    with pytest.raises(NotPending):
        registration.reopen(now=T0)

    assert recorded(registration) == []


def test_an_operators_discard_is_recorded_once() -> None:
    registration = given(Registration, *PENDING, email_dispatch_failed())

    registration.discard_mail(now=T0)
    registration.discard_mail(now=T0)

    assert recorded(registration) == [email_discarded()]


@pytest.mark.parametrize("history", [REVOKED, CANCELLED], ids=["revoked", "cancelled"])
def test_a_discard_is_silent_where_the_registration_is_undone(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    registration.discard_mail(now=T0)

    assert recorded(registration) == []


@pytest.mark.parametrize("history", [VERIFIED, ACTIVE], ids=["verified", "active"])
def test_an_account_is_not_discarded(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    with pytest.raises(NotPending):
        registration.discard_mail(now=T0)

    assert recorded(registration) == []


def test_whoever_has_the_code_may_still_prove_it_while_the_mail_is_discarded() -> None:
    registration = given(Registration, *DISCARDED)

    refusal = verify(registration)

    assert refusal is None
    assert recorded(registration) == [email_verified()]


# --- Notices to the owner ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "allowed"),
    [
        (PENDING, False),
        (VERIFIED, True),
        (ACTIVE, True),
        (CANCELLED, False),
        ((*ACTIVE, registration_cancelled("erased"), personal_data_erased()), False),
    ],
    ids=["pending", "verified", "active", "cancelled", "erased"],
)
def test_only_the_owner_of_an_account_is_told_of_duplicates(history: tuple[Fact, ...], allowed: bool) -> None:
    owner = given(Registration, *history)

    assert owner.may_notify_owner(T0, POLICY) is allowed


@pytest.mark.parametrize(
    ("after", "allowed"),
    [(timedelta(0), False), (timedelta(hours=24) - INSTANT, False), (timedelta(hours=24), True)],
)
def test_the_owner_is_told_once_a_day(after: timedelta, allowed: bool) -> None:
    owner = given(Registration, *ACTIVE, owner_notified(DUPLICATE, at=T0))

    assert owner.may_notify_owner(T0 + after, POLICY) is allowed


def test_telling_the_owner_is_recorded_on_the_owners_stream() -> None:
    owner = given(Registration, *ACTIVE)

    owner.record_owner_notified(duplicate_id=DUPLICATE, now=T0)

    assert recorded(owner) == [owner_notified(DUPLICATE)]


# --- Ends -------------------------------------------------------------------------------------


def test_a_verified_registration_becomes_an_active_account() -> None:
    registration = given(Registration, *VERIFIED)

    registration.activate(now=T0)

    assert recorded(registration) == [account_activated()]
    assert registration.status is Status.ACTIVE


@pytest.mark.parametrize("history", [PENDING, ACTIVE, CANCELLED], ids=["pending", "active", "cancelled"])
def test_only_what_is_verified_is_activated(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    registration.activate(now=T0)

    assert recorded(registration) == []


def test_revoking_kills_the_current_code() -> None:
    registration = given(Registration, *PENDING, otp_issued(2, "requested"))

    registration.revoke_code(now=T0)

    assert recorded(registration) == [otp_revoked(2)]


@pytest.mark.parametrize(
    "history", [VERIFIED, ACTIVE, REVOKED, CANCELLED], ids=["verified", "active", "revoked", "cancelled"]
)
def test_revoking_is_silent_where_no_code_is_in_force(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    registration.revoke_code(now=T0)

    assert recorded(registration) == []


@pytest.mark.parametrize("history", [PENDING, REVOKED], ids=["pending", "revoked"])
@pytest.mark.parametrize("reason", ["expired", "undeliverable", "discarded", "operator"])
def test_cancelling_ends_a_pending_registration(history: tuple[Fact, ...], reason: str) -> None:
    registration = given(Registration, *history)

    registration.cancel(reason=CancelReason(reason), now=T0)

    assert recorded(registration) == [registration_cancelled(reason)]
    assert registration.status is Status.CANCELLED


def test_cancelling_again_records_nothing_even_for_another_reason() -> None:
    registration = given(Registration, *CANCELLED)

    registration.cancel(reason=CancelReason.OPERATOR, now=T0)

    assert recorded(registration) == []


@pytest.mark.parametrize("history", [VERIFIED, ACTIVE], ids=["verified", "active"])
def test_an_account_is_not_cancelled(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    with pytest.raises(NotPending):
        registration.cancel(reason=CancelReason.EXPIRED, now=T0)

    assert recorded(registration) == []


SUPERSEDED = (*PENDING, registration_superseded(OWNER))


def test_a_registration_gives_way_once_and_stays_pending() -> None:
    registration = given(Registration, *PENDING)

    registration.give_way(by=OWNER, now=T0)
    registration.give_way(by=DUPLICATE, now=T0)

    assert recorded(registration) == [registration_superseded(OWNER)]
    assert registration.is_pending
    assert registration.lacks_mail(1)
    assert registration.withholds_mail(1)


@pytest.mark.parametrize(
    "history",
    [ACTIVE, CANCELLED, (registered(duplicate_of=OWNER), otp_issued())],
    ids=["active", "cancelled", "duplicate"],
)
def test_what_waits_for_no_proof_does_not_give_way(history: tuple[Fact, ...]) -> None:
    registration = given(Registration, *history)

    registration.give_way(by=OWNER, now=T0)

    assert recorded(registration) == []


def test_no_code_matches_a_superseded_registration_and_a_new_one_is_no_better() -> None:
    registration = given(Registration, *SUPERSEDED)

    first = verify(registration)
    registration.request_new_code(now=T0 + MINUTE, policy=POLICY)
    second = verify(registration, at=T0 + MINUTE)

    assert isinstance(first, WrongCode)
    assert isinstance(second, WrongCode)
    assert registration.withholds_mail(2)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (CancelReason.EXPIRED, "superseded"),
        (CancelReason.OPERATOR, "operator"),
        (CancelReason.UNDELIVERABLE, "undeliverable"),
    ],
)
def test_a_superseded_registration_that_expires_says_so(reason: CancelReason, told: str) -> None:
    registration = given(Registration, *SUPERSEDED)

    registration.cancel(reason=reason, now=T0)

    assert recorded(registration) == [registration_cancelled(told)]


def test_a_code_that_replaces_one_whose_mail_is_withheld_is_withheld_as_well() -> None:
    registration = given(Registration, registered(), otp_issued(withheld=True))

    registration.replace_stale_code(serial=1, now=T0)

    assert recorded(registration) == [otp_issued(2, "stale", withheld=True)]
    assert registration.wants_mail(2)


def test_the_code_of_a_mail_that_is_withheld_is_wrong_as_nobody_can_know_it() -> None:
    registration = given(Registration, registered(), otp_issued(withheld=True), email_withheld())

    refusal = verify(registration)

    assert isinstance(refusal, WrongCode)
    assert recorded(registration) == [code_rejected(attempt=1)]


def test_a_code_that_is_sent_after_one_whose_mail_was_withheld_is_right() -> None:
    history = registered(), otp_issued(withheld=True), email_withheld(), otp_issued(2, "requested"), email_dispatched(2)
    registration = given(Registration, *history)

    assert verify(registration) is None
    assert recorded(registration) == [email_verified(2)]


def test_a_new_code_of_a_registration_whose_mail_is_withheld_may_be_sent() -> None:
    registration = given(Registration, registered(), otp_issued(withheld=True), email_withheld())

    registration.request_new_code(now=T0 + MINUTE, policy=POLICY)

    assert recorded(registration) == [otp_issued(2, "requested")]
    assert not registration.withholds_mail(2)


@pytest.mark.parametrize(
    ("history", "compensations"),
    [
        (PENDING, [otp_revoked(), registration_cancelled("erased"), personal_data_erased()]),
        (VERIFIED, [registration_cancelled("erased"), personal_data_erased()]),
        (ACTIVE, [registration_cancelled("erased"), personal_data_erased()]),
        (REVOKED, [registration_cancelled("erased"), personal_data_erased()]),
        (CANCELLED, [personal_data_erased()]),
        ((*CANCELLED, personal_data_erased()), []),
    ],
    ids=["pending", "verified", "active", "revoked", "cancelled", "erased"],
)
def test_erasing_ends_a_registration_in_any_state(history: tuple[Fact, ...], compensations: list[Fact]) -> None:
    registration = given(Registration, *history)

    registration.erase(now=T0)

    assert recorded(registration) == compensations
    assert registration.status is Status.CANCELLED
    assert registration.erased


def test_nothing_comes_of_an_erased_registration_any_more() -> None:
    registration = given(Registration, *ACTIVE, registration_cancelled("erased"), personal_data_erased())

    registration.activate(now=T0)
    refusal = verify(registration)

    assert isinstance(refusal, NotPending)
    assert recorded(registration) == []
