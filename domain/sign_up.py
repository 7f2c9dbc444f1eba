"""What concerns more than one registration: to begin one, to prove its address, to get a new code for it, to reopen it,
to import one.

Whoever proves an address first has it. Until then any number of registrations may wait for it side by side, each with a
code, a password and an id of its own, and none can end another.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from eventsourcing.domain import Aggregate

from domain.email_claim import ClaimId, EmailClaim
from domain.errors import AddressTaken, IdempotencyKeyReused, NotPending, Refused
from domain.kept_answer import KeptAnswer
from domain.mailbox import Asked, Mailbox, MailboxId, decide_mail
from domain.policy import Policy
from domain.registration import Registration, Status


@dataclass(frozen=True, slots=True)
class KnownAddress:
    """What is known of an address.

    Attributes:
        claim: None if nobody has ever held it.
        holder: the registration that the claim names; None as well if nobody needs to know more of it.
        applicants: the registrations for it that its mailbox remembers, as they are now, and whoever was imported with
            it, without the holder; for a new registration, those of them that may have the same payload.
        proven_by: the registration that has proven it and holds it, if more of that one is not known here.
        former: where nobody holds it, the registration that did before, if that is known here.
    """

    claim_id: ClaimId
    claim: EmailClaim | None
    holder: Registration | None
    applicants: tuple[Registration, ...]
    proven_by: UUID | None = None
    former: Registration | None = None

    @property
    def was_erased(self) -> bool:
        """Was the last one an account, and its person erased?"""
        return self.former is not None and self.former.erased and self.former.proven_version > 0

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """All that are known, the holder first."""
        return self.applicants if self.holder is None else (self.holder, *self.applicants)

    @property
    def owner(self) -> Registration | None:
        """The registration that has proven the address.

        One that has proven it without claiming it was verified by a process of release 0.1.0, for which a registration
        held its address from the beginning.
        """
        return next((one for one in self.registrations if one.is_proven), None)

    def given_to(self, registration: Registration, now: datetime) -> tuple[EmailClaim, ...]:
        """The claim, if it has to change for this registration to hold it."""
        if self.claim is None:
            return (EmailClaim.begin(claim_id=self.claim_id, registration_id=registration.id, now=now),)
        if self.claim.holder == registration.id:
            return ()
        self.claim.take(registration_id=registration.id, now=now)
        return (self.claim,)


@dataclass(frozen=True, slots=True)
class SignUp:
    """The registration to return, and the aggregates to save (none for a repeat)."""

    registration: Registration
    changed: tuple[Aggregate, ...]


def sign_up(
    *,
    address: KnownAddress,
    mailbox_id: MailboxId,
    mailbox: Mailbox | None,
    earlier: Registration | None,
    registration_id: UUID,
    fingerprint: str,
    personal_data: str,
    locale: str,
    network: str,
    now: datetime,
    policy: Policy,
    keyed: bool = False,
    reveal_duplicates: bool = False,
) -> SignUp:
    """Decide what a request to register becomes.

    The same payload again, while its registration is pending, returns that registration, unless it is being undone
    already and its code would never arrive. Another payload is a registration of its own. Every new registration has
    the same events, whatever the address is: nobody can tell from them.

    Args:
        mailbox: that of the address; None if nobody has asked for a mail there yet.
        earlier: the registration that was begun with the same address and Idempotency-Key, if there is one, whatever
            has become of it.
        registration_id: id of the new registration, if there is to be one.
        fingerprint: keyed hash of the whole payload.
        network: keyed hash of the requester's network.
        keyed: whether `registration_id` follows from an Idempotency-Key. Where that meets the registration of another
            request, the answer is kept under it.

    Raises:
        IdempotencyKeyReused: `earlier` had another payload.
        AddressTaken: an account holds the address, and the operator chose to reveal that.
    """
    if earlier is not None:
        if earlier.fingerprint != fingerprint:
            raise IdempotencyKeyReused
        return SignUp(earlier, ())

    owner = address.owner
    owner_id = address.proven_by if owner is None else owner.id
    if owner_id is not None and reveal_duplicates:
        raise AddressTaken

    for one in address.registrations:
        if one.is_pending and one.fingerprint == fingerprint and not one.is_being_undone:
            return SignUp(one, (_kept(registration_id, one, now),) if keyed else ())

    mailbox = decide_mail(
        mailbox,
        mailbox_id,
        Asked(registration_id, 1, address.claim_id, network, fingerprint),
        now=now,
        policy=policy,
    )
    registration = Registration.register(
        registration_id=registration_id,
        claim_id=address.claim_id,
        fingerprint=fingerprint,
        personal_data=personal_data,
        locale=locale,
        duplicate_of=owner_id,
        mailbox_id=mailbox_id,
        withheld=mailbox.withheld,
        now=now,
    )
    mended = () if owner is None else address.given_to(owner, now)
    return SignUp(registration, (registration, mailbox, *mended))


def _kept(answer_id: UUID, registration: Registration, now: datetime) -> KeptAnswer:
    return KeptAnswer.keep(
        answer_id=answer_id,
        request="register",
        subject_id=registration.id,
        fingerprint=registration.fingerprint,
        status=Status.PENDING,
        now=now,
    )


@dataclass(frozen=True, slots=True)
class Proof:
    """The aggregates to save, and the refusal to raise after that."""

    refused: Refused | None
    changed: tuple[Aggregate, ...]


def prove(
    registration: Registration,
    address: KnownAddress | None,
    *,
    offered: str,
    expected: str,
    now: datetime,
    policy: Policy,
) -> Proof:
    """Prove an address with a code from a mail, which decides in one commit whose it is.

    The registrations that wait for the same address give way. If another one has proven it, no code matches, as for a
    duplicate.

    Args:
        address: None if `Registration.may_be_verified` says that the code is not the right one.
    """
    owner = None if address is None else address.owner
    mended: tuple[Aggregate, ...] = ()
    if address is not None and owner is not None and owner.id != registration.id:
        registration.give_way(by=owner.id, now=now)  # it was begun while the other one was being verified
        mended = address.given_to(owner, now)

    refused = registration.verify(offered=offered, expected=expected, now=now, policy=policy)
    if address is None or refused is not None:
        return Proof(refused, (registration, *mended))
    return Proof(None, _won(registration, address, now))


def _won(registration: Registration, address: KnownAddress, now: datetime) -> tuple[Aggregate, ...]:
    """It has its address: the others give way."""
    others = tuple(one for one in address.registrations if one.id != registration.id)
    for one in others:
        one.give_way(by=registration.id, now=now)
    return (registration, *address.given_to(registration, now), *others)


def import_user(
    address: KnownAddress,
    *,
    registration_id: UUID,
    personal_data: str,
    locale: str,
    verified: bool,
    now: datetime,
) -> tuple[Aggregate, ...]:
    """Take somebody over from another system; returns the aggregates to save, of which there is none where an account
    has the address, or had it until its person was erased.

    Who is `verified` there has the address, as if it had been proven here: the registrations that wait for it give way.
    """
    if address.owner is not None or address.was_erased:
        return ()
    registration = Registration.import_user(
        registration_id=registration_id,
        claim_id=address.claim_id,
        personal_data=personal_data,
        locale=locale,
        verified=verified,
        now=now,
    )
    return _won(registration, address, now) if verified else (registration,)


def invite(
    registration: Registration,
    address: KnownAddress,
    mailbox_id: MailboxId,
    mailbox: Mailbox | None,
    *,
    network: str,
    now: datetime,
    policy: Policy,
) -> tuple[Aggregate, ...]:
    """Have an imported user sent a first code; returns the aggregates to save.

    None where the mailbox's budget is used up: who invites may do so again later, unlike somebody who asks for a code
    and must not see what others have asked for. Where an account has the address, the user gives way to that.

    Args:
        network: keyed hash of what stands for the operator's.
    """
    if not registration.awaits_invitation:
        return ()
    if address.owner is not None:
        registration.give_way(by=address.owner.id, now=now)
        return (registration,)
    asked = Asked(registration.id, 1, address.claim_id, network)
    mailbox = decide_mail(mailbox, mailbox_id, asked, now=now, policy=policy)
    if mailbox.withheld:
        return ()
    registration.invite(mailbox_id=mailbox_id, now=now)
    return registration, mailbox


def renew_code(
    registration: Registration, mailbox: Mailbox | None, *, network: str, now: datetime, policy: Policy
) -> tuple[Aggregate, ...]:
    """Replace a registration's code because the registrant asks for it; returns the aggregates to save.

    Its mail is sent if it is within the budget of the mailbox, and otherwise withheld silently.

    Args:
        mailbox: that of the registration; None if nobody has asked for a mail there yet.
        network: keyed hash of the requester's network.

    Raises:
        NotPending, TooManyRequests: see `Registration.check_new_code`.
    """
    registration.check_new_code(now=now, policy=policy)
    if registration.mailbox_id is None:
        registration.request_new_code(now=now, policy=policy)
        return (registration,)
    asked = Asked(registration.id, registration.serial + 1, None, network)
    mailbox = decide_mail(mailbox, registration.mailbox_id, asked, now=now, policy=policy)
    registration.request_new_code(now=now, policy=policy, withheld=mailbox.withheld)
    return registration, mailbox


def reopen(registration: Registration, address: KnownAddress, *, now: datetime) -> None:
    """Undo a registration's cancellation at an operator's request. It waits for the proof again, as others may.

    Raises:
        NotPending: see `Registration.may_be_reopened`; or another registration has proven the address since.
    """
    if address.owner is not None and registration.can_be_proven:
        raise NotPending
    registration.reopen(now=now)
