"""Keys, codes and sealed personal data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from uuid import UUID

from application.ports.log import WrappedKey
from domain.email_claim import ClaimId
from domain.mailbox import MailboxId


@dataclass(frozen=True, slots=True)
class Person:
    """The personal data that is sealed: the only place where an address, a name or a password hash is in clear text.

    Attributes:
        email: as typed, validated; mail is sent here.
        password_hash: argon2id in PHC string format, None if the registration had no password; of somebody who was
            imported, as it came, until the password is first checked.
    """

    email: str = field(repr=False)
    name: str = field(repr=False)
    password_hash: str | None = field(repr=False)


class Secrets(Protocol):
    """Everything derived from the service's root secret, and the sealing of personal data."""

    def claim_id(self, canonical_email: str, *, duplicate: bool = False) -> ClaimId:
        """Stream of the address's claim; with `duplicate`, that which duplicates claimed until release 0.1.0."""
        ...

    def mailbox_id(self, mailbox: str) -> MailboxId:
        """Stream of a mailbox, as `application.addresses.mailbox_guess` names it."""
        ...

    def network_mark(self, mailbox_id: MailboxId, network: str) -> str:
        """Keyed hash of a requester's network, for one mailbox: 32 bits in hexadecimal, enough to tell apart the few
        networks that ask for mails there, and too few to name one."""
        ...

    def registration_id_for(self, canonical_email: str, idempotency_key: str) -> UUID:
        """The id of the registration with this address and Idempotency-Key: always the same. With that of a synthetic
        one (`synthetic_key`), an id that says so."""
        ...

    def synthetic_key(self, *scope: str) -> str:
        """The Idempotency-Key of a request that the service makes of itself: of "register" and the address, or of
        "verify" and the registration's id. Nobody else can derive it."""
        ...

    def answer_id(self, *scope: str) -> UUID:
        """Stream of the answer to a request with an Idempotency-Key, the last part of the scope within which it is one
        key."""
        ...

    def new_registration_id(self, now: datetime) -> UUID: ...

    def imported_id(self, claim_id: ClaimId) -> UUID:
        """The id of the registration of whoever is imported with the address of this claim: always the same."""
        ...

    def fingerprint(self, *parts: str) -> str:
        """Keyed hash by which a repeat of the same registration is recognised."""
        ...

    def code(self, registration_id: UUID, serial: int) -> str:
        """The six-digit code of an issue: HOTP (RFC 4226), never stored."""
        ...

    def message_id(self, registration_id: UUID, serial: int) -> str:
        """Left part of the Message-ID of an issue's mail: the same for every copy."""
        ...

    def bounce_token(self, registration_id: UUID, serial: int) -> str:
        """What names an issue's mail in the envelope's sender: 48 letters and digits of which only their order counts,
        not their case. It says nothing to anybody else, and nobody else can make one."""
        ...

    def mail_of_bounce_token(self, token: str) -> tuple[UUID, int] | None:
        """The registration and the serial of a `bounce_token`, in letters of either case; None: it is none."""
        ...

    def seal(self, registration_id: UUID, person: Person) -> tuple[str, WrappedKey]:
        """Seal with a new key for this person; returns the key wrapped, to be stored in the same commit."""
        ...

    def open(self, registration_id: UUID, sealed: str, wrapped: bytes) -> Person: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of a password found.

    Attributes:
        outdated: the hash is weaker than, or simply not what one is made as today.
    """

    matches: bool
    outdated: bool


class Seals(Protocol):
    """What opens and closes the personal data of somebody who has a key."""

    def open(self, registration_id: UUID, sealed: str, wrapped: bytes) -> Person: ...

    def seal_again(self, registration_id: UUID, person: Person, wrapped: bytes) -> str:
        """Seal with the person's own key."""
        ...


class PasswordHasher(Protocol):
    async def hash(self, password: str, canonical_email: str) -> str:
        """argon2id in PHC format; the salt is derived from the address, so that a repeat gives the same.

        Raises:
            Overloaded: too many hashes are waiting.
            Unavailable: it is shutting down.
        """
        ...


class PasswordChecker(PasswordHasher, Protocol):
    """What waits here does so beside what is hashed for those who register: neither keeps the other from its turn.

    Raises (both):
        Overloaded: too many checks are waiting.
        Unavailable: it is shutting down.
    """

    async def verify(self, forms: Sequence[str], password_hash: str | None) -> Verdict:
        """Does one of these forms of a password match the hash?

        Takes as long where there is no hash to compare with as where it is one of today's.
        """
        ...

    async def rehash(self, password: str, canonical_email: str) -> str:
        """`hash`, of a password that was checked."""
        ...


@dataclass(frozen=True, slots=True)
class SealedPerson:
    """A registration's person, as the log has it at this moment.

    Attributes:
        is_proven: its address is verified, and it has not ended.
        is_active: it is an account that may be used.
        wrapped: the key that opens `sealed`; None once it was destroyed.
    """

    is_proven: bool
    is_active: bool
    sealed: str = field(repr=False)
    wrapped: bytes | None = field(repr=False)


class Persons(Protocol):
    async def sealed(self, registration_id: UUID) -> SealedPerson | None:
        """None if there is no registration with this id, or its person was erased.

        Raises:
            Unavailable: the database is away, or busy.
        """
        ...
