"""Passwords are hashed, and compared with their hashes, off the event loop: one thread per core, short queues."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Final, TypeVar

import structlog

from application.crash_points import crash_point
from application.ports import Overloaded, Unavailable, Verdict
from infrastructure.crypto import argon2id
from infrastructure.crypto.password_hashes import Parameters, PasswordHash, parse_hash

log = structlog.get_logger(__name__)

T = TypeVar("T")

MEMORY = 19 * 1024 * 1024
PASSES = 2
"""OWASP's first choice for argon2id: 19 MiB, two passes, one lane: 6 to 12 ms (docs/library-notes.md)."""

MAX_WAITING = 16
"""Hashes that may wait in each queue: about 100 ms on two cores. Beyond that the response is 503, not a longer wait."""

BATCH = 4
"""Hashes that a thread answers at once. A caller waits for at most three more of 8 ms, only while others wait."""

_NO_THREAD: Final = "raise the limit of threads (ulimit -u, TasksMax of systemd, the container's limit of processes)"

_NOBODYS_SALT: Final = b"nobody has it..."


@dataclass(frozen=True, slots=True)
class _Asked:
    work: Callable[[], Any]
    answer: asyncio.Future[Any]
    queue: _Queue


@dataclass(slots=True)
class _Queue:
    """What waits of one kind, and how much of it is not answered yet.

    Attributes:
        at_once: threads that may work on it at the same time, each on one alone; None: all, in batches.
    """

    name: str
    at_once: int | None = None
    waits: deque[_Asked] = field(default_factory=deque)
    under_way: int = 0
    working: int = 0

    @property
    def is_open(self) -> bool:
        """Is there something to do that a thread may begin now?"""
        return bool(self.waits) and (self.at_once is None or self.working < self.at_once)


