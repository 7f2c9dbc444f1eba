"""Who uses the service: registrants, some of them at other people's addresses, and operators."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeVar
from uuid import UUID

from pydantic import SecretStr

from application.addresses import canonical_address
from application.answers import Answer
from application.commands import (
    CancelRegistration,
    Command,
    DiscardMail,
    EraseRegistration,
    ImportedUser,
    ImportUsers,
    InviteUser,
    RegisterUser,
    RequestNewCode,
    RetryMail,
    VerifyEmail,
)
from application.handlers import Handlers
from application.ports import Conflict, Context, Unavailable
from domain.errors import Refused, WrongCode
from domain.mail_outcome import CancelReason
from tests.simulation.faults import Network
from tests.simulation.mail import KEYRING, Copy
from tests.simulation.oracle import Oracle

T = TypeVar("T", VerifyEmail, RequestNewCode)

Request = Callable[[Handlers], Awaitable[Answer]]


class AnswerLost(Exception):
    """The connection broke: whether anything was done is unknown."""


class Service(Protocol):
    """What a client sees of the API."""

    async def call(self, request: Request) -> Answer: ...


@dataclass(slots=True)
class Mailbox:
    """Where an address's mail arrives; those who may read it wait here."""

    mails: list[Copy] = field(default_factory=list)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


