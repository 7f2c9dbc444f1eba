"""Keys that sign notes (https://c2sp.org/signed-note): Ed25519, and ML-DSA-44 beside it (https://c2sp.org/tlog-cosignature)
where `cryptography` has it. Both halves of a pair come from one seed.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from hashlib import sha256
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

try:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey
except ImportError:  # of a release that has none
    MLDSA44PrivateKey = MLDSA44PublicKey = None  # type: ignore[assignment,misc]

ED25519: Final = 1
ML_DSA_44: Final = 6
"""Types of keys, as signed-note numbers them."""

_LENGTHS: Final = {ED25519: 32, ML_DSA_44: 1312}

_ML_DSA_SEED: Final = b"registrar checkpoint ML-DSA-44"
"""What the second seed is derived from the first one with. It must never change: the public key would."""


@cache
def has_ml_dsa() -> bool:
    """Is it in `cryptography`, and in the OpenSSL below it?"""
    try:
        return MLDSA44PrivateKey is not None and bool(MLDSA44PrivateKey.from_seed_bytes(bytes(32)))
    except UnsupportedAlgorithm:
        return False


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public half of a key. The name is that of the log."""

    name: str
    public: bytes = field(repr=False)
    type: int = ED25519

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Raises:
            ValueError: it is not of the form `name+id+base64`, or of a type that is unknown here.
        """
        found = re.fullmatch(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+=*)", text.strip())
        if found is None:
            raise ValueError("a key is of the form name+id+base64")
        public = b64decode(found[3], validate=True)
        key = cls(found[1], public[1:], int.from_bytes(public[:1]))
        if len(key.public) != _LENGTHS.get(key.type) or key.id.hex() != found[2]:
            raise ValueError("the key is not whole, or neither of Ed25519 nor of ML-DSA-44")
        if key.type == ML_DSA_44 and not has_ml_dsa():
            raise ValueError("a key of ML-DSA-44 takes a later release of cryptography or OpenSSL")
        return key

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + self._typed).digest()[:4]

    @property
    def short(self) -> str:
        """Enough to tell it from others."""
        return f"{self.name}+{self.id.hex()}"

    def __str__(self) -> str:
        return f"{self.short}+{b64encode(self._typed).decode()}"

    @property
    def _typed(self) -> bytes:
        return bytes([self.type]) + self.public

    @property
    def signs_every_line(self) -> bool:
        """ML-DSA-44 signs the first three lines of a checkpoint, and nothing of what follows them."""
        return self.type == ED25519

    def has_signed(self, text: str, signature: bytes) -> bool:
        try:
            if self.type == ED25519:
                Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
            else:
                message = _tree_message(self.name, signature[:8], text)
                MLDSA44PublicKey.from_public_bytes(self.public).verify(signature[8:], message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """
    Args:
        seed: 32 bytes.
    """

    name: str
    seed: bytes = field(repr=False)

    @property
    def verifier(self) -> VerifierKey:
        """That of Ed25519, which every reader of notes understands."""
        return VerifierKey(self.name, self._ed25519.public_key().public_bytes_raw())

    @property
    def verifiers(self) -> Sequence[VerifierKey]:
        """One for each signature that `sign` makes."""
        if not has_ml_dsa():
            return [self.verifier]
        return [self.verifier, VerifierKey(self.name, self._ml_dsa.public_key().public_bytes_raw(), ML_DSA_44)]

    @property
    def _ed25519(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def _ml_dsa(self) -> MLDSA44PrivateKey:
        return MLDSA44PrivateKey.from_seed_bytes(hmac.digest(self.seed, _ML_DSA_SEED, "sha256"))

    def sign(self, text: str) -> str:
        """The note of any text, which ends with a newline, signed by Ed25519; of a checkpoint see `signed_note`."""
        return f"{text}\n{self._line(self.verifier, self._ed25519.sign(text.encode()))}"

    def lines(self, text: str, at: datetime) -> str:
        """Our signatures of a checkpoint's text, each in a line."""
        signatures = [self._ed25519.sign(text.encode())]
        if has_ml_dsa():
            time = int(at.timestamp()).to_bytes(8)
            signatures.append(time + self._ml_dsa.sign(_tree_message(self.name, time, text)))
        return "".join(map(self._line, self.verifiers, signatures))

    def _line(self, key: VerifierKey, signature: bytes) -> str:
        return f"— {self.name} {b64encode(key.id + signature).decode()}\n"


def _tree_message(name: str, time: bytes, text: str) -> bytes:
    """What ML-DSA-44 signs: the `cosigned_message` of the whole tree.

    Raises:
        ValueError: the text is no checkpoint.
    """
    origin, size, root = text.split("\n")[:3]
    start, end = bytes(8), int(size).to_bytes(8)
    return b"subtree/v1\n\0" + _sized(name) + time + _sized(origin) + start + end + b64decode(root, validate=True)


def _sized(text: str) -> bytes:
    encoded = text.encode()
    return bytes([len(encoded)]) + encoded