class PasswordHashing:
    """Implements `application.ports.PasswordChecker`; the GIL is released during a hash.

    Registrations, checks, and checks by other systems' hashes have a queue of their own each, and the threads take from
    them in turn: a flood of one is refused, and the others go on. Another system's hash may take a hundred times as
    long as ours, so only half of the threads work on such, and on one at a time.

    Threads take what waits in batches and answer each batch at once: a registration that goes on alone between hashes
    takes 1.8 ms of the event loop, and each of four together 1.0 (docs/performance.md). Who finds a free thread does
    not wait for anybody. What waits while the others hash is one thread's, or batches would be of two or three.
    """

    def __init__(self, *, salt_for: Callable[[str], bytes], workers: int | None = None) -> None:
        self._salt_for = salt_for
        self._workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="argon2")
        self._registrations = _Queue("passwords")
        self._checks = _Queue("checks")
        self._others = _Queue("checks by another system's hash", at_once=max(1, self._workers // 2))
        self._queues = (self._registrations, self._checks, self._others)
        self._in_turn = list(self._queues)
        """The one that was served least recently comes first."""
        self._taking = Lock()
        self._working = 0
        self._hashing = 0
        """Of the threads that work, those that have taken something already."""
        self._too_few = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """Hashes that wait for a thread."""
        return max(0, sum([queue.under_way for queue in self._queues]) - self._workers)

    async def hash(self, password: str, canonical_email: str) -> str:
        """See `application.ports.PasswordHasher.hash`."""
        return await self._done(self._registrations, partial(_hash, password, self._salt_for(canonical_email)))

    async def rehash(self, password: str, canonical_email: str) -> str:
        """See `application.ports.PasswordChecker.rehash`."""
        return await self._done(self._checks, partial(_hash, password, self._salt_for(canonical_email)))

    async def verify(self, forms: Sequence[str], password_hash: str | None) -> Verdict:
        """See `application.ports.PasswordChecker.verify`."""
        known = None if password_hash is None else parse_hash(password_hash)
        if known is None or known.parameters == _ours():
            return await self._done(self._checks, partial(_verified, forms, known))
        return await self._done(self._others, partial(_verified, forms, known))

    async def _done(self, queue: _Queue, work: Callable[[], T]) -> T:
        if self._closed:
            raise Unavailable("password hashing is shutting down")
        if queue.under_way - self._workers >= MAX_WAITING:
            raise Overloaded(f"too many {queue.name} are waiting to be hashed")
        loop = asyncio.get_running_loop()
        asked = _Asked(work, loop.create_future(), queue)
        queue.under_way += 1
        queue.waits.append(asked)
        self._start(loop)
        crash_point("api.hashing")
        return await asked.answer  # type: ignore[no-any-return]  # what `work` returns

    def close(self) -> None:
        """What waits is cancelled; what is being hashed is seen through."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._taking:
            for queue in self._queues:
                while queue.waits:
                    queue.waits.popleft().answer.cancel()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set one more thread to work, if there is one. If the system has none to give, the others go on alone, and the
        next request tries again; where there are no others, what waits is refused."""
        if self._working >= self._workers:
            return
        turn = Lock()
        self._working += 1
        try:
            self._pool.submit(self._work, loop, turn)
            self._too_few = False
        except RuntimeError as error:
            # The pool has it all the same, for a thread that comes back or is started later.
            if not turn.acquire(blocking=False):
                return
            self._working -= 1
            if not self._too_few:
                log.warning("passwords.thread_not_started", error=str(error), hint=_NO_THREAD)
            self._too_few = True
            if not self._working:
                self._refuse_all()

    def _refuse_all(self) -> None:
        with self._taking:
            waiting = [asked for queue in self._queues for asked in queue.waits]
            for queue in self._queues:
                queue.waits.clear()
        for asked in waiting:
            self._settle([(asked, Unavailable("no thread can be started to hash a password"))])

    def _work(self, loop: asyncio.AbstractEventLoop, turn: Lock) -> None:
        """In a thread: hash until nothing waits.

        Args:
            turn: whoever takes it, takes it for good: this thread to work, or who believes that it was not started.
        """
        if not turn.acquire(blocking=False):
            return
        with argon2id.memory_kept(MEMORY):
            while batch := self._next_batch():
                done = [(asked, _outcome(asked.work)) for asked in batch]
                with self._taking:
                    self._hashing -= 1
                    for asked in batch:
                        asked.queue.working -= 1
                if not _told(loop, self._settle, done):
                    return
        _told(loop, self._rest, loop)

    def _next_batch(self) -> list[_Asked]:
        """This thread's share of what waits, from one queue after the other. Who is hashing takes nothing now."""
        batch: list[_Asked] = []
        with self._taking:
            taking = self._working - self._hashing
            share = min(BATCH, -(-sum([len(queue.waits) for queue in self._queues]) // taking))
            while len(batch) < share:
                queue = next((one for one in self._in_turn if one.is_open), None)
                if queue is None or (batch and queue.at_once is not None):
                    break
                batch.append(queue.waits.popleft())
                queue.working += 1
                self._in_turn.remove(queue)
                self._in_turn.append(queue)
                if queue.at_once is not None:
                    break
            self._hashing += bool(batch)
        return batch

    def _settle(self, done: list[tuple[_Asked, Any]]) -> None:
        for asked, outcome in done:
            # Counted until now, even if the caller was cancelled earlier.
            asked.queue.under_way -= 1
            if asked.answer.done():
                continue
            if isinstance(outcome, Exception):
                asked.answer.set_exception(outcome)
            else:
                asked.answer.set_result(outcome)

    def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        self._working -= 1
        if any(queue.is_open for queue in self._queues):  # it came when the thread had just looked
            self._start(loop)


def _told(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: Any) -> bool:
    """Call it on the loop, unless that has ended and nobody waits any more."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:  # the loop is closed
        return False
    return True


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - raised again where it was asked for
        return error


def _hash(password: str, salt: bytes) -> str:
    digest = argon2id.fastest()(password.encode(), salt, passes=PASSES, memory=MEMORY)
    return f"$argon2id$v=19$m={MEMORY // 1024},t={PASSES},p=1${_unpadded(salt)}${_unpadded(digest)}"


def _ours() -> Parameters:
    """What `_hash` hashes with today."""
    return Parameters("argon2id", memory=MEMORY, passes=PASSES, lanes=1)


def _verified(forms: Sequence[str], known: PasswordHash | None) -> Verdict:
    """Each form is hashed, also where one has matched already, or nothing can: so the time says nothing of that."""
    if known is None:
        for form in forms:
            argon2id.fastest()(form.encode(), _NOBODYS_SALT, passes=PASSES, memory=MEMORY)
        return Verdict(matches=False, outdated=False)
    matches = [known.matches(form.encode()) for form in forms]
    return Verdict(matches=any(matches), outdated=known.parameters != _ours())


def _unpadded(data: bytes) -> str:
    return b64encode(data).decode().rstrip("=")
