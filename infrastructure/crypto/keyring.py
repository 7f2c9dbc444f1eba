"""Every key and what is derived from keys: sealing, addresses' hashes, codes, message ids.

A master key (from the operator) wraps two kinds of secret in the database: each person's own key, and the root
secret, from which every other key is derived (HKDF-SHA256, one label per purpose). So the master key can be changed
(`infrastructure.crypto.rotation`) without changing a claim's id or a code that is on its way.
"""

from __future__ import annotations

import hmac
import os
from base64 import b32decode, b32encode, b64decode, b64encode
from collections.abc import Iterable
from datetime import datetime
from hashlib import blake2b, sha256
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from application.ports import Person, WrappedKey, WrongMasterKey
from domain.email_claim import ClaimId
from domain.mailbox import MailboxId
from domain.synthetic import marked
from domain.uuids import uuid_of_int
from infrastructure.crypto.key_uses import note_first_use, noted, read_use
from infrastructure.crypto.master_keys import NONCE_BYTES, MasterKeys, Unopened
from infrastructure.postgres.connection import Connection

SYNTHETIC_KEY = 64
"""Characters of the key of a synthetic request; any other one is told from it by its length, as a rule."""

_TAG = 11
"""Bytes of a bounce token's tag: with id and serial they fill its 48 characters of five bits."""

_PERSON = msgspec.json.Decoder(Person)


