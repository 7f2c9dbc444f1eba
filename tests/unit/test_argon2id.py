"""argon2id: two libraries with the same digests, and memory that is given back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from textwrap import dedent
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from infrastructure.crypto import argon2id, hash_memory
from infrastructure.crypto.argon2id import Derive, by_dryoc, by_libsodium, fastest, is_right
from infrastructure.crypto.password_hashing import MEMORY, PASSES

SALT = b"0123456789abcdef"
MIB = 1024 * 1024

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


def shown_by(program: str) -> str:
    """What it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    arguments = [sys.executable, "-c", program]
    return subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True).stdout


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
    assert int(shown_by(_MEASURED)) < MEMORY // 4


_IN_A_THREAD = f"""
import resource
import sys
from threading import Thread
from infrastructure.crypto import argon2id, hash_memory

SIZE = {8 * MIB}
faults, resident = [], []

def look():
    with open("/proc/self/statm") as statm:
        resident.append(int(statm.read().split()[1]) * resource.getpagesize())

def derive():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    argon2id.fastest()(b"correct horse", {SALT!r}, passes=1, memory=SIZE)
    faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

def run(work):
    thread = Thread(target=work)
    thread.start()
    thread.join()
    print(*faults, "|", *resident)
"""
"""What a thread does is told as the page faults of each of its hashes, and as how much memory the process has."""


def seen(program: str) -> tuple[list[int], list[int]]:
    faults, resident = shown_by(_IN_A_THREAD + dedent(program)).split("|")
    return [int(one) for one in faults.split()], [int(one) for one in resident.split()]


@needs_dryoc
@needs_glibc
def test_the_memory_of_a_hash_serves_the_next_one_and_is_given_back_when_none_follows() -> None:
    faults, (kept, kept_again, after) = seen("""
        def work():
            for _ in range(2):
                with argon2id.memory_kept(SIZE):
                    derive()
                    look()
                    derive()
            look()
        argon2id.fastest()
        run(work)
    """)

    assert faults[1] == faults[3] == 0 < faults[2] <= faults[0]
    assert after < kept - 5 * MIB
    assert abs(kept_again - kept) < MIB


@needs_dryoc
@needs_glibc
def test_who_finds_the_kept_memory_taken_asks_the_kernel_and_keeps_nothing() -> None:
    faults, (kept, after) = seen("""
        def work():
            with argon2id.memory_kept(SIZE):
                derive()
                heap = hash_memory._glibc()
                hash = hash_memory._aligned(heap, SIZE)
                heap.malloc(1500)  # behind it, in the middle of the room, for good
                heap.free(hash)
                look()
            look()
            with argon2id.memory_kept(SIZE):
                derive()
                derive()
        run(work)
    """)

    assert after < kept - 5 * MIB
    assert 0 not in faults


@needs_dryoc
@needs_glibc
def test_the_services_threads_keep_their_memory_as_long_as_passwords_come() -> None:
    faults, resident = (int(one) for one in shown_by(_THE_SERVICE).split())

    assert faults < 24 * 50
    assert resident < MEMORY // 2


_THE_SERVICE = """
import asyncio
import resource
from infrastructure.crypto import argon2id
from infrastructure.crypto.password_hashing import PasswordHashing

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

async def main():
    argon2id.fastest()
    hashing = PasswordHashing(salt_for=lambda address: b"0123456789abcdef", workers=2)
    async def hash_some(count):
        await asyncio.gather(*[hashing.hash(f"password {n}", "ada@example.com") for n in range(count)])
    before = resident()
    await hash_some(4)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        await hash_some(12)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    while hashing._working:
        await asyncio.sleep(0)
    print(faults, resident() - before)
    hashing.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("size", [8 * 1024, 64 * MIB])
def test_without_glibc_and_for_little_memory_nothing_is_kept(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if size > MIB:
        monkeypatch.setattr(hash_memory, "_glibc", lambda: None)
    done = []

    def work() -> None:
        with hash_memory.kept(size, first=lambda: None):
            done.append(hash_memory._own.room)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert done == [None]


def test_memory_that_cannot_be_kept_is_told_once_and_tried_for_again() -> None:
    hash_memory._tell.cache_clear()
    tried, hashed = [], []

    def fails() -> None:
        tried.append(1)
        raise OSError

    def work() -> None:
        for _ in range(2):
            with hash_memory.kept(8 * MIB, first=fails):
                hashed.append(1)

    with capture_logs() as lines:
        thread = Thread(target=work)
        thread.start()
        thread.join()

    assert (len(tried), len(hashed)) == (2, 2)
    assert [(line["event"], line["error"]) for line in lines] == [("passwords.memory_not_kept", "OSError")]
