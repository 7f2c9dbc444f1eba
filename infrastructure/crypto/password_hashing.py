"""argon2id in one thread per core, off the event loop, with a short queue."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from application.crash_points import crash_point
from application.ports import Overloaded, Unavailable
from infrastructure.crypto import argon2id

MEMORY = 19 * 1024 * 1024
PASSES = 2
"""OWASP's first choice for argon2id: 19 MiB, two passes, one lane: 6 to 12 ms (docs/library-notes.md)."""

MAX_WAITING = 16
"""Hashes that may wait: about 100 ms on two cores. Beyond that the response is 503, not a longer wait."""

BATCH = 4
"""Hashes that a thread answers at once. A caller waits for at most three more of 8 ms, only while others wait."""


@dataclass(frozen=True, slots=True)
class _Asked:
    password: str
    salt: bytes
    answer: asyncio.Future[str]


class PasswordHashing:
    """Implements `application.ports.PasswordHasher`; the GIL is released during a hash.

    Threads take what waits in batches and answer each batch at once. The 19 MiB of each hash drive everything else out
    of the processor's caches, so a registration that goes on alone takes 1.8 ms of the event loop, and each of four
    together 1.1 (our measurement, 2026-11-29). Who finds a free thread does not wait for anybody.
    """

    def __init__(self, *, salt_for: Callable[[str], bytes], workers: int | None = None) -> None:
        self._salt_for = salt_for
        self._workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="argon2")
        self._queue: deque[_Asked] = deque()
        self._working = 0
        self._under_way = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Hashes that wait for a thread."""
        return max(0, self._under_way - self._workers)

    async def hash(self, password: str, canonical_email: str) -> str:
        """See `application.ports.PasswordHasher.hash`."""
        if self._closed:
            raise Unavailable("password hashing is shutting down")
        if self.waiting >= MAX_WAITING:
            raise Overloaded("too many passwords are waiting to be hashed")
        loop = asyncio.get_running_loop()
        asked = _Asked(password, self._salt_for(canonical_email), loop.create_future())
        self._under_way += 1
        self._queue.append(asked)
        self._start(loop)
        crash_point("api.hashing")
        return await asked.answer

    def close(self) -> None:
        """What waits is cancelled; what is being hashed is seen through."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        with suppress(IndexError):  # the threads take from it, too
            while True:
                self._queue.popleft().answer.cancel()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set one more thread to work, if there is one."""
        if self._working < self._workers:
            self._working += 1
            self._pool.submit(self._work, loop)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: hash until nothing waits."""
        while batch := self._next_batch():
            done = [(asked, _outcome(asked)) for asked in batch]
            if not _told(loop, self._settle, done):
                return
        _told(loop, self._rest, loop)

    def _next_batch(self) -> list[_Asked]:
        """This thread's share of what waits."""
        batch: list[_Asked] = []
        share = min(BATCH, -(-len(self._queue) // self._workers))
        with suppress(IndexError):  # the other threads have taken the rest
            while len(batch) < share:
                batch.append(self._queue.popleft())
        return batch

    def _settle(self, done: list[tuple[_Asked, str | Exception]]) -> None:
        for asked, outcome in done:
            # Counted until now, even if the caller was cancelled earlier.
            self._under_way -= 1
            if asked.answer.done():
                continue
            if isinstance(outcome, str):
                asked.answer.set_result(outcome)
            else:
                asked.answer.set_exception(outcome)

    def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        self._working -= 1
        if self._queue:  # it came when the thread had just looked
            self._start(loop)


def _told(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: Any) -> bool:
    """Call it on the loop, unless that has ended and nobody waits any more."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:  # the loop is closed
        return False
    return True


def _outcome(asked: _Asked) -> str | Exception:
    try:
        return _hash(asked.password, asked.salt)
    except Exception as error:  # noqa: BLE001 - raised again where it was asked for
        return error


def _hash(password: str, salt: bytes) -> str:
    digest = argon2id.fastest()(password.encode(), salt, passes=PASSES, memory=MEMORY)
    return f"$argon2id$v=19$m={MEMORY // 1024},t={PASSES},p=1${_unpadded(salt)}${_unpadded(digest)}"


def _unpadded(data: bytes) -> str:
    return b64encode(data).decode().rstrip("=")
