"""Signed notes (https://c2sp.org/signed-note), and the checkpoints of the log that are written as such
(https://c2sp.org/tlog-checkpoint). Ed25519.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from domain.recorded import Position
from infrastructure.audit.roots import Checkpoint

_ED25519: Final = b"\1"
_SIGNATURE: Final = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+=*)")
_NOTE: Final = re.compile(r"(?:[^\n]+\n)+\n(?:— [^\n]+\n)+(?=\n|\Z)")


class BadNote(Exception):
    """It is no note that one of the keys has signed; one line, fit to show."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public half of a key. The name is that of the log."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Raises:
            ValueError: it is not of the form `name+id+base64`, or not of an Ed25519 key.
        """
        found = re.fullmatch(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]{44})", text.strip())
        if found is None:
            raise ValueError("a key is of the form name+id+base64")
        public = b64decode(found[3])
        key = cls(found[1], public[1:])
        if public[:1] != _ED25519 or key.id.hex() != found[2]:
            raise ValueError("the key is not whole, or none of Ed25519")
        return key

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(_ED25519 + self.public).decode()}"

    def has_signed(self, text: str, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except InvalidSignature:
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
        return VerifierKey(self.name, self._private.public_key().public_bytes_raw())

    @property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    def sign(self, text: str) -> str:
        """The note: the text, which ends with a newline, with our signature."""
        signature = self.verifier.id + self._private.sign(text.encode())
        return f"{text}\n— {self.name} {b64encode(signature).decode()}\n"


def open_note(note: str, keys: Iterable[VerifierKey]) -> str:
    """The text of a note that at least one of the keys has signed. Signatures by other keys say nothing.

    Raises:
        BadNote: none of them has, or what one of them should have signed is something else.
    """
    text, separator, lines = note.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise BadNote("it is no signed note")
    text += "\n"
    known = {(key.name, key.id): key for key in keys}
    signed = False
    for line in lines[:-1].split("\n"):
        found = _SIGNATURE.fullmatch(line)
        if found is None:
            raise BadNote("it has a line that is no signature")
        try:
            blob = b64decode(found[2], validate=True)
        except ValueError:
            raise BadNote("it has a signature that is no base64") from None
        key = known.get((found[1], blob[:4]))
        if key is not None:
            if not key.has_signed(text, blob[4:]):
                raise BadNote(f"it is not what {key.name} signed")
            signed = True
    if not signed:
        raise BadNote("no known key has signed it")
    return text


def notes_in(text: str) -> Iterator[str]:
    """The notes of a file in which an empty line follows each; what is torn is left out."""
    return (found[0] for found in _NOTE.finditer(text))


def checkpoint_text(origin: str, checkpoint: Checkpoint, time: datetime) -> str:
    """What is signed: the name of the log, its blocks, their root, its last position, and when."""
    root = b64encode(checkpoint.root).decode()
    when = time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{origin}\n{checkpoint.size}\n{root}\nposition {checkpoint.position}\ntime {when}\n"


def checkpoint_in(text: str) -> Checkpoint:
    """
    Raises:
        BadNote: the text is no checkpoint of ours.
    """
    found = re.match(r"[^\n]+\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n(?:.*\n)*?position ([0-9]{1,19})\n", text)
    if found is None:
        raise BadNote("it is no checkpoint")
    position: Position = int(found[3])
    return Checkpoint(int(found[1]), position, b64decode(found[2]))
