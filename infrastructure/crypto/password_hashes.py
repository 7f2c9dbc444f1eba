"""Hashes of passwords as they are written down (PHC strings, modular crypt, Django's): ours, and other systems'.

What a check may cost is bounded here, so that nobody's login takes minutes, or all memory: a hash that costs more is
refused before it is stored.
"""

# ruff: noqa: PLC0415 - what checks other systems' hashes is loaded where there is one
from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from abc import abstractmethod
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from infrastructure.crypto import argon2id

MOST_MEMORY: Final = 256 << 20
"""Bytes for one check: four times argon2-cffi's default. Half of the threads check other systems' hashes, one each."""

MOST_FILLED: Final = 1 << 30
"""Bytes that one check writes, passes (or `p` of scrypt) times memory: about two seconds of a core."""

MOST_LANES: Final = 16

MOST_ROUNDS_OF_LANES: Final = 16_384
"""Passes times lanes of argon2: OpenSSL starts a thread for each lane four times a pass, which costs more than what it
fills where that is little (our measurement: 128 KiB, 8,192 passes, 16 lanes took 7 s of CPU)."""

MOST_BESIDE: Final = 1 << 20
"""Bytes of scrypt that `ln` does not count: `r` and `p` make them. Common hashes have 8 to 100 KiB; OpenSSL refuses a
check that has too many of them."""

MOST_BCRYPT_COST: Final = 15
"""2 to 4 s; most systems have 10 to 12."""

MOST_PBKDF2_ROUNDS: Final = 5_000_000
"""2 to 4 s; Django has had 1,200,000 since its release 6.0."""

MOST_SALT: Final = 128
"""Bytes."""

BCRYPT_BYTES: Final = 72
"""Of a password that bcrypt looks at; what follows never counted, and `bcrypt` (from 5.0 on) refuses to be given it."""


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


@dataclass(frozen=True, slots=True)
class _Argon2:
    """Every other one, by OpenSSL."""

    parameters: Parameters
    salt: bytes
    digest: bytes

    def matches(self, password: bytes) -> bool:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2d, Argon2i, Argon2id

        kind, memory, passes, lanes = self.parameters
        kinds: dict[str, type[Argon2id | Argon2i | Argon2d]] = {
            "argon2id": Argon2id,
            "argon2i": Argon2i,
            "argon2d": Argon2d,
        }
        made = kinds[kind](
            salt=self.salt, length=len(self.digest), iterations=passes, lanes=lanes, memory_cost=memory // 1024
        ).derive(password)
        return hmac.compare_digest(made, self.digest)


@dataclass(frozen=True, slots=True)
class _Bcrypt:
    """`written`: with version 2b, which is the same as 2a and 2y for what is left of a password after 72 bytes."""

    parameters: Parameters
    written: bytes

    def matches(self, password: bytes) -> bool:
        import bcrypt

        return hmac.compare_digest(bcrypt.hashpw(password[:BCRYPT_BYTES], self.written[:29]), self.written)


@dataclass(frozen=True, slots=True)
class _Scrypt:
    parameters: Parameters
    block: int
    salt: bytes
    digest: bytes

    def matches(self, password: bytes) -> bool:
        _, memory, lanes, _ = self.parameters
        made = hashlib.scrypt(
            password,
            salt=self.salt,
            n=memory // (128 * self.block),
            r=self.block,
            p=lanes,
            maxmem=2 * MOST_MEMORY,  # it needs a little more than what it fills
            dklen=len(self.digest),
        )
        return hmac.compare_digest(made, self.digest)


@dataclass(frozen=True, slots=True)
class _Pbkdf2:
    parameters: Parameters
    digestmod: str
    salt: bytes
    digest: bytes

    def matches(self, password: bytes) -> bool:
        made = hashlib.pbkdf2_hmac(self.digestmod, password, self.salt, self.parameters.passes)
        return hmac.compare_digest(made, self.digest)


# --- How they are written ---------------------------------------------------------------------

_NUMBER: Final = "[1-9][0-9]{0,9}"
_B64: Final = "[A-Za-z0-9+/]{2,}"
_AB64: Final = "[A-Za-z0-9./]{2,}"  # passlib's: "." where Base64 has "+"

# Django writes the name of its hasher in front of argon2's own.
_ARGON2: Final = re.compile(
    rf"(?:argon2)?\$(?P<kind>argon2(?:id|i|d))\$v=19\$m=(?P<memory>{_NUMBER}),t=(?P<passes>{_NUMBER}),"
    rf"p=(?P<lanes>{_NUMBER})\$(?P<salt>{_B64})\$(?P<digest>{_B64})"
)
_BCRYPT: Final = re.compile(r"\$2[aby]\$(?P<cost>[0-9]{2})\$(?P<salt>[./A-Za-z0-9]{22})(?P<digest>[./A-Za-z0-9]{31})")
_SCRYPT: Final = re.compile(
    rf"\$scrypt\$ln=(?P<log>{_NUMBER}),r=(?P<block>{_NUMBER}),p=(?P<lanes>{_NUMBER})"
    rf"\$(?P<salt>{_B64})\$(?P<digest>{_B64})"
)
_PASSLIB: Final = re.compile(
    rf"\$pbkdf2-(?P<kind>sha256|sha512)\$(?P<rounds>{_NUMBER})\$(?P<salt>{_AB64})\$(?P<digest>{_AB64})"
)
_DJANGO: Final = re.compile(
    rf"pbkdf2_(?P<kind>sha256)\$(?P<rounds>{_NUMBER})\$(?P<salt>[^$]+)\$(?P<digest>[A-Za-z0-9+/]{{43}}=)"
)

