"""Whole stories in memory: the real handlers, aggregates, keys and saga on a log in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from hashlib import blake2b
from uuid import UUID

from pydantic import SecretStr

from application.answers import Answer, Around
from application.commands import Command, ImportedUser, RegisterUser, VerifyEmail
from application.handlers import Handlers
from application.mail_saga import DeadlineReached, react
from application.ports import Context, Log, entries_of
from domain.email_claim import EmailClaim
from domain.errors import Refused
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import AnyEvent
from domain.registration import Registration
from infrastructure.crypto.keyring import Keyring
from tests.support.facts import CLIENT, MovableClock
from tests.support.memory_log import MemoryLog

KEYRING = Keyring(master_key=b"m" * 32, root_secret=b"r" * 32)
SAGA = replace(CLIENT, actor="mail-saga")
WORKER = replace(CLIENT, actor="mail-worker")
OPERATOR = replace(CLIENT, actor="operator")


PASSWORD = "correct horse battery"


class QuickHasher:
    """Keeps `PasswordHasher`'s promise (the same password and address: the same hash) without the 12 ms."""

    async def hash(self, password: str, canonical_email: str) -> str:
        return f"$argon2id${blake2b(f'{canonical_email} {password}'.encode(), digest_size=16).hexdigest()}"


def registers(
    email: str = "ada@example.com", *, name: str = "Ada", password: str | None = PASSWORD, key: str | None = None
) -> RegisterUser:
    """Somebody's request to register; `key`: with this Idempotency-Key."""
    return RegisterUser(
        email=email, name=name, password=None if password is None else SecretStr(password), idempotency_key=key
    )


def imported(
    email: str = "ada@example.com", *, verified: bool = True, password_hash: str | None = None
) -> ImportedUser:
    """A user of another system."""
    return ImportedUser(email=email, name="Ada", verified=verified, password_hash=password_hash)


def verifies(registration_id: UUID, code: str) -> VerifyEmail:
    return VerifyEmail(registration_id=registration_id, code=SecretStr(code))


def right_code(registration_id: UUID, serial: int = 1) -> str:
    return KEYRING.code(registration_id, serial)


def wrong_code(registration_id: UUID, serial: int = 1) -> str:
    return f"{(int(right_code(registration_id, serial)) + 1) % 1_000_000:06d}"


class InMemoryService:
    """The service without I/O. Events reach the saga when `follow` is called, deadlines when `look_again` is."""

    def __init__(
        self, *, log: MemoryLog | None = None, clock: MovableClock | None = None, reveal_duplicates: bool = False
    ) -> None:
        self.log = log or MemoryLog()
        self.clock = clock or MovableClock()
        self.policy = Policy()
        self.handlers = self.process(self.log, reveal_duplicates=reveal_duplicates)
        self.followed = 0
        self.refusals: list[str] = []

    def process(self, log: Log, *, reveal_duplicates: bool = False, around: Sequence[Around] = ()) -> Handlers:
        """The handlers of one more process on a log."""
        return Handlers(
            log=log,
            clock=self.clock,
            secrets=KEYRING,
            hasher=QuickHasher(),
            policy=self.policy,
            reveal_duplicates=reveal_duplicates,
            around=around,
        )

    async def handle(self, command: Command, context: Context = CLIENT) -> Answer:
        return await self.handlers.handle(command, context)

    async def registered(self, command: RegisterUser | None = None) -> UUID:
        return (await self.handle(command or registers())).subject_id

    async def active(self, command: RegisterUser | None = None) -> UUID:
        """An account, by the ordinary way."""
        registration_id = await self.registered(command)
        await self.handle(verifies(registration_id, right_code(registration_id)))
        await self.settle()
        return registration_id

    def registration(self, registration_id: UUID) -> Registration:
        return self.log.of(Registration, registration_id)

    def claim(self, email: str = "ada@example.com") -> EmailClaim:
        return self.log.of(EmailClaim, KEYRING.claim_id(email))

    async def claimed_at_once(self, registration_id: UUID) -> None:
        """As by release 0.1.0, which claimed an address as soon as it was registered."""
        claim_id = self.registration(registration_id).claim_id
        claim = EmailClaim.begin(claim_id=claim_id, registration_id=registration_id, now=self.clock())
        await self.log.append(entries_of(claim.collect_events(), CLIENT))

    def saga_of(self, registration_id: UUID) -> MailSaga:
        return self.log.of(MailSaga, MailSaga.stream_id(registration_id))

    # --- The saga's driver in a few lines: commands first, then the notes ---------------------------

    async def follow(self, *, crash: bool = False) -> None:
        """Show the saga what it has not seen yet; with `crash`, die before its notes are saved."""
        upto = len(self.log.events)
        for event in self.log.events[self.followed : upto]:
            if isinstance(event, Registration.Event):
                await self.tell(event, crash=crash)
        if not crash:
            self.followed = upto

    async def settle(self) -> None:
        """Follow until nothing new comes."""
        while self.followed < len(self.log.events):
            await self.follow()

    async def look_again(self, registration_id: UUID) -> None:
        await self.tell(DeadlineReached(registration_id))

    async def tell(self, happened: AnyEvent | DeadlineReached, *, crash: bool = False) -> None:
        registration_id = happened.registration_id if isinstance(happened, DeadlineReached) else happened.originator_id
        streams = await self.log.load(MailSaga.stream_id(registration_id))
        saga, commands = react(
            streams.get(MailSaga, MailSaga.stream_id(registration_id)), happened, self.clock(), self.policy
        )
        await self.run(commands)
        notes = [] if saga is None else saga.collect_events()
        if notes and not crash:
            await self.log.append(entries_of(notes, SAGA))

    async def run(self, commands: Sequence[Command]) -> None:
        for command in commands:
            try:
                await self.handlers.handle(command, SAGA)
            except Refused as refusal:
                self.refusals.append(refusal.code)
                return

    def move(self, by: timedelta) -> None:
        self.clock.move(by)