class Mac:
    """HMAC-SHA256 (RFC 2104) with a key of at most 64 bytes that is hashed once: a quarter of the time of
    `hmac.digest`, half of that of a copied `hmac.HMAC`."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(64, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in padded))

    def __call__(self, message: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


class Keyring:
    """Implements `application.ports.Secrets`."""

    def __init__(self, *, master_key: bytes | MasterKeys, root_secret: bytes) -> None:
        """
        Args:
            master_key: 32 bytes, from the operator; or several, as the database uses them.
            root_secret: 32 bytes, as `open_root_secret` returns them.
        """
        self.master_keys = keys_of(master_key)
        self._address_mac = Mac(_derive(root_secret, b"address claim"))
        self._mailbox_mac = Mac(_derive(root_secret, b"mailbox"))
        self._network_mac = Mac(_derive(root_secret, b"requester's network"))
        self._idempotency_mac = Mac(_derive(root_secret, b"idempotent registration id"))
        self._answer_mac = Mac(_derive(root_secret, b"kept answers"))
        self._fingerprint_mac = Mac(_derive(root_secret, b"payload fingerprint"))
        self._code_mac = Mac(_derive(root_secret, b"one-time codes"))
        self._message_mac = Mac(_derive(root_secret, b"message ids"))
        self._bounce_mac = Mac(_derive(root_secret, b"bounce tokens"))
        self._bounce_pad = Mac(_derive(root_secret, b"cipher of bounce tokens"))
        self._salt_mac = Mac(_derive(root_secret, b"password salts"))
        self._synthetic_mac = Mac(_derive(root_secret, b"synthetic registrations"))
        self._limit_hash = blake2b(digest_size=16, key=_derive(root_secret, b"rate limits"))
        self._imported_mac = Mac(_derive(root_secret, b"imported users"))
        self.journal_seed = _derive(root_secret, b"journal of erasures")

    def claim_id(self, canonical_email: str, *, duplicate: bool = False) -> ClaimId:
        """See `application.ports.Secrets`."""
        label = b"duplicate\0" if duplicate else b"address\0"
        return ClaimId(_uuid8(self._address_mac(label + canonical_email.encode())))

    def mailbox_id(self, mailbox: str) -> MailboxId:
        """See `application.ports.Secrets`."""
        return MailboxId(_uuid8(self._mailbox_mac(mailbox.encode())))

    def network_mark(self, mailbox_id: MailboxId, network: str) -> str:
        """See `application.ports.Secrets`."""
        return self._network_mac(mailbox_id.bytes + network.encode())[:4].hex()

    def registration_id_for(self, canonical_email: str, idempotency_key: str) -> UUID:
        """See `application.ports.Secrets`."""
        message = canonical_email.encode() + b"\0" + idempotency_key.encode()
        registration_id = _uuid8(self._idempotency_mac(message))
        synthetic = self.is_synthetic_key(idempotency_key, "register", canonical_email)
        return marked(registration_id) if synthetic else registration_id

    def synthetic_key(self, *scope: str) -> str:
        """See `application.ports.Secrets`."""
        return self._synthetic_mac(_joined(scope)).hex()

    def is_synthetic_key(self, key: str, *scope: str) -> bool:
        """Is it the `synthetic_key` of this scope?"""
        return len(key) == SYNTHETIC_KEY and hmac.compare_digest(key, self.synthetic_key(*scope))

    def answer_id(self, *scope: str) -> UUID:
        """See `application.ports.Secrets`."""
        return _uuid8(self._answer_mac(_joined(scope)))

    def new_registration_id(self, now: datetime) -> UUID:
        """A UUIDv7 (RFC 9562): 48 bits of milliseconds, 74 random bits."""
        milliseconds = int(now.timestamp() * 1000)
        value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
        return uuid_of_int(value & ~(0xF << 76 | 0b11 << 62) | (7 << 76 | 0b10 << 62))

    def imported_id(self, claim_id: ClaimId) -> UUID:
        """See `application.ports.Secrets`."""
        return _uuid8(self._imported_mac(claim_id.bytes))

    def fingerprint(self, *parts: str) -> str:
        """Keyed hash of the parts, in hexadecimal; each part's length is hashed with it, so that boundaries count."""
        return self._fingerprint_mac(_joined(parts)).hex()

    def code(self, registration_id: UUID, serial: int) -> str:
        """The six digits of an issue: HOTP (RFC 4226) with the issue's serial as counter."""
        key = self._code_mac(registration_id.bytes)
        digest = hmac.digest(key, serial.to_bytes(8, "big"), "sha1")
        offset = digest[-1] & 0xF
        number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
        return f"{number % 1_000_000:06d}"

    def message_id(self, registration_id: UUID, serial: int) -> str:
        """Left part of the Message-ID of an issue's mail: the same for every copy, and it reveals nothing."""
        message = registration_id.bytes + serial.to_bytes(8, "big")
        return self._message_mac(message)[:16].hex()

    def bounce_token(self, registration_id: UUID, serial: int) -> str:
        """See `application.ports.Secrets`. A synthetic IV (as RFC 5297 has it): the tag, and what it stands for under a
        pad that follows from the tag; so servers on the way learn no id, and the token of a mail is always the same."""
        named = registration_id.bytes + serial.to_bytes(3, "big")
        tag = self._bounce_mac(named)[:_TAG]
        return b32encode(tag + self._padded(named, tag)).decode().lower()

    def mail_of_bounce_token(self, token: str) -> tuple[UUID, int] | None:
        """See `application.ports.Secrets`."""
        try:
            read = b32decode(token.upper().encode("ascii"))
        except ValueError:
            return None
        tag, named = read[:_TAG], self._padded(read[_TAG:], read[:_TAG])
        expected = self._bounce_mac(named)[:_TAG]
        if len(read) != _TAG + 19 or not hmac.compare_digest(tag, expected):
            return None
        return UUID(bytes=named[:16]), int.from_bytes(named[16:], "big")

    def _padded(self, named: bytes, tag: bytes) -> bytes:
        pad = self._bounce_pad(tag)
        return bytes(one ^ other for one, other in zip(named, pad, strict=False))

    def limited(self, whom: str) -> str:
        """Keyed hash of whom a rate limit counts, in hexadecimal: the limiter need not know networks and addresses."""
        hashed = self._limit_hash.copy()
        hashed.update(whom.encode())
        return hashed.hexdigest()

    def password_salt(self, canonical_email: str) -> bytes:
        """16 bytes derived from the address: a repeated registration has the same hash, and is recognised."""
        return self._salt_mac(canonical_email.encode())[:16]

    def seal(self, registration_id: UUID, person: Person) -> tuple[str, WrappedKey]:
        """Encrypt with a new personal key, bound to the registration's id (AES-256-GCM)."""
        drawn = os.urandom(32 + 2 * NONCE_BYTES)  # one system call for all three
        key, nonce = drawn[:32], drawn[32:-NONCE_BYTES]
        sealed = _sealed(registration_id, person, key, nonce)
        wrapped = self.master_keys.wrap(key, binding(registration_id), drawn[-NONCE_BYTES:])
        return sealed, WrappedKey(registration_id, wrapped)

    def seal_again(self, registration_id: UUID, person: Person, wrapped: bytes) -> str:
        """Encrypt with the personal key that there is, and a nonce of its own.

        Raises:
            WrongMasterKey: the master key that wrapped the key is not here, which is named.
        """
        key = self._key_of(registration_id, wrapped)
        return _sealed(registration_id, person, key, os.urandom(NONCE_BYTES))

    def open(self, registration_id: UUID, sealed: str, wrapped: bytes) -> Person:
        """Decrypt what `seal` returned.

        Raises:
            WrongMasterKey: the master key that wrapped the key is not here, which is named; or what is sealed was made
                with another key, or for another registration.
        """
        key, data = self._key_of(registration_id, wrapped), b64decode(sealed)
        try:
            clear = AESGCM(key).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], registration_id.bytes)
        except InvalidTag:
            raise _unopened(registration_id, " with its key") from None
        return _PERSON.decode(clear)

    def _key_of(self, registration_id: UUID, wrapped: bytes) -> bytes:
        try:
            return self.master_keys.unwrap(wrapped, binding(registration_id))
        except WrongMasterKey as error:
            raise _unopened(registration_id, f": {error}") from None


