"""Mailbox: how many mails it is sent, and which registrations wait for it, side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, NewType
from uuid import UUID

from eventsourcing.domain import Aggregate, CanMutateAggregate
from eventsourcing.utils import register_topic

from domain.email_claim import ClaimId
from domain.policy import Policy
from domain.streams import begin, begun_by

MailboxId = NewType("MailboxId", UUID)
"""Id of a mailbox's stream: a keyed hash of the mailbox that an address is guessed to lead to."""

REMEMBERED: Final = 16
"""Registrations that a mailbox remembers, the latest; whether they got a mail makes no difference, because who sees
that one is forgotten would learn it."""

OF_ONE_NETWORK: Final = 4
"""Of these, those from one network: it must not make the mailbox forget the others'."""

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(hours=24)

NEVER_OVER: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""The time of a grant by which a mailbox is sent no more: a mail so recent that there is none after it, which every
release takes for one that was granted within the cooldown (`_is_used_up`)."""

_NO_MAIL: Final = 0
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Grant(NamedTuple):
    """A mail that was granted; `network`: see `Mailbox.MailDecided`."""

    at: datetime
    network: str

    def __str__(self) -> str:
        return f"{self.at.isoformat()} {self.network}"


@dataclass(frozen=True, slots=True)
class Applicant:
    """A registration that wants a mail there; `claim`: see `claim_mark`; `network`: from which it was begun; `payload`:
    see `payload_mark`."""

    registration_id: UUID
    claim: str
    network: str
    payload: str = ""


class Mailbox(Aggregate, created_event_name="MailDecided"):
    """One mailbox: what it was sent within a day, and the latest registrations for it.

    Several addresses may lead to one mailbox, as tags and dots do with many providers: they share its budget. The
    budget is silent (docs/security.md, S13): who asks cannot see what others have used of it.
    """

    class MailDecided(Aggregate.Created):
        """It was decided whether the mail of this issue is sent or withheld.

        Each event has the whole state after it, so the latest one is all that is ever read, however many there are.

        `serial`: of the issue; 0: it is about no mail, see `lifts`.
        `granted`: the mails of the last 24 hours, the oldest first, each "TIME NETWORK"; the network is a keyed hash of
        32 bits that differs from mailbox to mailbox. One of the year 9999 among them: nobody is sent any there.
        `applicants`: the latest registrations, the oldest first, each
        "REGISTRATION CLAIM NETWORK PAYLOAD"; claim (the address's) and payload are 32 bits of keyed hashes, too. The
        id has no hyphens: the fewer bytes, the less a crowded mailbox shows in the time that it takes. From 2 kB on,
        PostgreSQL would compress the row, for 16 µs more.
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

        @property
        def silences(self) -> bool:
            """Is the mailbox sent no more?"""
            return any(one.at == NEVER_OVER for one in self.grants())

        @property
        def lifts(self) -> bool:
            """Is it an operator's decision that the mailbox is sent mails again? `withheld` is true then, as with any
            event that grants no mail: so it is read rightly by a release that does not know of this."""
            return self.serial == _NO_MAIL

        def applicant(self) -> Applicant | None:
            """The registration that the mail is for; None if it is not remembered any more."""
            own = UUID(self.registration_id)
            return next((one for one in map(_applicant, reversed(self.applicants)) if one.registration_id == own), None)

        def mutate(self, aggregate: Any) -> Any:
            if aggregate is None:  # also if it is not the stream's first
                return begun_by(Mailbox, self)
            return CanMutateAggregate.mutate(self, aggregate)

        def apply(self, aggregate: Any) -> None:
            aggregate.withheld = self.withheld
            aggregate.latest = self

    def __init__(self) -> None:
        self.withheld = False
        self.latest: Mailbox.MailDecided  # set by the event, which has all there is

    # Read where somebody asks. To register takes as long whatever is in there (docs/security.md, S2), so it reads the
    # texts as they are.

    @property
    def granted(self) -> tuple[Grant, ...]:
        return tuple(self.latest.grants())

    @property
    def applicants(self) -> tuple[Applicant, ...]:
        return tuple(map(_applicant, self.latest.applicants))


_NOTHING: Final[dict[str, Any]] = {
    "registration_id": "",
    "serial": 0,
    "withheld": False,
    "granted": [str(Grant(_LONG_AGO, "00000000"))] * 4,
    "applicants": [f"{UUID(int=0).hex} 00000000 00000000 00000000"] * 8,
}
UNTOUCHED: Final = Mailbox.MailDecided(
    originator_topic="mailbox", originator_id=UUID(int=0), originator_version=0, timestamp=_LONG_AGO, **_NOTHING
)
"""What is taken for the latest event of a mailbox that nobody has asked for yet; never recorded. It has mails to
forget, about as many as a budget has, and half of the applicants that there may be, so that it takes as long to read.
"""


def applicants_with(mailbox: Mailbox | None, claim_id: ClaimId, fingerprint: str) -> tuple[UUID, ...]:
    """The registrations for this address that may have this payload, and every one that the mailbox remembers and that
    does."""
    latest = UNTOUCHED if mailbox is None else mailbox.latest
    claim, mark = f" {claim_mark(claim_id)}", f" {payload_mark(fingerprint)}"
    return tuple([UUID(one.split(" ")[0]) for one in latest.applicants if one.endswith(mark) and claim in one])


@dataclass(frozen=True, slots=True)
class Asked:
    """A mail that somebody asks for.

    Attributes:
        claim_id: the address's claim if this is a new registration's first mail, None for a later one.
        network: a keyed hash of the requester's network.
        fingerprint: of the new registration.
    """

    registration_id: UUID
    serial: int
    claim_id: ClaimId | None
    network: str
    fingerprint: str = ""


def decide_mail(
    mailbox: Mailbox | None,
    mailbox_id: MailboxId,
    asked: Asked,
    *,
    now: datetime,
    policy: Policy,
) -> Mailbox:
    """Decide whether a mail is within the mailbox's budget; `withheld` of the mailbox that is returned says so.

    It is a new object, so that the same is done whether there was one or not.

    Args:
        mailbox: None if nobody has asked for a mail there yet.
    """
    latest, version = (UNTOUCHED, 0) if mailbox is None else (mailbox.latest, mailbox.version)
    applicants = latest.applicants if version else []
    before = latest.grants()
    after, withheld = grant(before, asked.network, now=now, policy=policy)
    # Those that stay as they are written: to write each again would tell how many there are.
    granted = [text for text, one in zip(latest.granted, before, strict=True) if one in after]
    fields: dict[str, Any] = {
        "registration_id": str(asked.registration_id),
        "serial": asked.serial,
        "withheld": withheld,
        "granted": granted if withheld else [*granted, str(after[-1])],
        "applicants": applicants if asked.claim_id is None else _remembering(applicants, asked),
    }
    return begin(
        Mailbox, Mailbox.MailDecided, name="mailbox", stream_id=mailbox_id, now=now, version=version + 1, **fields
    )


def silence(
    mailbox: Mailbox | None, mailbox_id: MailboxId, registration_id: UUID, serial: int, now: datetime
) -> Mailbox:
    """Decide that a mailbox is sent no more, since whoever reads there did not want that mail.

    Args:
        mailbox: None if nobody has asked for a mail there yet.
    """
    latest, version = (UNTOUCHED, 0) if mailbox is None else (mailbox.latest, mailbox.version)
    kept = latest.granted if version else []
    fields: dict[str, Any] = {
        "registration_id": str(registration_id),
        "serial": serial,
        "withheld": True,
        "granted": kept if latest.silences else [*kept, str(Grant(NEVER_OVER, "00000000"))],
        "applicants": latest.applicants if version else [],
    }
    return begin(
        Mailbox, Mailbox.MailDecided, name="mailbox", stream_id=mailbox_id, now=now, version=version + 1, **fields
    )


def allow(mailbox: Mailbox, registration_id: UUID, now: datetime) -> Mailbox | None:
    """Decide that a mailbox is sent mails again, within its budget; None: it is already.

    Args:
        registration_id: one of its registrations, in whose story this stands.
    """
    latest = mailbox.latest
    if not latest.silences:
        return None
    kept = [text for text, one in zip(latest.granted, latest.grants(), strict=True) if one.at != NEVER_OVER]
    fields: dict[str, Any] = {
        "registration_id": str(registration_id),
        "serial": _NO_MAIL,
        "withheld": True,
        "granted": kept,
        "applicants": latest.applicants,
    }
    version = mailbox.version + 1
    return begin(Mailbox, Mailbox.MailDecided, name="mailbox", stream_id=mailbox.id, now=now, version=version, **fields)


def grant(granted: Iterable[Grant], network: str, *, now: datetime, policy: Policy) -> tuple[list[Grant], bool]:
    """The rule of the budget: the grants of the last day after a mail was asked for, and whether it is withheld."""
    of_the_day = [one for one in granted if one.at > now - DAY]
    withheld = _is_used_up(of_the_day, network, now, policy)
    return (of_the_day if withheld else [*of_the_day, Grant(now, network)]), withheld


def _is_used_up(granted: Collection[Grant], network: str, now: datetime, policy: Policy) -> bool:
    """Is the whole budget used up, or this network's part of it?

    Args:
        granted: within a day.
    """
    an_hour_ago = now - HOUR
    of_the_hour = [grant for grant in granted if grant.at > an_hour_ago]
    own, own_of_the_hour = (sum(grant.network == network for grant in of) for of in (granted, of_the_hour))
    return (
        any(grant.at > now - policy.resend_cooldown for grant in granted)
        or len(of_the_hour) >= policy.mailbox_mails_per_hour
        or len(granted) >= policy.mailbox_mails_per_day
        or own_of_the_hour >= policy.network_mails_per_hour
        or own >= policy.network_mails_per_day
    )


def _remembering(applicants: list[str], asked: Asked) -> list[str]:
    """With who asks; where that is one too many, the oldest of their network is forgotten, or else the oldest."""
    assert asked.claim_id is not None  # noqa: S101 - narrows
    mark = payload_mark(asked.fingerprint)
    applicants = [*applicants, f"{asked.registration_id.hex} {claim_mark(asked.claim_id)} {asked.network} {mark}"]
    network = f" {asked.network} "
    own = [at for at, one in enumerate(applicants) if network in one]
    if len(own) > OF_ONE_NETWORK:
        del applicants[own[0]]
    elif len(applicants) > REMEMBERED:
        del applicants[0]
    return applicants


def claim_mark(claim_id: UUID) -> str:
    """32 bits of an address's claim. Of the addresses that lead to one mailbox, two have the same hardly ever: then
    one's registrations are loaded with the other's, and what they are tells."""
    return f"{claim_id.int >> 96:08x}"


def payload_mark(fingerprint: str) -> str:
    """32 bits of a fingerprint: enough to know which registration to look at, too few to stand for the payload."""
    return fingerprint[:8]


def _grant(text: str) -> Grant:
    at, network = text.split(" ")
    return Grant(datetime.fromisoformat(at), network)


def _applicant(text: str) -> Applicant:
    registration_id, claim, network, *payload = text.split(" ")  # the first of them have whole claims, and no payload
    return Applicant(UUID(registration_id), claim[:8], network, *payload)


# A stable name instead of the class's path, which would become data in every event.
register_topic("mailbox", Mailbox)
