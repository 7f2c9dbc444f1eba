"""The master keys: what they wrap, how that names them, and which of them wraps from now on.

The first master key of a database wraps to 60 bytes (nonce, key, tag), as releases without a rotation do, which know
no other form. What a later one wraps begins with a byte 1 and the id of the key, so that the right one is taken of
several, and a missing one is named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NewType

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from application.ports import WrongMasterKey

KeyId = NewType("KeyId", bytes)
"""Eight bytes that tell a master key from others, and nothing about it."""

NONCE_BYTES: Final = 12
"""Bytes of an AES-GCM nonce (NIST SP 800-38D), random: each personal key seals once, a master key wraps far fewer than
the 2**32 messages that random nonces allow."""

_NAMES_ITS_KEY: Final = b"\x01"
_ID_BYTES: Final = 8
_WRAPPED_BYTES: Final = NONCE_BYTES + 32 + 16
_PREFIX_BYTES: Final = len(_NAMES_ITS_KEY) + _ID_BYTES


def key_id(master_key: bytes) -> KeyId:
    """The id of a master key: always the same, and no way back (HKDF-SHA256)."""
    derived = HKDF(algorithm=SHA256(), length=_ID_BYTES, salt=None, info=b"registrar master key id").derive(master_key)
    return KeyId(derived)


def names(wrapped: bytes) -> KeyId | None:
    """The id of the key that wrapped this; None: the first one did, which is not named."""
    if len(wrapped) == _PREFIX_BYTES + _WRAPPED_BYTES and wrapped.startswith(_NAMES_ITS_KEY):
        return KeyId(wrapped[len(_NAMES_ITS_KEY) : _PREFIX_BYTES])
    return None


def prefix_of(key: KeyId) -> bytes:
    """What begins with this was wrapped by the key, if it is not the first one."""
    return _NAMES_ITS_KEY + key


@dataclass(frozen=True, slots=True)
class Use:
    """What the database says about its master keys.

    Attributes:
        first: the key that what it wrapped does not name; None: not noted yet, or nothing of it is there.
        wraps: the one that wraps from now on; None: the first one of those that a process has.
        in_use: all that wrap something that is there.
    """

    first: KeyId | None = None
    wraps: KeyId | None = None
    in_use: frozenset[KeyId] = field(default_factory=frozenset)


class MasterKeys:
    """The master keys that this process has: the database's `Use` says which of them wraps."""

    def __init__(self, *keys: bytes) -> None:
        """
        Args:
            keys: 32 bytes each, from the operator; the first one wraps until the database says otherwise.
        """
        self._ciphers = {key_id(key): AESGCM(key) for key in keys}
        self._default = next(iter(self._ciphers))
        self._use = Use()

    def __repr__(self) -> str:
        return f"MasterKeys({', '.join(one.hex() for one in self._ciphers)})"

    @property
    def ids(self) -> tuple[KeyId, ...]:
        """Of the keys that are here, in the operator's order."""
        return tuple(self._ciphers)

    @property
    def wrapping(self) -> KeyId:
        """The key that wraps from now on; it may be one that is not here."""
        return self._use.wraps or self._default

    @property
    def missing(self) -> frozenset[KeyId]:
        """Keys that wrap something in the database, and are not here."""
        return self._use.in_use - self._ciphers.keys()

    def add(self, keys: Iterable[bytes]) -> None:
        """Have these keys as well."""
        for key in keys:
            self._ciphers.setdefault(key_id(key), AESGCM(key))

    def follow(self, use: Use) -> None:
        """Wrap and open as the database says from now on."""
        self._use = use

    def wrap(self, secret: bytes, bound_to: bytes, nonce: bytes | None = None, *, by: KeyId | None = None) -> bytes:
        """Wrap 32 bytes, to be unwrapped with the same `bound_to` only.

        Args:
            by: a key in place of the one that wraps from now on.

        Raises:
            WrongMasterKey: that key is not here.
        """
        by = by or self.wrapping
        cipher = self._ciphers.get(by)
        if cipher is None:
            raise WrongMasterKey(self._lacks(by))
        is_first = by == (self._default if self._use.wraps is None else self._use.first)
        nonce = nonce or os.urandom(NONCE_BYTES)
        return (b"" if is_first else prefix_of(by)) + nonce + cipher.encrypt(nonce, secret, bound_to)

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> bytes:
        """
        Raises:
            WrongMasterKey: the key that it needs is not here, which is named.
            Unopened: it was damaged, or belongs to something else.
        """
        return self.opened(wrapped, bound_to)[1]

    def opened(self, wrapped: bytes, bound_to: bytes) -> tuple[KeyId, bytes]:
        """`unwrap`, and the key that did it."""
        named = names(wrapped)
        by = named or self._use.first
        if by is not None and by not in self._ciphers:
            raise WrongMasterKey(self._lacks(by))
        body = wrapped if named is None else wrapped[_PREFIX_BYTES:]
        for key in self._ciphers if by is None else (by,):
            try:
                return key, self._ciphers[key].decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], bound_to)
            except (InvalidTag, ValueError):  # the latter: it is far too short
                continue
        raise Unopened(by, self.ids)

    def _lacks(self, key: KeyId) -> str:
        return f"the master key {key.hex()} is needed, and this process has {_listed(self.ids)}"


class Unopened(WrongMasterKey):
    """The key that should open it does not: it was damaged, or it is not known which key that is, and none does.

    Attributes:
        key: the one that should.
    """

    def __init__(self, key: KeyId | None, tried: Iterable[KeyId]) -> None:
        self.key = key
        super().__init__(
            f"it does not open with the master key {key.hex()}, though that wrapped it"
            if key is not None
            else f"it was wrapped by another master key than {_listed(tried)}"
        )


def _listed(keys: Iterable[KeyId]) -> str:
    return " and ".join(key.hex() for key in keys)