def _sealed(registration_id: UUID, person: Person, key: bytes, nonce: bytes) -> str:
    clear = msgspec.json.encode(person)
    return b64encode(nonce + AESGCM(key).encrypt(nonce, clear, registration_id.bytes)).decode()


def _unopened(registration_id: UUID, why: str) -> WrongMasterKey:
    return WrongMasterKey(f"the personal data of {registration_id} cannot be opened{why}")


def keys_of(master_key: bytes | MasterKeys) -> MasterKeys:
    return master_key if isinstance(master_key, MasterKeys) else MasterKeys(master_key)


def binding(registration_id: UUID) -> bytes:
    """What a personal key is bound to, wherever it is wrapped."""
    return b"personal key" + registration_id.bytes


ROOT = b"root secret"
"""What the root secret is bound to."""


async def open_root_secret(connection: Connection, master_key: bytes | MasterKeys) -> bytes:
    """The database's root secret; created at the first start, by the first process. The keys follow the database's use
    of them from here on.

    Raises:
        WrongMasterKey: see `read_root_secret`.
    """
    keys = keys_of(master_key)
    found = await read_root_secret(connection, keys)
    if found is None:
        await connection.execute(
            "INSERT INTO service_secrets (name, wrapped) VALUES ('root', %b) ON CONFLICT DO NOTHING",
            (keys.wrap(os.urandom(32), ROOT),),
        )
        found = await read_root_secret(connection, keys)
    if not await noted(connection):
        wrapped = await _wrapped_root(connection)
        assert wrapped is not None  # noqa: S101 - inserted above
        await note_first_use(connection, wrapped, keys.opened(wrapped, ROOT)[0])
        keys.follow(await read_use(connection))
    assert found is not None  # noqa: S101 - inserted above
    return found


async def read_root_secret(connection: Connection, master_key: bytes | MasterKeys) -> bytes | None:
    """The database's root secret; None if no service has started on it yet. The keys follow the database's use of them
    from here on.

    Raises:
        WrongMasterKey: it is wrapped with another master key; or persons' keys are, and would turn up one by one.
    """
    keys = keys_of(master_key)
    keys.follow(await read_use(connection))
    wrapped = await _wrapped_root(connection)
    found = None if wrapped is None else unwrap_root_secret(wrapped, keys)
    if keys.missing:
        missing = " and ".join(one.hex() for one in sorted(keys.missing))
        raise WrongMasterKey(f"the master key {missing} wraps keys in this database, and this process does not have it")
    return found


async def _wrapped_root(connection: Connection) -> bytes | None:
    row = await (await connection.execute("SELECT wrapped FROM service_secrets WHERE name = 'root'")).fetchone()
    return None if row is None else row[0]


def unwrap_root_secret(wrapped: bytes, master_key: bytes | MasterKeys) -> bytes:
    """
    Raises:
        WrongMasterKey: it is wrapped with another master key.
    """
    try:
        return keys_of(master_key).unwrap(wrapped, ROOT)
    except Unopened as error:
        if error.key is not None:
            raise WrongMasterKey(f"the root secret of this database is damaged: {error}") from None
        raise WrongMasterKey(f"the master key is not the one that this database was set up with: {error}") from None


def _derive(root_secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"registrar " + purpose).derive(root_secret)


def _joined(parts: Iterable[str]) -> bytes:
    """Each part after its length."""
    joined = b""
    for part in parts:
        encoded = part.encode()
        joined += len(encoded).to_bytes(4, "big") + encoded
    return joined


def _uuid8(digest: bytes) -> UUID:
    """A UUID of version 8 (RFC 9562: custom content) from 122 of the first 128 bits."""
    value = int.from_bytes(digest[:16], "big")
    return uuid_of_int(value & ~(0xF << 76 | 0b11 << 62) | (8 << 76 | 0b10 << 62))
