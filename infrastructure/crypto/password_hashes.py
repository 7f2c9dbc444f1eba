"""Hashes of passwords as they are written down (the PHC string format): ours, and those that other systems made."""

from __future__ import annotations

import binascii
import hmac
import re
from abc import abstractmethod
from base64 import b64decode
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from infrastructure.crypto import argon2id


class Parameters(NamedTuple):
    """What a hash costs.

    Attributes:
        kind: "argon2id" and the like.
        memory: in bytes; 0 where there is none to choose.
        passes: or rounds.
    """

    kind: str
    memory: int
    passes: int
    lanes: int = 1


class PasswordHash(Protocol):
    """A hash of a password that is not known."""

    @property
    @abstractmethod
    def parameters(self) -> Parameters: ...

    @abstractmethod
    def matches(self, password: bytes) -> bool:
        """Is it the hash of this password? Takes as long as to make the hash, whatever the answer is."""
        ...


class UnknownHash(ValueError):
    """It is not written in a form that is known here, or costs more than a check may; the message says which, and
    nothing of the hash."""


@dataclass(frozen=True, slots=True)
class _Argon2id:
    """As we make them: with one lane, a salt of 16 bytes and a digest of 32."""

    parameters: Parameters
    salt: bytes
    digest: bytes

    def matches(self, password: bytes) -> bool:
        _, memory, passes, _ = self.parameters
        return hmac.compare_digest(argon2id.fastest()(password, self.salt, passes=passes, memory=memory), self.digest)


_ARGON2: Final = re.compile(
    r"\$(?P<kind>argon2id)\$v=19\$m=(?P<memory>[1-9][0-9]{0,7}),t=(?P<passes>[1-9][0-9]{0,3}),p=(?P<lanes>1)"
    r"\$(?P<salt>[A-Za-z0-9+/]{22})\$(?P<digest>[A-Za-z0-9+/]{43})"
)


def parse_hash(text: str) -> PasswordHash:
    """A hash as it is stored.

    Raises:
        UnknownHash: it is none that can be checked here.
    """
    found = _ARGON2.fullmatch(text)
    if found is None:
        raise UnknownHash("not a hash in a form that is known here")
    return _Argon2id(
        Parameters(found["kind"], int(found["memory"]) * 1024, int(found["passes"]), int(found["lanes"])),
        _bytes_of(found["salt"]),
        _bytes_of(found["digest"]),
    )


def _bytes_of(text: str) -> bytes:
    """Base64 without padding (PHC's B64)."""
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise UnknownHash("not Base64 without padding") from None
