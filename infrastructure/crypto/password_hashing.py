"""argon2id in a pool of one thread per core, off the event loop, with a short queue."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from nacl.pwhash import argon2id

from application.crash_points import crash_point
from application.ports import Overloaded

MEMORY = 19 * 1024 * 1024
PASSES = 2
"""OWASP's first choice for argon2id: 19 MiB, two passes, one lane. 12 ms with libsodium (docs/library-notes.md)."""

MAX_WAITING = 16
"""Hashes that may wait: about 100 ms on two cores. Beyond that the response is 503, not a longer wait."""


class PasswordHashing:
    """Implements `application.ports.PasswordHasher`; libsodium releases the GIL while it hashes."""

    def __init__(self, *, salt_for: Callable[[str], bytes], workers: int | None = None) -> None:
        self._salt_for = salt_for
        self._workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="argon2")
        self._under_way = 0

    @property
    def waiting(self) -> int:
        """Hashes that wait for a thread."""
        return max(0, self._under_way - self._workers)

    async def hash(self, password: str, canonical_email: str) -> str:
        """See `application.ports.PasswordHasher.hash`."""
        if self.waiting >= MAX_WAITING:
            raise Overloaded("too many passwords are waiting to be hashed")
        salt = self._salt_for(canonical_email)
        self._under_way += 1
        work = asyncio.get_running_loop().run_in_executor(self._pool, _hash, password, salt)
        # Counted until the thread is done, even if the caller is cancelled earlier.
        work.add_done_callback(lambda _: self._done())
        crash_point("api.hashing")
        return await asyncio.shield(work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self) -> None:
        self._under_way -= 1


def _hash(password: str, salt: bytes) -> str:
    digest = argon2id.kdf(32, password.encode(), salt, opslimit=PASSES, memlimit=MEMORY)
    return f"$argon2id$v=19$m={MEMORY // 1024},t={PASSES},p=1${_unpadded(salt)}${_unpadded(digest)}"


def _unpadded(data: bytes) -> str:
    return b64encode(data).decode().rstrip("=")
