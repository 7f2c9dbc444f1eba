"""From the streams that `Log.load` returns to the aggregates that the rules need."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

from application.ports import A, ForeignRequest, Streams, UnexpectedAggregate
from domain.email_claim import ClaimId, EmailClaim
from domain.errors import UnknownRegistration
from domain.mail_outcome import MailKind
from domain.mailbox import Mailbox, applicants_with, claim_mark
from domain.recorded import Position
from domain.registration import Registration
from domain.sign_up import KnownAddress


class Loaded(NamedTuple):
    """A registration that was just loaded, and the position of its last event. Never shared between callers."""

    registration: Registration
    position: Position


def loaded(streams: Streams, registration_id: UUID) -> Loaded:
    """The registration of this stream.

    Raises:
        UnknownRegistration: see `require`.
    """
    return Loaded(require(Registration, streams, registration_id), streams.position(registration_id))


def require(kind: type[A], streams: Streams, stream_id: UUID) -> A:
    """The aggregate of this stream.

    Raises:
        UnknownRegistration: the stream is empty, or that of something else.
    """
    with suppress(UnexpectedAggregate):
        aggregate = streams.get(kind, stream_id)
        if aggregate is not None:
            return aggregate
    raise UnknownRegistration


def must_be_of_kind(registration: Registration, kind: MailKind) -> None:
    """Check that a request is for the kind of mail that this registration gets.

    Raises:
        ForeignRequest: this registration's mails are of another kind.
    """
    if kind != registration.mail_kind:
        raise ForeignRequest


def address_at_a_glance(
    streams: Streams, claim_id: ClaimId, mailbox: Mailbox | None, fingerprint: str
) -> tuple[UUID | None, tuple[UUID, ...]]:
    """What a new registration has to know of its address: who has proven it, and which registrations have to be looked
    at, because they may have the same payload. Nobody but their registrant sends that, so for everybody else it takes
    as long whatever the address is.

    Args:
        streams: the mailbox, and `proofs_of` the claim.
    """
    holder = streams.holder(claim_id)
    alike = applicants_with(mailbox, claim_id, fingerprint)
    if holder is None:
        return None, alike
    if holder.proven:
        return holder.registration_id, alike
    return None, (*alike, holder.registration_id)  # in a log of release 0.1.0: pending, and in no mailbox's memory


def known_address(
    streams: Streams, claim_id: ClaimId, mailbox: Mailbox | None, imported_id: UUID | None = None
) -> KnownAddress:
    """An address's claim and registrations, from streams that were loaded with it and its mailbox.

    Args:
        imported_id: that of whoever was imported with this address, if it was loaded, too.
    """
    claim = streams.get(EmailClaim, claim_id)
    holder = None if claim is None or claim.holder is None else streams.get(Registration, claim.holder)
    former = None if claim is None or claim.former is None or holder else streams.get(Registration, claim.former)
    marked = [one for one in (() if mailbox is None else mailbox.applicants) if one.claim == claim_mark(claim_id)]
    applicants = dict.fromkeys([one.registration_id for one in marked])
    if imported_id is not None:
        applicants[imported_id] = None
    if holder is not None:
        applicants.pop(holder.id, None)
    found = tuple(one for one in registrations(streams, applicants) if one.claim_id == claim_id)
    return KnownAddress(claim_id, claim, holder, found, former=former)


def registrations(streams: Streams, ids: Iterable[UUID]) -> tuple[Registration, ...]:
    """Those of these registrations that there are."""
    return tuple(filter(None, (streams.get(Registration, one) for one in ids)))