@dataclass(slots=True)
class People:
    """Everybody, and what they share."""

    service: Service
    network: Network
    rng: Random
    oracle: Oracle
    mailboxes: dict[str, Mailbox]
    note: Callable[[str], None]
    known: list[UUID] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)

    def deliver(self, copy: Copy) -> None:
        """A mail server took a mail."""
        mailbox = self.mailboxes.setdefault(copy.letter.to.lower(), Mailbox())
        mailbox.mails.append(copy)
        waiting, mailbox.waiting = mailbox.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def ask(self, actor: str, command: Command, *, tries: int = 1) -> Answer | None:
        """Send a command, again if that makes sense; None: refused, or nobody knows."""
        context = Context(actor, UUID(int=self.rng.getrandbits(128)))

        async def request(handlers: Handlers) -> Answer:
            return await handlers.handle(command, context)

        for _ in range(tries):
            if isinstance(command, VerifyEmail):
                self.oracle.offered.setdefault(command.registration_id, set()).add(command.code.get_secret_value())
            try:
                answer = await self.service.call(request)
            except WrongCode as refusal:
                assert isinstance(command, VerifyEmail)
                self.note(f"{type(command).__name__} -> {type(refusal).__name__}")
                if self._is_news(command, f"{refusal.attempts_left} tries left"):
                    self.oracle.on_wrong_code(command.registration_id)
                return None
            except Refused as refusal:
                self.note(f"{type(command).__name__} -> {type(refusal).__name__}")
                return None
            except (Unavailable, Conflict, AnswerLost) as error:
                self.note(f"{type(command).__name__} -> {type(error).__name__}")
                await self.network.pause(1.0 + self.rng.random() * 20.0)
                continue
            if not isinstance(command, ImportUsers | InviteUser):
                self.oracle.on_answer(answer.subject_id)
            self._is_news(command, f"{answer.subject_id} {answer.status} at {answer.position}")
            self.note(f"{type(command).__name__} -> {self.oracle.name(answer.subject_id)} {answer.status}")
            return answer
        return None

    def _is_news(self, command: Command, told: str) -> bool:
        """Was this not told before of a request with the same key? Of one that was, something else must not be."""
        key = getattr(command, "idempotency_key", None)
        if key is None:
            return True
        request = f"{type(command).__name__} {key}"
        before = self.told.setdefault(request, told)
        if before != told:
            self.oracle.violated("I15", f"{request} was told {before}, and then {told}")
        return before is told

    def _keyed(self, command: T) -> T:
        """Most have a key, by which they are repeated."""
        key = f"key {self.rng.getrandbits(64):016x}" if self.rng.random() < 0.6 else None
        return command.model_copy(update={"idempotency_key": key})

    # --- Registrants --------------------------------------------------------------------------

    async def registrant(self, *, start: float, email: str, name: str, reads_mail: bool, until: float) -> None:
        """One person's way: registers, perhaps several times, and does what people do."""
        rng, network = self.rng, self.network
        await network.pause(start)
        password = rng.choice((None, None, "correct horse battery"))
        command = RegisterUser(
            email=email,
            name=name,
            password=None if password is None else SecretStr(password),
            idempotency_key=f"key of {name} at {email}" if rng.random() < 0.6 else None,
            network=f"192.0.2.{rng.randrange(3)}",
        )
        answer = await self.ask("client", command, tries=5)
        while rng.random() < 0.3:
            await network.pause(rng.choice((0.0, 5.0, 600.0, 7200.0, 100_000.0)) * rng.random())
            if network.loop.now > until:
                break
            again = await self.ask("client", command, tries=2)
            answer = again or answer
        if answer is None:
            return
        registration_id = answer.subject_id
        self.known.append(registration_id)
        if reads_mail:
            await self._owner(registration_id, email, until)
        else:
            await self._squatter(registration_id, until)

    async def _owner(self, registration_id: UUID, email: str, until: float) -> None:
        rng, network = self.rng, self.network
        plan = rng.choices(("prompt", "slow", "late", "never", "resend", "guess"), (6, 3, 1, 2, 4, 4))[0]
        if plan == "never":
            return
        if plan == "resend":
            for _ in range(rng.randint(1, 3)):
                await network.pause(61.0 + rng.random() * 400.0)
                if network.loop.now > until:
                    break
                await self.ask("client", self._keyed(RequestNewCode(registration_id=registration_id)), tries=2)
        if plan == "guess":
            await self._guess(registration_id, rng.randint(1, 7))
        mailbox = self.mailboxes.setdefault(email.lower(), Mailbox())
        read = 0
        for _ in range(12):
            while len(mailbox.mails) <= read:
                future = network.loop.create_future()
                mailbox.waiting.append(future)
                await future
            wait = {"late": 900.0, "slow": 580.0}.get(plan, 60.0)
            await network.pause(2.0 + rng.random() * wait)
            # People take the latest mail, or the first one that they find.
            mail = rng.choice((mailbox.mails[-1], mailbox.mails[read]))
            read = len(mailbox.mails)
            if mail.letter.code is None:
                continue
            if await self._verify(registration_id, mail.letter.code):
                return
            if plan == "resend" and network.loop.now < until:
                await self.ask("client", RequestNewCode(registration_id=registration_id))

    async def _verify(self, registration_id: UUID, code: str) -> bool:
        command = self._keyed(VerifyEmail(registration_id=registration_id, code=SecretStr(code)))
        if self.rng.random() < 0.15:  # a double click
            answers = await asyncio.gather(self.ask("client", command), self.ask("client", command))
            answer = answers[0] or answers[1]
        else:
            answer = await self.ask("client", command, tries=self.rng.choice((1, 4)))
        if answer is None:
            return False
        self.oracle.on_proven(registration_id)
        return True

    async def _guess(self, registration_id: UUID, number: int) -> None:
        """Wrong codes, one after the other or all at once."""
        right = {KEYRING.code(registration_id, serial) for serial in range(1, 9)}
        codes = [code for code in (f"{self.rng.randrange(1_000_000):06d}" for _ in range(number)) if code not in right]
        guesses = [self._keyed(VerifyEmail(registration_id=registration_id, code=SecretStr(code))) for code in codes]
        if self.rng.random() < 0.5:
            await asyncio.gather(*(self.ask("client", guess) for guess in guesses))
        else:
            for guess in guesses:
                await self.ask("client", guess, tries=2)

    async def _squatter(self, registration_id: UUID, until: float) -> None:
        rounds = self.rng.choice((0, 1, 2, 3, 6))
        for _ in range(rounds):
            await self._guess(registration_id, self.rng.randint(1, 8) if rounds < 6 else 8)
            await self.network.pause(61.0 + self.rng.random() * 300.0)
            if self.network.loop.now > until:
                return
            await self.ask("client", self._keyed(RequestNewCode(registration_id=registration_id)), tries=2)

    # --- Operators ----------------------------------------------------------------------------

    async def operator(self, *, start: float) -> None:
        """Does one thing to one registration."""
        await self.network.pause(start)
        if not self.known:
            return
        registration_id = self.rng.choice(self.known)
        kind = self.rng.choices(("retry", "discard", "cancel", "erase"), (4, 6, 1, 2))[0]
        command: Command = {
            "retry": RetryMail(registration_id=registration_id),
            "discard": DiscardMail(registration_id=registration_id),
            "cancel": CancelRegistration(registration_id=registration_id, reason=CancelReason.OPERATOR),
            "erase": EraseRegistration(registration_id=registration_id),
        }[kind]
        await self.ask("operator", command, tries=self.rng.choice((1, 2)))

    async def importer(self, *, start: float, emails: Sequence[str], until: float) -> None:
        """Takes people over from another system, again and again, and invites those who are not verified."""
        rng, network = self.rng, self.network
        await network.pause(start)
        users = tuple(ImportedUser(email=email, name="Owner", verified=rng.random() < 0.5) for email in emails)
        run = UUID(int=rng.getrandbits(128))
        for _ in range(rng.choice((1, 2))):
            await self.ask("operator", ImportUsers(import_id=run, users=users), tries=5)
        for user in users:
            registration_id = KEYRING.imported_id(KEYRING.claim_id(canonical_address(user.email)))
            if registration_id not in self.oracle.seen:
                continue
            self.known.append(registration_id)
            await network.pause(rng.choice((0.0, 600.0)) * rng.random())
            if not user.verified and rng.random() < 0.8 and network.loop.now < until:
                await self.ask("operator", InviteUser(import_id=run, user=user), tries=3)
                if self.oracle.seen[registration_id].serial:
                    await self._owner(registration_id, user.email, until)
