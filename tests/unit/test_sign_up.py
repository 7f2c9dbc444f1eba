"""What concerns more than one registration: beginning one, proving an address, new codes, reopening."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import permutations
from uuid import UUID

import pytest

from domain.email_claim import ClaimId, EmailClaim
from domain.errors import AddressTaken, IdempotencyKeyReused, NotPending, TooManyRequests, WrongCode
from domain.kept_answer import KeptAnswer
from domain.mailbox import Mailbox
from domain.policy import Policy
from domain.registration import Registration, Status
from domain.sign_up import KnownAddress, Proof, SignUp, prove, renew_code, reopen, sign_up
from tests.support.facts import (
    MAILBOX,
    NETWORK,
    T0,
    Fact,
    account_activated,
    code_rejected,
    email_claimed,
    email_discarded,
    email_released,
    email_verified,
    mail_decided,
    mailbox_unknown,
    otp_issued,
    otp_revoked,
    personal_data_erased,
    recorded,
    registered,
    registration_cancelled,
    registration_superseded,
)
from tests.support.facts import given as given_stream

ADDRESS = ClaimId(UUID("c1a10000-0000-5000-8000-00000000000a"))
FIRST = UUID("019cab10-0000-7000-8000-000000000001")
SECOND = UUID("019cab10-0000-7000-8000-000000000002")
THIRD = UUID("019cab10-0000-7000-8000-000000000003")
LATER = T0 + timedelta(hours=1)
POLICY = Policy()

PENDING = (registered(claim_id=ADDRESS, fingerprint="one"), otp_issued())
VERIFIED = (*PENDING, email_verified())
ACTIVE = (*VERIFIED, account_activated())
CANCELLED = (*PENDING, otp_revoked(), registration_cancelled())
ERASED = (*ACTIVE, registration_cancelled("erased"), personal_data_erased())
SUPERSEDED = (*PENDING, registration_superseded(SECOND))
DUPLICATE = (registered(claim_id=ADDRESS, fingerprint="one", duplicate_of=FIRST), otp_issued())

FREE = KnownAddress(ADDRESS, None, None, ())


def held(holder_id: UUID, *history: Fact, released: bool = False) -> KnownAddress:
    """An address with a claim, and its holder; or one that the holder left."""
    facts = [email_claimed(holder_id), *([email_released(holder_id)] if released else [])]
    claim = given_stream(EmailClaim, *facts, stream_id=ADDRESS)
    return KnownAddress(ADDRESS, claim, None if released else given(holder_id, *history), ())


def waiting(*histories: tuple[Fact, ...]) -> KnownAddress:
    """An address without a claim, for which the first, the second, … registration was begun."""
    ids = (FIRST, SECOND, THIRD)
    return KnownAddress(
        ADDRESS, None, None, tuple(given(one, *facts) for one, facts in zip(ids, histories, strict=False))
    )


def given(registration_id: UUID, *history: Fact) -> Registration:
    return given_stream(Registration, *history, stream_id=registration_id)


def request(
    *,
    address: KnownAddress = FREE,
    mailbox: Mailbox | None = None,
    earlier: Registration | None = None,
    registration_id: UUID = THIRD,
    fingerprint: str = "one",
    keyed: bool = False,
    reveal_duplicates: bool = False,
    now: datetime = T0,
) -> SignUp:
    return sign_up(
        address=address,
        mailbox_id=MAILBOX,
        mailbox=mailbox,
        earlier=earlier,
        registration_id=registration_id,
        fingerprint=fingerprint,
        personal_data="sealed",
        locale="en",
        network=NETWORK,
        now=now,
        policy=POLICY,
        keyed=keyed,
        reveal_duplicates=reveal_duplicates,
    )


def proves(registration: Registration, address: KnownAddress | None, offered: str = "123456") -> Proof:
    return prove(registration, address, offered=offered, expected="123456", now=T0, policy=POLICY)


def streams(outcome: SignUp | Proof) -> list[tuple[UUID, list[Fact]]]:
    return [(aggregate.id, recorded(aggregate)) for aggregate in outcome.changed]


def begun(registration_id: UUID, duplicate_of: UUID | None = None, fingerprint: str = "one") -> list[object]:
    first = registered(claim_id=ADDRESS, fingerprint=fingerprint, duplicate_of=duplicate_of)
    decided = mail_decided(registration_id, applicants=((registration_id, ADDRESS),), fingerprint=fingerprint)
    return [(registration_id, [first, otp_issued()]), (MAILBOX, [decided])]


# --- Beginning one ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        FREE,
        held(FIRST, released=True),
        held(FIRST, *CANCELLED),
        held(FIRST, *ERASED),
        held(FIRST, *PENDING),
        waiting(PENDING, CANCELLED),
        waiting(SUPERSEDED, DUPLICATE),
    ],
    ids=["new", "released", "cancelled", "erased", "pending in an old log", "pending", "dead ones"],
)
def test_an_address_that_nobody_has_proven_is_not_claimed_and_nobody_gives_way(address: KnownAddress) -> None:
    outcome = request(address=address, fingerprint="two")

    assert outcome.registration.id == THIRD
    assert streams(outcome) == begun(THIRD, fingerprint="two")
    assert not any(one.pending_events for one in address.registrations)


@pytest.mark.parametrize(
    "address",
    [held(FIRST, *PENDING), waiting(PENDING), waiting(SUPERSEDED), waiting(DUPLICATE)],
    ids=["in an old log", "ordinary", "superseded", "duplicate"],
)
def test_the_same_payload_while_pending_is_the_same_registration(address: KnownAddress) -> None:
    outcome = request(address=address)

    assert outcome.registration.id == FIRST
    assert outcome.changed == ()


@pytest.mark.parametrize("being_undone", [otp_revoked(), email_discarded()], ids=["revoked", "discarded"])
def test_the_same_payload_does_not_get_a_registration_that_is_being_undone(being_undone: Fact) -> None:
    """Between the saga's two steps: nobody would ever get that one's code."""
    outcome = request(address=waiting((*PENDING, being_undone)))

    assert outcome.registration.id == THIRD


@pytest.mark.parametrize("history", [VERIFIED, ACTIVE], ids=["verified", "active"])
def test_a_taken_address_leads_to_a_duplicate(history: tuple[Fact, ...]) -> None:
    outcome = request(address=held(FIRST, *history), fingerprint="two")

    assert streams(outcome) == begun(THIRD, duplicate_of=FIRST, fingerprint="two")


def test_a_proof_without_a_claim_is_mended_when_the_address_is_asked_for_again() -> None:
    """Release 0.1.0, which claimed at the beginning, may run beside this one and verify what this one began."""
    address = waiting(ACTIVE)

    outcome = request(address=address, fingerprint="two")

    assert outcome.registration.duplicate_of == FIRST
    assert (ADDRESS, [email_claimed(FIRST)]) in streams(outcome)


def test_the_owner_is_told_apart_only_where_the_operator_reveals_it() -> None:
    with pytest.raises(AddressTaken):
        request(address=held(FIRST, *ACTIVE), reveal_duplicates=True)


def test_revealing_tells_nothing_about_a_pending_registration() -> None:
    outcome = request(address=waiting(PENDING), fingerprint="two", reveal_duplicates=True)

    assert outcome.registration.id == THIRD


FULL_DAY = [(T0 - timedelta(hours=n), NETWORK) for n in (3, 2, 1)]


@pytest.mark.parametrize(
    "address",
    [
        FREE,
        waiting(PENDING),
        waiting(PENDING, SUPERSEDED, DUPLICATE),
        held(FIRST, *ACTIVE),
        held(FIRST, *CANCELLED),
        held(FIRST, *ERASED),
    ],
    ids=["new", "pending", "several", "active", "cancelled", "erased"],
)
@pytest.mark.parametrize("full", [False, True], ids=["within the budget", "past it"])
def test_every_new_registration_has_the_same_events_whatever_the_address_is(address: KnownAddress, full: bool) -> None:
    """The same streams in the same order with the same kinds of events: the same work, answers and positions."""
    mailbox = given_stream(Mailbox, *[mail_decided(granted=FULL_DAY)], stream_id=MAILBOX) if full else None

    outcome = request(address=address, mailbox=mailbox, fingerprint="another")

    assert [(type(one), [type(event) for event in one.pending_events]) for one in outcome.changed] == [
        (Registration, [Registration.UserRegistered, Registration.OtpIssued]),
        (Mailbox, [Mailbox.MailDecided]),
    ]
    assert outcome.registration.withholds_mail(1) is full


# --- Proving an address -----------------------------------------------------------------------


def test_the_first_proof_claims_the_address_and_the_others_give_way_in_the_same_commit() -> None:
    address = waiting(PENDING, PENDING, DUPLICATE)

    proof = proves(given(SECOND, *PENDING), address)

    assert proof.refused is None
    assert [(one, facts) for one, facts in streams(proof) if facts] == [
        (SECOND, [email_verified()]),
        (ADDRESS, [email_claimed(SECOND)]),
        (FIRST, [registration_superseded(SECOND)]),
    ]


def test_a_proof_takes_the_address_from_one_that_claimed_it_without_having_proven_it() -> None:
    """In a log of release 0.1.0."""
    proof = proves(given(SECOND, *PENDING), held(FIRST, *PENDING))

    assert streams(proof) == [
        (SECOND, [email_verified()]),
        (ADDRESS, [email_released(FIRST), email_claimed(SECOND)]),
        (FIRST, [registration_superseded(SECOND)]),
    ]


def test_who_claimed_an_address_in_an_old_log_proves_it() -> None:
    proof = proves(given(FIRST, *PENDING), held(FIRST, *PENDING))

    assert streams(proof) == [(FIRST, [email_verified()])]


def test_once_an_address_is_proven_no_other_code_matches() -> None:
    proof = proves(given(SECOND, *PENDING), held(FIRST, *ACTIVE))

    assert isinstance(proof.refused, WrongCode)
    assert streams(proof) == [(SECOND, [registration_superseded(FIRST), code_rejected()])]


def test_a_proof_without_a_claim_is_mended_when_another_one_offers_its_code() -> None:
    proof = proves(given(SECOND, *PENDING), waiting(ACTIVE))

    assert isinstance(proof.refused, WrongCode)
    assert streams(proof) == [
        (SECOND, [registration_superseded(FIRST), code_rejected()]),
        (ADDRESS, [email_claimed(FIRST)]),
    ]


def test_a_wrong_code_needs_to_know_nothing_of_the_address() -> None:
    proof = proves(given(FIRST, *PENDING), None, offered="654321")

    assert isinstance(proof.refused, WrongCode)
    assert streams(proof) == [(FIRST, [code_rejected()])]


def test_proving_again_records_nothing() -> None:
    proof = proves(given(FIRST, *ACTIVE), held(FIRST, *ACTIVE))

    assert proof.refused is None
    assert streams(proof) == [(FIRST, [])]


# --- New codes --------------------------------------------------------------------------------


def test_a_new_code_is_counted_in_the_mailbox_in_the_same_commit() -> None:
    mailbox = given_stream(Mailbox, mail_decided(), stream_id=MAILBOX)

    changed = renew_code(given(FIRST, *PENDING), mailbox, network=NETWORK, now=LATER, policy=POLICY)

    counted = changed[-1]
    assert isinstance(counted, Mailbox)
    assert [grant.at for grant in counted.granted] == [T0, LATER]
    assert [(one.id, [fact.event for fact in recorded(one)]) for one in changed] == [
        (FIRST, [Registration.OtpIssued]),
        (MAILBOX, [Mailbox.MailDecided]),
    ]


def test_a_new_code_past_the_budget_is_issued_and_its_mail_withheld() -> None:
    registration = given(FIRST, *PENDING)
    mailbox = given_stream(Mailbox, mail_decided(granted=[(T0, NETWORK)] * 5), stream_id=MAILBOX)

    renew_code(registration, mailbox, network="deadbeef", now=LATER, policy=POLICY)

    assert registration.serial == 2
    assert registration.withholds_mail(2)


def test_a_new_code_that_comes_too_soon_counts_nothing() -> None:
    mailbox = given_stream(Mailbox, mail_decided(), stream_id=MAILBOX)

    with pytest.raises(TooManyRequests):
        renew_code(given(FIRST, *PENDING), mailbox, network=NETWORK, now=T0, policy=POLICY)

    assert recorded(mailbox) == []


def test_a_new_code_of_a_registration_that_an_old_release_began_is_not_counted() -> None:
    registration = given(FIRST, registered(), otp_issued(mailbox_id=None))

    [changed] = renew_code(registration, None, network="", now=LATER, policy=POLICY)

    assert recorded(changed) == [otp_issued(2, "requested", mailbox_id="")]


# --- Reopening --------------------------------------------------------------------------------

UNDELIVERED = (*PENDING, mailbox_unknown(), otp_revoked(), registration_cancelled("undeliverable"))


@pytest.mark.parametrize("address", [FREE, held(FIRST, released=True), waiting(UNDELIVERED, PENDING)])
def test_a_reopened_registration_waits_for_the_proof_beside_the_others(address: KnownAddress) -> None:
    registration = given(FIRST, *UNDELIVERED)

    reopen(registration, address, now=T0)

    assert registration.is_pending


def test_a_registration_is_not_reopened_once_another_has_proven_the_address() -> None:
    registration = given(FIRST, *UNDELIVERED)

    with pytest.raises(NotPending):
        reopen(registration, held(SECOND, *ACTIVE), now=T0)

    assert recorded(registration) == []


# --- Idempotency-Key --------------------------------------------------------------------------


@pytest.mark.parametrize("history", [PENDING, VERIFIED, ACTIVE, CANCELLED, DUPLICATE, SUPERSEDED])
def test_the_same_key_and_payload_is_the_same_registration_whatever_became_of_it(history: tuple[Fact, ...]) -> None:
    earlier = given(FIRST, *history)

    outcome = request(earlier=earlier, registration_id=FIRST, reveal_duplicates=True)

    assert outcome.registration is earlier
    assert outcome.changed == ()


@pytest.mark.parametrize("history", [CANCELLED, ERASED])
def test_a_key_stands_for_its_registration_for_ever(history: tuple[Fact, ...]) -> None:
    """Also once the person is erased: whoever repeats an old request does not ask for anything anew."""
    earlier = given(FIRST, *history)

    outcome = request(earlier=earlier, registration_id=FIRST, now=T0 + timedelta(days=3650))

    assert outcome.registration is earlier
    assert outcome.changed == ()


def test_a_key_that_meets_the_registration_of_another_request_keeps_that() -> None:
    outcome = request(address=waiting(PENDING), registration_id=SECOND, keyed=True)

    assert outcome.registration.id == FIRST
    (kept,) = outcome.changed
    assert isinstance(kept, KeptAnswer)
    assert (kept.id, kept.subject_id, kept.fingerprint, kept.status) == (SECOND, FIRST, "one", "PENDING")


def test_the_same_key_with_another_payload_is_refused() -> None:
    earlier = given(FIRST, *PENDING)

    with pytest.raises(IdempotencyKeyReused):
        request(earlier=earlier, registration_id=FIRST, fingerprint="two")

    assert recorded(earlier) == []


def test_a_new_key_with_the_payload_of_a_pending_registration_is_that_registration() -> None:
    outcome = request(address=waiting(PENDING), registration_id=SECOND)

    assert outcome.registration.id == FIRST
    assert outcome.changed == ()


# --- Pre-hijacking (docs/security.md, S8) -----------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(["attacker", "victim"])), ids="-".join)
@pytest.mark.parametrize("prover", ["victim", "nobody but the attacker"])
def test_who_registers_a_victims_address_gets_nothing_of_it(order: tuple[str, ...], prover: str) -> None:
    """Whoever is first: a code opens its own registration only, and the attacker cannot read the victim's mail."""
    ids, codes = {"attacker": FIRST, "victim": SECOND}, {"attacker": "111111", "victim": "222222"}
    registrations: dict[str, Registration] = {}
    mailbox: Mailbox | None = None
    for minute, who in enumerate(order):
        address = KnownAddress(ADDRESS, None, None, tuple(registrations.values()))
        outcome = request(
            address=address,
            mailbox=mailbox,
            registration_id=ids[who],
            fingerprint=f"the {who}'s password",
            now=T0 + timedelta(minutes=minute),
        )
        registrations[who] = outcome.registration
        mailbox = next(one for one in outcome.changed if isinstance(one, Mailbox))
    address = KnownAddress(ADDRESS, None, None, tuple(registrations.values()))

    def offers(who: str, offered: str) -> Proof:
        return prove(registrations[who], address, offered=offered, expected=codes[who], now=LATER, policy=POLICY)

    guess = offers("attacker", codes["victim"])
    if prover == "victim":
        assert offers("victim", codes["victim"]).refused is None
    late = offers("attacker", "999999")

    assert isinstance(guess.refused, WrongCode)
    assert isinstance(late.refused, WrongCode)
    assert registrations["attacker"].status is Status.PENDING
    assert registrations["attacker"].can_be_proven is (prover != "victim")
    assert registrations["victim"].is_proven is (prover == "victim")
