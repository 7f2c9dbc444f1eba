"""EmailClaim: which registration has proven an address."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NewType
from uuid import UUID

from eventsourcing.domain import Aggregate, CanMutateAggregate, event
from eventsourcing.utils import register_topic

from domain.streams import begin

ClaimId = NewType("ClaimId", UUID)
"""Id of the stream of an address's claim; never the id of a registration."""


class EmailClaim(Aggregate, created_event_name="EmailClaimed"):
    """Which registration holds one address, and which one held it before. The stream's id is a keyed hash of the
    address, so the log never names it.

    Saved in the same commit as the proof: of any number of simultaneous proofs, the store's primary key lets one
    through. Until release 0.1.0 an address was claimed as soon as it was registered: in a log of that time a claim may
    be held by a registration that is still pending, which keeps nobody out.
    """

    class Event(Aggregate.Event):
        """What happens to a claim; not named here, the library would make each class a second time."""

    class EmailClaimed(Aggregate.Created):
        """The address belongs to this registration from now on; the first such event starts the stream."""

        TOPIC = "email_claim.email_claimed"
        registration_id: str

        def mutate(self, aggregate: Any) -> Any:
            if aggregate is None:
                return super().mutate(None)
            return CanMutateAggregate.mutate(self, aggregate)

        def apply(self, aggregate: Any) -> None:
            aggregate.holder = UUID(self.registration_id)

    class EmailReleased(Event):
        """Compensation of `EmailClaimed`: the address is free."""

        TOPIC = "email_claim.email_released"
        registration_id: str

    def __init__(self) -> None:
        self.holder: UUID | None = None
        self.former: UUID | None = None

    @classmethod
    def begin(cls, *, claim_id: ClaimId, registration_id: UUID, now: datetime) -> EmailClaim:
        """Claim an address that has never been held."""
        return begin(
            cls, cls.EmailClaimed, name="email_claim", stream_id=claim_id, now=now, registration_id=str(registration_id)
        )

    def take(self, *, registration_id: UUID, now: datetime) -> None:
        """Claim the address for a registration, from an earlier holder that has ended or has not proven it."""
        if self.holder == registration_id:
            return
        if self.holder is not None:
            self.trigger_event(EmailClaim.EmailReleased, registration_id=str(self.holder), timestamp=now)
        self.trigger_event(
            EmailClaim.EmailClaimed,
            originator_topic="email_claim",
            registration_id=str(registration_id),
            timestamp=now,
        )

    def release(self, *, registration_id: UUID, now: datetime) -> None:
        """Free the address if this registration still holds it."""
        if self.holder == registration_id:
            self.trigger_event(EmailClaim.EmailReleased, registration_id=str(registration_id), timestamp=now)

    @event(EmailReleased)
    def _email_released(self, registration_id: str) -> None:
        self.holder = None
        self.former = UUID(registration_id)


register_topic("email_claim", EmailClaim)
