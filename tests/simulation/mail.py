"""Secrets, letters, mail servers, mailboxes and the broker's line, in memory and by the seed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from random import Random
from typing import Any
from uuid import UUID

from application.commands import RecordEmailDispatchFailed
from application.mail_saga import UNTRIED
from application.ports import (
    CODE_GAP,
    Letter,
    MailRequest,
    MailServersAway,
    NotSent,
    Person,
    Rendered,
    Unavailable,
    WrappedKey,
)
from domain.mail_outcome import DispatchFailure, HandOver, MailFailure
from domain.recorded import Position
from infrastructure.crypto.keyring import Keyring
from tests.simulation.faults import Faults, Network, Windows, finish
from tests.simulation.virtual_time import Process

KEYRING = Keyring(master_key=b"m" * 32, root_secret=b"r" * 32)
"""The reference: what a code, a Message-ID or a claim's id has to be."""

SEND_TIMEOUT = 10.0
MESSAGE_TTL = 60.0
"""Seconds that a request waits in the broker's queue before it dies there."""


# --- Secrets ----------------------------------------------------------------------------------


class SimulatedSecrets(Keyring):
    """The real derivations; ids by the seed, and seals that cost nothing but still need their key."""

    def __init__(self, rng: Random) -> None:
        vars(self).update(vars(KEYRING))
        self._rng = rng

    def new_registration_id(self, now: datetime) -> UUID:
        value = (int(now.timestamp() * 1000) << 80) | self._rng.getrandbits(80)
        value = value & ~(0xF << 76) | (7 << 76)
        return UUID(int=value & ~(0b11 << 62) | (0b10 << 62))

    def seal(self, registration_id: UUID, person: Person) -> tuple[str, WrappedKey]:
        key = self._rng.getrandbits(64).to_bytes(8, "big")
        sealed = "\n".join((key.hex(), person.email, person.name, person.password_hash or ""))
        return sealed, WrappedKey(registration_id, key)

    def open(self, registration_id: UUID, sealed: str, wrapped: bytes) -> Person:
        key, email, name, password_hash = sealed.split("\n")
        if key != wrapped.hex():
            raise AssertionError("opened with a key that is not its own")
        return Person(email=email, name=name, password_hash=password_hash or None)


class SimulatedHasher:
    """Implements `application.ports.PasswordHasher`."""

    async def hash(self, password: str, canonical_email: str) -> str:
        await asyncio.sleep(0)
        return f"$argon2id${canonical_email} {password}"


class SimulatedLetters:
    """Implements `application.mail_delivery.Letters`: a code's mail is its code."""

    def code(self, *, to: str, locale: str, code: str, message_id: str, registration_id: UUID) -> Letter:
        return Letter(to, Rendered("code", CODE_GAP, ""), f"<{message_id}@sim.test>", locale, code, registration_id)

    def notice(self, *, to: str, locale: str, message_id: str) -> Letter:
        return Letter(to, Rendered("notice", "", ""), f"<{message_id}@sim.test>", locale)


# --- Mail -------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Attempt:
    """One worker's way with one request, from taking it up to knowing that the outcome is recorded.

    Attributes:
        copies: what mail servers accepted.
        ambiguous: somebody could not know what came of it: killed, frozen, an answer or the recording lost.
    """

    registration_id: UUID
    serial: int
    process: Process
    began: float
    began_at: Position
    copies: int = 0
    over: bool = False
    ambiguous: str | None = None


ATTEMPT: ContextVar[Attempt] = ContextVar("attempt")


@dataclass(frozen=True, slots=True)
class Copy:
    """A mail that a mail server took."""

    letter: Letter
    attempt: Attempt
    at: float


@dataclass(slots=True)
class Internet:
    """The mail servers of the world and the mailboxes behind them.

    Attributes:
        outages: nobody can connect.
        deferring: everybody is told to come back later.
        greylists: addresses whose server wants a second try five minutes after the first.
        unknown: addresses without a mailbox.
        on_copy: told every mail that was taken.
    """

    outages: Windows = field(default_factory=Windows)
    deferring: Windows = field(default_factory=Windows)
    greylists: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    first_seen: dict[str, float] = field(default_factory=dict)
    on_copy: Callable[[Copy], None] = lambda _: None


