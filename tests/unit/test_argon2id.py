"""argon2id: two libraries with the same digests, and memory that is given back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from infrastructure.crypto import argon2id
from infrastructure.crypto.argon2id import Derive, by_dryoc, by_libsodium, fastest, is_right
from infrastructure.crypto.password_hashing import MEMORY, PASSES

SALT = b"0123456789abcdef"

dryoc = by_dryoc()
needs_dryoc = pytest.mark.skipif(dryoc is None, reason="dryoc has no wheel for this platform")
needs_glibc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def decided_anew() -> Iterator[None]:
    fastest.cache_clear()
    yield
    fastest.cache_clear()


def test_libsodium_gives_the_known_digest() -> None:
    assert is_right(by_libsodium())


@needs_dryoc
@settings(max_examples=30)
@given(st.binary(max_size=1024), st.binary(min_size=16, max_size=16), st.integers(1, 4), st.integers(8, 512))
def test_both_libraries_give_the_same_digest(password: bytes, salt: bytes, passes: int, kibibytes: int) -> None:
    assert dryoc is not None

    found = [derive(password, salt, passes=passes, memory=kibibytes * 1024) for derive in (dryoc, by_libsodium())]

    assert found[0] == found[1]


@needs_dryoc
def test_both_libraries_give_the_same_digest_with_the_parameters_of_the_service() -> None:
    assert dryoc is not None

    found = [derive(b"correct horse", SALT, passes=PASSES, memory=MEMORY) for derive in (dryoc, by_libsodium())]

    assert found[0] == found[1]


@needs_dryoc
def test_dryoc_is_used_where_it_is_installed() -> None:
    assert fastest().__qualname__.startswith("by_dryoc")


def test_libsodium_is_used_where_dryoc_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dryoc.pwhash", None)

    assert fastest().__qualname__.startswith("by_libsodium")


def test_a_library_that_gives_another_digest_is_told_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> Derive:
        return lambda password, salt, *, passes, memory: bytes(32)

    monkeypatch.setattr(argon2id, "by_dryoc", wrong)
    with capture_logs() as lines:
        derive = fastest()

    assert derive.__qualname__.startswith("by_libsodium")
    assert [(line["event"], line["library"]) for line in lines] == [("passwords.library_unfit", "dryoc")]


_MEASURED = f"""
import resource
from infrastructure.crypto import argon2id

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

derive = argon2id.fastest()
before = resident()
for _ in range(10):
    derive(b"correct horse", {SALT!r}, passes={PASSES}, memory={MEMORY})
print(resident() - before)
"""


@needs_dryoc
@needs_glibc
def test_the_memory_of_hashes_is_given_back() -> None:
    shown = subprocess.run([sys.executable, "-c", _MEASURED], check=True, capture_output=True, text=True).stdout

    assert int(shown) < MEMORY // 4
