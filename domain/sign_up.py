"""What a request to register becomes: a new registration, an earlier one, or a duplicate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from eventsourcing.domain import Aggregate

from domain.email_claim import ClaimId, EmailClaim
from domain.errors import AddressTaken, IdempotencyKeyReused
from domain.registration import Registration

IDEMPOTENCY_TTL = timedelta(hours=24)
"""How long an Idempotency-Key identifies its registration (docs/security.md, S15)."""


@dataclass(frozen=True, slots=True)
class ClaimedAddress:
    """The claim of an address and the registration that holds it; there are two per address.

    The first is for the address itself. Requests to register an address that an account already holds compete for the
    second, by the same rules: so they get the same responses, superseding and repeats included.
    """

    claim_id: ClaimId
    claim: EmailClaim | None
    holder: Registration | None


@dataclass(frozen=True, slots=True)
class SignUp:
    """The registration to return, and the aggregates to save (none for a repeat)."""

    registration: Registration
    changed: tuple[Aggregate, ...]


def sign_up(
    *,
    address: ClaimedAddress,
    duplicates: ClaimedAddress,
    earlier: Registration | None,
    registration_id: UUID,
    fingerprint: str,
    personal_data: str,
    locale: str,
    now: datetime,
    reveal_duplicates: bool = False,
) -> SignUp:
    """Decide what a request to register becomes.

    The same payload again, while its registration is pending, returns that registration, unless it is being undone
    already and its code would never arrive. Another payload supersedes the pending registration in the same commit, so
    nobody can squat on an address whose mail they cannot read.

    Args:
        earlier: the registration of the same address and Idempotency-Key, if there is one; valid for a day.
        registration_id: id of the new registration, if there is to be one.
        fingerprint: keyed hash of the whole payload.

    Raises:
        IdempotencyKeyReused: `earlier` had another payload.
        AddressTaken: an account holds the address, and the operator chose to reveal that.
    """
    if earlier is not None and now < earlier.created_on + IDEMPOTENCY_TTL:
        if earlier.fingerprint != fingerprint:
            raise IdempotencyKeyReused
        return SignUp(earlier, ())

    owner = address.holder if address.holder is not None and address.holder.is_proven else None
    if owner is not None and reveal_duplicates:
        raise AddressTaken
    claimed = address if owner is None else duplicates

    changed: list[Aggregate] = []
    if claimed.holder is not None and claimed.holder.is_pending:
        if claimed.holder.fingerprint == fingerprint and not claimed.holder.is_being_undone:
            return SignUp(claimed.holder, ())
        claimed.holder.supersede(now=now)
        changed.append(claimed.holder)

    registration = Registration.register(
        registration_id=registration_id,
        claim_id=claimed.claim_id,
        fingerprint=fingerprint,
        personal_data=personal_data,
        locale=locale,
        duplicate_of=None if owner is None else owner.id,
        now=now,
    )
    if claimed.claim is None:
        claim = EmailClaim.begin(claim_id=claimed.claim_id, registration_id=registration_id, now=now)
    else:
        claim = claimed.claim
        claim.take(registration_id=registration_id, now=now)
    return SignUp(registration, (*changed, registration, claim))