_BCRYPT_ALPHABET: Final = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_DIGEST_SIZES: Final = {"sha256": 32, "sha512": 64}

LEAST_DIGEST: Final = 16
"""Bytes: of fewer, another password is found whose hash is the same."""


def parse_hash(text: str) -> PasswordHash:
    """A hash as it is stored.

    Raises:
        UnknownHash: it is none that can be checked here.
    """
    for written, made in _FORMS:
        if found := written.fullmatch(text):
            return made(found)
    raise UnknownHash("not a hash in a form that is known here")


def _argon2(found: re.Match[str]) -> PasswordHash:
    kind, memory, passes, lanes = found["kind"], int(found["memory"]) << 10, int(found["passes"]), int(found["lanes"])
    salt, digest = _salt(_b64(found["salt"])), _digest(_b64(found["digest"]))
    _at_most("memory", memory, MOST_MEMORY)
    _at_most("passes", memory * passes, MOST_FILLED)
    _at_most("lanes", lanes, MOST_LANES)
    _at_most("passes", passes * lanes, MOST_ROUNDS_OF_LANES)
    if memory < 8192 * lanes or len(salt) < 8:  # RFC 9106, 3.1
        raise UnknownHash("argon2 has no such parameters")
    parameters = Parameters(kind, memory, passes, lanes)
    if kind == "argon2id" and lanes == 1 and len(salt) == 16 and len(digest) == argon2id.DIGEST_SIZE:
        return _Argon2id(parameters, salt, digest)
    return _Argon2(parameters, salt, digest)


def _bcrypt(found: re.Match[str]) -> PasswordHash:
    cost = int(found["cost"])
    _at_most("cost", cost, MOST_BCRYPT_COST)
    if cost < 4:
        raise UnknownHash("bcrypt has no such cost")
    # The last characters have bits to spare, which other libraries may have set, and `bcrypt` refuses.
    written = f"$2b${cost:02}${_without_spare(found['salt'], 4)}{_without_spare(found['digest'], 2)}"
    return _Bcrypt(Parameters("bcrypt", 0, 1 << cost), written.encode())


def _without_spare(text: str, bits: int) -> str:
    return text[:-1] + _BCRYPT_ALPHABET[_BCRYPT_ALPHABET.index(text[-1]) >> bits << bits]


def _scrypt(found: re.Match[str]) -> PasswordHash:
    log, block, lanes = int(found["log"]), int(found["block"]), int(found["lanes"])
    _at_most("ln", log, 30)
    if log >= 16 * block:  # RFC 7914, 6
        raise UnknownHash("scrypt has no such parameters")
    memory = 128 * block << log
    _at_most("memory", memory, MOST_MEMORY)
    _at_most("p", memory * lanes, MOST_FILLED)
    _at_most("p", lanes, MOST_LANES)
    _at_most("r", 128 * block * (lanes + 2), MOST_BESIDE)
    salt, digest = _salt(_b64(found["salt"])), _digest(_b64(found["digest"]))
    return _Scrypt(Parameters("scrypt", memory, lanes), block, salt, digest)


def _passlib(found: re.Match[str]) -> PasswordHash:
    salt, digest = (_b64(found[name].replace(".", "+")) for name in ("salt", "digest"))
    return _pbkdf2(found, salt, digest)


def _django(found: re.Match[str]) -> PasswordHash:
    return _pbkdf2(found, found["salt"].encode(), b64decode(found["digest"]))  # its salt is text, and taken as such


def _pbkdf2(found: re.Match[str], salt: bytes, digest: bytes) -> PasswordHash:
    kind, rounds = found["kind"], int(found["rounds"])
    _at_most("rounds", rounds, MOST_PBKDF2_ROUNDS)
    if len(digest) != _DIGEST_SIZES[kind]:
        raise UnknownHash("its digest is cut")
    return _Pbkdf2(Parameters(f"pbkdf2-{kind}", 0, rounds), kind, _salt(salt), digest)


def _at_most(what: str, number: int, most: int) -> None:
    if number > most:
        raise UnknownHash(f"a check would cost too much: its {what}")


def _salt(salt: bytes) -> bytes:
    if len(salt) > MOST_SALT:
        raise UnknownHash("its salt is too long")
    return salt


def _digest(digest: bytes) -> bytes:
    if not LEAST_DIGEST <= len(digest) <= 64:
        raise UnknownHash("its digest is too short or too long")
    return digest


def _b64(text: str) -> bytes:
    """Base64 without padding (PHC's B64)."""
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise UnknownHash("not Base64 without padding") from None


_FORMS: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], PasswordHash]], ...]] = (
    (_ARGON2, _argon2),
    (_BCRYPT, _bcrypt),
    (_SCRYPT, _scrypt),
    (_PASSLIB, _passlib),
    (_DJANGO, _django),
)
