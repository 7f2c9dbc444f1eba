"""Who holds an address: claiming, taking over, releasing."""

from uuid import UUID

from domain.email_claim import EmailClaim
from tests.support.facts import CLAIM, REGISTRATION, T0, email_claimed, email_released, given, recorded

LATER = UUID("019cab10-0000-7000-8000-000000000002")


def test_the_first_claim_begins_the_stream() -> None:
    claim = EmailClaim.begin(claim_id=CLAIM, registration_id=REGISTRATION, now=T0)

    assert recorded(claim) == [email_claimed(REGISTRATION)]
    assert (claim.id, claim.version, claim.holder) == (CLAIM, 1, REGISTRATION)


def test_taking_the_address_from_an_ended_holder_releases_it_first() -> None:
    claim = given(EmailClaim, email_claimed(REGISTRATION), stream_id=CLAIM)

    claim.take(registration_id=LATER, now=T0)

    assert recorded(claim) == [email_released(REGISTRATION), email_claimed(LATER)]
    assert claim.holder == LATER


def test_taking_a_free_address_only_claims_it() -> None:
    claim = given(EmailClaim, email_claimed(REGISTRATION), email_released(REGISTRATION), stream_id=CLAIM)

    claim.take(registration_id=LATER, now=T0)

    assert recorded(claim) == [email_claimed(LATER)]
    assert claim.holder == LATER


def test_taking_ones_own_address_records_nothing() -> None:
    claim = given(EmailClaim, email_claimed(REGISTRATION), stream_id=CLAIM)

    claim.take(registration_id=REGISTRATION, now=T0)

    assert recorded(claim) == []


def test_the_holder_may_take_the_address_again_after_releasing_it() -> None:
    claim = given(EmailClaim, email_claimed(REGISTRATION), email_released(REGISTRATION), stream_id=CLAIM)

    claim.take(registration_id=REGISTRATION, now=T0)

    assert recorded(claim) == [email_claimed(REGISTRATION)]


def test_releasing_frees_the_address_once() -> None:
    claim = given(EmailClaim, email_claimed(REGISTRATION), stream_id=CLAIM)

    claim.release(registration_id=REGISTRATION, now=T0)
    claim.release(registration_id=REGISTRATION, now=T0)

    assert recorded(claim) == [email_released(REGISTRATION)]
    assert claim.holder is None


def test_a_late_release_does_not_take_the_address_from_the_next_holder() -> None:
    claim = given(
        EmailClaim, email_claimed(REGISTRATION), email_released(REGISTRATION), email_claimed(LATER), stream_id=CLAIM
    )

    claim.release(registration_id=REGISTRATION, now=T0)

    assert recorded(claim) == []
    assert claim.holder == LATER


def test_a_claim_is_the_same_when_read_back_from_its_events() -> None:
    claim = EmailClaim.begin(claim_id=CLAIM, registration_id=REGISTRATION, now=T0)
    claim.take(registration_id=LATER, now=T0)

    again = given(EmailClaim, *recorded(claim), stream_id=CLAIM)

    assert (again.holder, again.version) == (LATER, 3)
    assert (claim.holder, claim.version) == (LATER, 3)