class SimulatedMailServers:
    """Implements `application.ports.MailServers` for one process: tries, waits and circuit as in `SmtpServers`."""

    def __init__(self, internet: Internet, network: Network, rng: Random, faults: Faults) -> None:
        self._internet = internet
        self._network = network
        self._rng = rng
        self._faults = faults
        self._failures = 0
        self._open_until = 0.0

    async def send(
        self, letter: Letter, *, until: float | None = None, on_content: Callable[[], None] = lambda: None
    ) -> HandOver:
        return await self._through(letter)

    async def probe(self, *, until: float | None = None) -> HandOver:
        return await self._through(None)

    async def _through(self, letter: Letter | None) -> HandOver:
        network = self._network
        for attempt in (1, 2, 3):
            if network.loop.now < self._open_until:
                raise MailServersAway("open", retry_after=self._open_until - network.loop.now)
            failure = await self._try(letter, attempt)
            if failure is None:
                self._failures = 0
                return HandOver("mx.sim.test:25", attempt, 250)
            if failure.failure.failure in {"timeout", "connection"}:
                self._failures += 1
                if self._failures >= 5:
                    self._open_until = network.loop.now + 30.0
            if failure.failure.permanent or failure.failure.outcome_unknown or attempt == 3:
                raise failure
            await network.pause(2.0**attempt + self._rng.random())
        raise AssertionError("unreachable")

    async def until_ready(self) -> None:
        while (seconds := self._open_until - self._network.loop.now) > 0:
            await self._network.pause(seconds)

    async def _try(self, letter: Letter | None, attempt: int) -> NotSent | None:
        def failed(
            failure: MailFailure, code: int | None = None, *, permanent: bool = False, unknown: bool = False
        ) -> NotSent:
            return NotSent(
                DispatchFailure(
                    failure,
                    permanent=permanent,
                    provider="mx.sim.test:25",
                    attempts=attempt,
                    reply_code=code,
                    outcome_unknown=unknown,
                )
            )

        internet, network, to = self._internet, self._network, "" if letter is None else letter.to.lower()
        await network.pause(self._rng.random() * 0.1)
        away = network.loop.now in internet.outages
        if away:
            self._faults.count("mail outage")
        if away or self._faults.hits("connection refused"):
            await network.pause(self._rng.choice((0.01, SEND_TIMEOUT - 0.2)))
            return failed("connection")
        if self._faults.hits("mail server slow"):
            await network.pause(self._rng.random() * 8.0)
        if to in internet.unknown:
            self._faults.count("unknown mailbox")
            return failed("mailbox-unknown", 550, permanent=True)
        if to in internet.greylists and not self._faults.healed:
            first = internet.first_seen.setdefault(to, network.loop.now)
            if network.loop.now < first + 300.0:
                self._faults.count("greylisted")
                return failed("greylisted", 451)
        if network.loop.now in internet.deferring or self._faults.hits("451"):
            return failed("temporary", 451)
        if self._faults.hits("554"):
            return failed("content", 554, permanent=True)
        if letter is None:
            return None
        given = ATTEMPT.get()
        if given.process.alive:
            given.copies += 1
        internet.on_copy(Copy(letter, given, network.loop.now))
        await network.pause(self._rng.random() * 0.1)
        if self._faults.hits("end of data unanswered"):
            given.ambiguous = "answer lost"
            await network.pause(self._rng.random() * 5.0)
            return failed("timeout", unknown=True)
        return None


def expired(request: MailRequest) -> RecordEmailDispatchFailed:
    """The failure of a request that waited too long in the broker, as the dead-letter consumer records it."""
    return RecordEmailDispatchFailed(
        registration_id=request.registration_id,
        serial=request.serial,
        kind=request.kind,
        failure=DispatchFailure(UNTRIED, permanent=False, provider="broker", attempts=0),
        request_position=request.position,
    )


@dataclass(slots=True)
class BrokerLine:
    """A broker's queue: only a wake-up line. It loses, doubles, delays and so reorders; what waits too long dies, and
    is taken as a dead letter; what a dead worker held comes again.

    Attributes:
        queue, held: requests, and whether they are dead letters.
    """

    network: Network
    rng: Random
    faults: Faults
    queue: deque[tuple[MailRequest, bool]] = field(default_factory=deque)
    held: dict[int, tuple[MailRequest, bool]] = field(default_factory=dict)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    numbers: Any = field(default_factory=count)

    async def publish(self, request: MailRequest) -> None:
        await self.network.travel()
        if self.faults.hits("publish refused"):
            raise Unavailable("the broker is away")
        if not self.faults.hits("message lost"):
            self._arrive(request)
        if self.faults.hits("message doubled"):
            self._arrive(request)
        await self.network.travel()
        if self.faults.hits("confirm lost"):
            raise Unavailable("the broker did not confirm")

    def _arrive(self, request: MailRequest) -> None:
        seconds = self.rng.random() * 0.01
        if self.faults.hits("message delayed"):
            seconds = self.rng.random() * 600.0
        # Half of what is delayed has waited for a worker, the rest elsewhere, from where it comes late and well.
        if seconds > 300.0:
            self.faults.count("message expired")
            self.network.loop.later(MESSAGE_TTL, self.put, request, True)
        else:
            self.network.loop.later(seconds, self.put, request, False)

    def put(self, request: MailRequest, is_dead: bool) -> None:
        self.queue.append((request, is_dead))
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            finish(future)

    async def take(self) -> tuple[int, MailRequest, bool]:
        """Answers a delivery's tag to acknowledge it by, the request, and whether it is a dead letter."""
        while not self.queue:
            future = self.network.loop.create_future()
            self.waiting.append(future)
            await future
        (request, is_dead), tag = self.queue.popleft(), next(self.numbers)
        self.held[tag] = request, is_dead
        await self.network.travel()
        return tag, request, is_dead

    def redeliver(self) -> None:
        """The worker's connection is gone: what it had not acknowledged comes again."""
        held, self.held = self.held, {}
        for request, is_dead in held.values():
            self.put(request, is_dead)
