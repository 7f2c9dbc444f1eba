"""Mailbox: how many mails it is sent, and which registrations wait for it, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NewType
from uuid import UUID

from eventsourcing.domain import Aggregate, CanMutateAggregate
from eventsourcing.utils import register_topic

from domain.email_claim import ClaimId
from domain.policy import Policy
from domain.streams import begin

MailboxId = NewType("MailboxId", UUID)
"""Id of a mailbox's stream: a keyed hash of the mailbox that an address is guessed to lead to."""

REMEMBERED: Final = 16
"""Registrations that a mailbox remembers, the latest; whether they got a mail makes no difference, because who sees
that one is forgotten would learn it."""

OF_ONE_NETWORK: Final = 4
"""Of these, those from one network: it must not make the mailbox forget the others'."""

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Grant:
    """A mail that was granted; `network`: see `Mailbox.MailDecided`."""

    at: datetime
    network: str


@dataclass(frozen=True, slots=True)
class Applicant:
    """A registration that wants a mail there; `network`: from which it was begun."""

    registration_id: UUID
    claim_id: ClaimId
    network: str


class Mailbox(Aggregate, created_event_name="MailDecided"):
    """One mailbox: what it was sent within a day, and the latest registrations for it.

    Several addresses may lead to one mailbox, as tags and dots do with many providers: they share its budget. The
    budget is silent (docs/security.md, S13): who asks cannot see what others have used of it.
    """

    class MailDecided(Aggregate.Created):
        """It was decided whether the mail of this issue is sent or withheld.

        Each event has the whole state after it, so the latest one is all that is ever read, however many there are.

        `granted`: the mails of the last 24 hours, the oldest first, each "TIME NETWORK"; the network is a keyed hash of
        32 bits that differs from mailbox to mailbox. `applicants`: the latest registrations, the oldest first, each
        "REGISTRATION CLAIM NETWORK".
        """

        TOPIC = "mailbox.mail_decided"
        registration_id: str
        serial: int
        withheld: bool
        granted: list[str]
        applicants: list[str]

        def grants(self) -> list[Grant]:
            """`granted`, read."""
            return list(map(_grant, self.granted))

        def applicant(self) -> Applicant | None:
            """The registration that the mail is for; None if it is not remembered any more."""
            own = (one for one in reversed(self.applicants) if one.startswith(self.registration_id))
            return next(map(_applicant, own), None)

        def mutate(self, aggregate: Any) -> Any:
            if aggregate is None:  # also if it is not the stream's first
                return super().mutate(None)
            return CanMutateAggregate.mutate(self, aggregate)

        def apply(self, aggregate: Any) -> None:
            aggregate.withheld = self.withheld
            aggregate.latest = self

    def __init__(self) -> None:
        self.withheld = False
        self.latest: Mailbox.MailDecided | None = None

    # Read where somebody asks, which hardly anybody does of the mailbox of a new address.

    @property
    def granted(self) -> tuple[Grant, ...]:
        return () if self.latest is None else tuple(self.latest.grants())

    @property
    def applicants(self) -> tuple[Applicant, ...]:
        return () if self.latest is None else tuple(map(_applicant, self.latest.applicants))


@dataclass(frozen=True, slots=True)
class Asked:
    """A mail that somebody asks for.

    Attributes:
        claim_id: the address's claim if this is a new registration's first mail, None for a later one.
        network: a keyed hash of the requester's network.
    """

    registration_id: UUID
    serial: int
    claim_id: ClaimId | None
    network: str


def decide_mail(
    mailbox: Mailbox | None,
    mailbox_id: MailboxId,
    asked: Asked,
    *,
    now: datetime,
    policy: Policy,
    ended: Collection[UUID] = (),
) -> Mailbox:
    """Decide whether a mail is within the mailbox's budget; `withheld` of the mailbox that is returned says so.

    Args:
        mailbox: None if nobody has asked for a mail there yet.
        ended: registrations that need not be remembered any more.
    """
    applicants = [] if mailbox is None else [one for one in mailbox.applicants if one.registration_id not in ended]
    granted, withheld = grant(() if mailbox is None else mailbox.granted, asked.network, now=now, policy=policy)
    if asked.claim_id is not None:
        applicants.append(Applicant(asked.registration_id, asked.claim_id, asked.network))
    fields: dict[str, Any] = {
        "registration_id": str(asked.registration_id),
        "serial": asked.serial,
        "withheld": withheld,
        "granted": [f"{one.at.isoformat()} {one.network}" for one in granted],
        "applicants": [f"{one.registration_id} {one.claim_id} {one.network}" for one in _latest(applicants)],
    }
    if mailbox is None:
        return begin(Mailbox, Mailbox.MailDecided, name="mailbox", stream_id=mailbox_id, now=now, **fields)
    mailbox.trigger_event(Mailbox.MailDecided, originator_topic="mailbox", timestamp=now, **fields)
    return mailbox


def grant(granted: Iterable[Grant], network: str, *, now: datetime, policy: Policy) -> tuple[list[Grant], bool]:
    """The rule of the budget: the grants of the last day after a mail was asked for, and whether it is withheld."""
    of_the_day = [one for one in granted if one.at > now - DAY]
    withheld = _is_used_up(of_the_day, network, now, policy)
    return (of_the_day if withheld else [*of_the_day, Grant(now, network)]), withheld


def _is_used_up(granted: Collection[Grant], network: str, now: datetime, policy: Policy) -> bool:
    """Is the whole budget used up, or this network's part of it?"""

    def mails(within: timedelta, of: Collection[Grant] = granted) -> int:
        return sum(one.at > now - within for one in of)

    own = [one for one in granted if one.network == network]
    return (
        mails(policy.resend_cooldown) > 0
        or mails(HOUR) >= policy.mailbox_mails_per_hour
        or mails(DAY) >= policy.mailbox_mails_per_day
        or mails(HOUR, own) >= policy.network_mails_per_hour
        or mails(DAY, own) >= policy.network_mails_per_day
    )


def _latest(applicants: list[Applicant]) -> list[Applicant]:
    if len(applicants) <= OF_ONE_NETWORK:
        return applicants
    kept: list[Applicant] = []
    of_network: Counter[str] = Counter()
    for one in reversed([*applicants]):
        of_network[one.network] += 1
        if of_network[one.network] <= OF_ONE_NETWORK and len(kept) < REMEMBERED:
            kept.append(one)
    return kept[::-1]


def _grant(text: str) -> Grant:
    at, network = text.split(" ")
    return Grant(datetime.fromisoformat(at), network)


def _applicant(text: str) -> Applicant:
    registration_id, claim_id, network = text.split(" ")
    return Applicant(UUID(registration_id), ClaimId(UUID(claim_id)), network)


# A stable name instead of the class's path, which would become data in every event.
register_topic("mailbox", Mailbox)
