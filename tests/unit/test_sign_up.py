"""What a request to register becomes: new, the same again, superseding, or a duplicate that looks like any other."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest
from eventsourcing.domain import Aggregate

from domain.email_claim import ClaimId, EmailClaim
from domain.errors import AddressTaken, CodeExpired, IdempotencyKeyReused, NotPending
from domain.policy import Policy
from domain.registration import Registration, Status
from domain.sign_up import ClaimedAddress, SignUp, sign_up
from tests.support.facts import (
    T0,
    Fact,
    account_activated,
    email_claimed,
    email_discarded,
    email_released,
    email_verified,
    otp_issued,
    otp_revoked,
    personal_data_erased,
    recorded,
    registered,
    registration_cancelled,
)
from tests.support.facts import given as given_stream

ADDRESS = ClaimId(UUID("c1a10000-0000-5000-8000-00000000000a"))
DUPLICATES = ClaimId(UUID("c1a10000-0000-5000-8000-00000000000d"))
FIRST = UUID("019cab10-0000-7000-8000-000000000001")
SECOND = UUID("019cab10-0000-7000-8000-000000000002")
THIRD = UUID("019cab10-0000-7000-8000-000000000003")
LATER = T0 + timedelta(hours=1)

PENDING = (registered(claim_id=ADDRESS, fingerprint="one"), otp_issued())
VERIFIED = (*PENDING, email_verified())
ACTIVE = (*VERIFIED, account_activated())
CANCELLED = (*PENDING, otp_revoked(), registration_cancelled())
ERASED = (*ACTIVE, registration_cancelled("erased"), personal_data_erased())
DUPLICATE = (registered(claim_id=DUPLICATES, fingerprint="one", duplicate_of=FIRST), otp_issued())

FREE_ADDRESS = ClaimedAddress(ADDRESS, None, None)
FREE_DUPLICATES = ClaimedAddress(DUPLICATES, None, None)


def claimed(claim_id: ClaimId, holder_id: UUID, *history: Fact, released: bool = False) -> ClaimedAddress:
    """A claimed address and its holder, or one that the holder left."""
    facts = [email_claimed(holder_id), *([email_released(holder_id)] if released else [])]
    claim = given_stream(EmailClaim, *facts, stream_id=claim_id)
    return ClaimedAddress(
        claim_id, claim, None if released else given_stream(Registration, *history, stream_id=holder_id)
    )


def request(
    *,
    address: ClaimedAddress = FREE_ADDRESS,
    duplicates: ClaimedAddress = FREE_DUPLICATES,
    earlier: Registration | None = None,
    registration_id: UUID = SECOND,
    fingerprint: str = "one",
    reveal_duplicates: bool = False,
    now: datetime = T0,
) -> SignUp:
    return sign_up(
        address=address,
        duplicates=duplicates,
        earlier=earlier,
        registration_id=registration_id,
        fingerprint=fingerprint,
        personal_data="sealed",
        locale="en",
        now=now,
        reveal_duplicates=reveal_duplicates,
    )


def streams(outcome: SignUp) -> list[tuple[UUID, list[Fact]]]:
    return [(aggregate.id, recorded(aggregate)) for aggregate in outcome.changed]


def begun(registration_id: UUID, claim_id: UUID, duplicate_of: UUID | None = None, fingerprint: str = "one") -> object:
    first = registered(claim_id=claim_id, fingerprint=fingerprint, duplicate_of=duplicate_of)
    return (registration_id, [first, otp_issued()])


# --- An address that nobody holds -------------------------------------------------------------


def test_a_new_address_is_registered_and_claimed_together() -> None:
    outcome = request(registration_id=FIRST)

    assert outcome.registration.id == FIRST
    assert streams(outcome) == [begun(FIRST, ADDRESS), (ADDRESS, [email_claimed(FIRST)])]


def test_a_released_address_is_claimed_anew() -> None:
    outcome = request(address=claimed(ADDRESS, FIRST, released=True))

    assert streams(outcome) == [begun(SECOND, ADDRESS), (ADDRESS, [email_claimed(SECOND)])]
    assert outcome.registration.duplicate_of is None


@pytest.mark.parametrize("history", [CANCELLED, ERASED], ids=["cancelled", "erased"])
def test_a_cancelled_holder_whose_claim_was_not_released_yet_gives_way(history: tuple[Fact, ...]) -> None:
    outcome = request(address=claimed(ADDRESS, FIRST, *history))

    assert streams(outcome) == [
        begun(SECOND, ADDRESS),
        (ADDRESS, [email_released(FIRST), email_claimed(SECOND)]),
    ]
    assert outcome.registration.duplicate_of is None


def test_the_holders_late_release_leaves_the_address_with_the_next_one() -> None:
    outcome = request(address=claimed(ADDRESS, FIRST, *CANCELLED))
    claim = outcome.changed[-1]
    assert isinstance(claim, EmailClaim)
    claim.collect_events()

    claim.release(registration_id=FIRST, now=LATER)

    assert recorded(claim) == []
    assert claim.holder == SECOND


# --- An address that a pending registration holds ---------------------------------------------


def test_the_same_payload_while_pending_is_the_same_registration() -> None:
    outcome = request(address=claimed(ADDRESS, FIRST, *PENDING), fingerprint="one")

    assert outcome.registration.id == FIRST
    assert outcome.changed == ()


def test_another_payload_supersedes_the_pending_registration_in_the_same_commit() -> None:
    outcome = request(address=claimed(ADDRESS, FIRST, *PENDING), fingerprint="two", now=LATER)

    assert outcome.registration.id == SECOND
    assert streams(outcome) == [
        (FIRST, [otp_revoked(), registration_cancelled("superseded")]),
        begun(SECOND, ADDRESS, fingerprint="two"),
        (ADDRESS, [email_released(FIRST), email_claimed(SECOND)]),
    ]


def test_the_code_of_a_superseded_registration_is_dead() -> None:
    outcome = request(address=claimed(ADDRESS, FIRST, *PENDING), fingerprint="two")
    superseded = outcome.changed[0]
    assert isinstance(superseded, Registration)

    refusal = superseded.verify(offered="123456", expected="123456", now=LATER, policy=Policy())

    assert isinstance(refusal, NotPending)
    assert superseded.status is Status.CANCELLED


@pytest.mark.parametrize(
    ("being_undone", "left_to_do"),
    [
        (otp_revoked(), [registration_cancelled("superseded")]),
        (email_discarded(), [otp_revoked(), registration_cancelled("superseded")]),
    ],
    ids=["revoked", "discarded"],
)
def test_the_same_payload_does_not_get_a_registration_that_is_being_undone(
    being_undone: Fact, left_to_do: list[Fact]
) -> None:
    """Between the saga's two steps: nobody would ever get that one's code."""
    outcome = request(address=claimed(ADDRESS, FIRST, *PENDING, being_undone), fingerprint="one")

    assert outcome.registration.id == SECOND
    assert streams(outcome) == [
        (FIRST, left_to_do),
        begun(SECOND, ADDRESS),
        (ADDRESS, [email_released(FIRST), email_claimed(SECOND)]),
    ]


# --- An address that an account holds ---------------------------------------------------------


@pytest.mark.parametrize("history", [VERIFIED, ACTIVE], ids=["verified", "active"])
@pytest.mark.parametrize("fingerprint", ["one", "two"], ids=["same payload", "another payload"])
def test_a_taken_address_leads_to_a_duplicate_with_a_seat_of_its_own(
    history: tuple[Fact, ...], fingerprint: str
) -> None:
    owned = claimed(ADDRESS, FIRST, *history)

    outcome = request(address=owned, fingerprint=fingerprint)

    assert streams(outcome) == [
        begun(SECOND, DUPLICATES, duplicate_of=FIRST, fingerprint=fingerprint),
        (DUPLICATES, [email_claimed(SECOND)]),
    ]
    assert owned.holder is not None
    assert recorded(owned.holder) == []
    assert owned.claim is not None
    assert owned.claim.holder == FIRST


def test_the_owner_is_told_apart_only_where_the_operator_reveals_it() -> None:
    owned = claimed(ADDRESS, FIRST, *ACTIVE)

    with pytest.raises(AddressTaken):
        request(address=owned, reveal_duplicates=True)


def test_revealing_tells_nothing_about_a_pending_registration() -> None:
    outcome = request(address=claimed(ADDRESS, FIRST, *PENDING), fingerprint="two", reveal_duplicates=True)

    assert outcome.registration.id == SECOND


OWNED = claimed(ADDRESS, FIRST, *ACTIVE)


@pytest.mark.parametrize(
    ("ordinary", "duplicate"),
    [
        (
            {"address": FREE_ADDRESS},
            {"address": OWNED},
        ),
        (
            {"address": claimed(ADDRESS, SECOND, *PENDING)},
            {"address": OWNED, "duplicates": claimed(DUPLICATES, SECOND, *DUPLICATE)},
        ),
        (
            {"address": claimed(ADDRESS, SECOND, *PENDING), "fingerprint": "two"},
            {"address": OWNED, "duplicates": claimed(DUPLICATES, SECOND, *DUPLICATE), "fingerprint": "two"},
        ),
        (
            {"address": claimed(ADDRESS, SECOND, released=True)},
            {"address": OWNED, "duplicates": claimed(DUPLICATES, SECOND, released=True)},
        ),
        (
            {"address": claimed(ADDRESS, SECOND, *CANCELLED)},
            {
                "address": OWNED,
                "duplicates": claimed(DUPLICATES, SECOND, *DUPLICATE, otp_revoked(), registration_cancelled()),
            },
        ),
    ],
    ids=["first", "same payload", "another payload", "released", "cancelled"],
)
def test_a_duplicate_is_recorded_as_any_registration_is(
    ordinary: dict[str, object], duplicate: dict[str, object]
) -> None:
    """The same streams in the same order with the same kinds of events: the same work and the same answers."""
    like_any_other = request(registration_id=THIRD, **ordinary)  # type: ignore[arg-type]
    like_a_duplicate = request(registration_id=THIRD, **duplicate)  # type: ignore[arg-type]

    assert like_a_duplicate.registration.id == like_any_other.registration.id
    assert _shape(like_a_duplicate.changed) == _shape(like_any_other.changed)


def _shape(changed: tuple[Aggregate, ...]) -> list[tuple[type, list[type]]]:
    return [(type(aggregate), [fact.event for fact in recorded(aggregate)]) for aggregate in changed]


def test_an_address_whose_owner_was_erased_can_be_registered_again() -> None:
    left_over = claimed(DUPLICATES, SECOND, *DUPLICATE)

    outcome = request(address=claimed(ADDRESS, FIRST, released=True), duplicates=left_over, registration_id=THIRD)

    assert outcome.registration.id == THIRD
    assert outcome.registration.duplicate_of is None
    assert streams(outcome) == [begun(THIRD, ADDRESS), (ADDRESS, [email_claimed(THIRD)])]


# --- Idempotency-Key --------------------------------------------------------------------------


@pytest.mark.parametrize("history", [PENDING, VERIFIED, ACTIVE, CANCELLED, DUPLICATE])
def test_the_same_key_and_payload_is_the_same_registration_whatever_became_of_it(history: tuple[Fact, ...]) -> None:
    earlier = given_stream(Registration, *history, stream_id=FIRST)

    outcome = request(earlier=earlier, registration_id=FIRST, reveal_duplicates=True)

    assert outcome.registration is earlier
    assert outcome.changed == ()


def test_a_key_stands_for_its_registration_for_a_day_only() -> None:
    earlier = given_stream(Registration, *CANCELLED, stream_id=FIRST)

    outcome = request(earlier=earlier, registration_id=SECOND, now=T0 + timedelta(hours=24))

    assert outcome.registration.id == SECOND
    assert outcome.registration.is_pending


def test_the_same_key_with_another_payload_is_refused() -> None:
    earlier = given_stream(Registration, *PENDING, stream_id=FIRST)

    with pytest.raises(IdempotencyKeyReused):
        request(earlier=earlier, registration_id=FIRST, fingerprint="two")

    assert recorded(earlier) == []


def test_a_new_key_with_the_payload_of_a_pending_registration_is_that_registration() -> None:
    outcome = request(address=claimed(ADDRESS, FIRST, *PENDING), registration_id=SECOND)

    assert outcome.registration.id == FIRST
    assert outcome.changed == ()


# --- Pre-hijacking (docs/security.md, S8) -----------------------------------------------------


def test_who_registers_a_victims_address_first_gets_nothing_of_it() -> None:
    policy = Policy()
    attackers = request(registration_id=FIRST, fingerprint="the attacker's password")
    claim = attackers.changed[-1]
    assert isinstance(claim, EmailClaim)
    victims = request(
        address=ClaimedAddress(ADDRESS, claim, attackers.registration),
        registration_id=SECOND,
        fingerprint="the victim's password",
        now=LATER,
    )

    victims_refusal = victims.registration.verify(offered="222222", expected="222222", now=LATER, policy=policy)
    attackers_refusal = attackers.registration.verify(offered="111111", expected="111111", now=LATER, policy=policy)

    assert victims_refusal is None
    assert isinstance(attackers_refusal, NotPending)
    assert not isinstance(attackers_refusal, CodeExpired)
    assert claim.holder == victims.registration.id
