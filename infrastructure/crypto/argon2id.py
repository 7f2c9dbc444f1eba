"""argon2id with one lane (RFC 9106), by dryoc where it can be used and otherwise by libsodium: the same digests.

libsodium asks the kernel for the memory of each hash, which takes more time than the hash (docs/library-notes.md).
dryoc asks the C library, which can keep it (`hash_memory`) or have it in huge pages (`entrypoints.cli.huge_pages`).
"""

# ruff: noqa: PLC0415 - only one of two libraries is loaded

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Final

import structlog

from infrastructure.crypto import hash_memory

log = structlog.get_logger(__name__)

DIGEST_SIZE: Final = 32

Derive = Callable[..., bytes]
"""`derive(password, salt, passes=…, memory=…)`: a digest of `DIGEST_SIZE` bytes; a salt has 16, memory is in bytes."""

_KNOWN: Final = (b"password", b"somebody's salt!", 3, 64 * 1024)
_KNOWN_DIGEST: Final = bytes.fromhex("1dc4c51a8aa09f79201a975169ab554b7de02da8d39e0b6553cd606464bd3447")
"""By libsodium (PyNaCl 1.6.2), OpenSSL (cryptography 50) and dryoc 2.0.0 alike (2026-11-29); 0.05 ms."""


def by_libsodium() -> Derive:
    from nacl.pwhash import argon2id

    def derive(password: bytes, salt: bytes, *, passes: int, memory: int) -> bytes:
        return argon2id.kdf(DIGEST_SIZE, password, salt, opslimit=passes, memlimit=memory)

    return derive


def by_dryoc() -> Derive | None:
    """None where it is not installed."""
    try:
        from dryoc.pwhash import derive_key
    except ImportError:
        return None

    def derive(password: bytes, salt: bytes, *, passes: int, memory: int) -> bytes:
        return derive_key(password, salt, length=DIGEST_SIZE, opslimit=passes, memlimit=memory)

    return derive


def is_right(derive: Derive) -> bool:
    """Does it give the digest that it must?

    Asked by every process: vector code differs from processor to processor, and a digest that nobody else can compute
    would lock its person out.
    """
    password, salt, passes, memory = _KNOWN
    return derive(password, salt, passes=passes, memory=memory) == _KNOWN_DIGEST


@cache
def fastest() -> Derive:
    """The fastest that can be used here."""
    derive = by_dryoc()
    if derive is None:
        return by_libsodium()
    if not is_right(derive):
        log.error("passwords.library_unfit", library="dryoc")
        return by_libsodium()
    hash_memory.give_large_back()
    return derive


def memory_kept(size: int) -> AbstractContextManager[None]:
    """Until the end of the block, the memory of a hash of this size serves this thread's next one."""
    return hash_memory.kept(size, first=_small_one)


def _small_one() -> None:
    """A hash by the library that takes its memory from the C library, in a tenth of a millisecond."""
    fastest()  # decides, and loads
    derive = by_dryoc()
    if derive is not None:
        is_right(derive)
