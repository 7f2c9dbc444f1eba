"""Bugs to prove that the simulation finds bugs: each is put in the place of a piece of the real code, for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch
from uuid import UUID

from application import handlers, mail_saga
from application.answers import Answer
from application.commands import (
    ActivateAccount,
    Command,
    RecordEmailDispatched,
    RevokeOtp,
    VerifyEmail,
)
from application.handlers import Handlers
from application.keyed_requests import KeyedRequests
from application.loading import Loaded, address_at_a_glance
from application.mail_delivery import MailDelivery
from application.ports import (
    Checkpoint,
    Conflict,
    Context,
    Letter,
    MailRequest,
    MailServers,
    NotSent,
    SendClaim,
    Unavailable,
)
from domain import mailbox
from domain.email_claim import EmailClaim
from domain.errors import NotHandedOver, Refused
from domain.mail_outcome import Bounce, HandOver
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Position
from domain.registration import Registration
from domain.sign_up import KnownAddress
from infrastructure.event_store.reader import RecordedRow
from infrastructure.followers import process_manager
from infrastructure.followers.positions import save_position
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.relay import Relay
from tests.simulation.database import SimulatedClaims
from tests.simulation.mail import SimulatedSecrets
from tests.simulation.oracle import Violation
from tests.simulation.world import Parts


@dataclass(frozen=True, slots=True)
class Planted:
    """A bug.

    Attributes:
        within: how many seeds it may take to find it.
        invariant: the one by which it shows; another violation may come first, and does not count.
    """

    name: str
    plant: Callable[[], AbstractContextManager[Parts]]
    within: int
    invariant: str

    def shows(self, violation: Violation) -> bool:
        return str(violation).startswith(self.invariant)


PLANTED: list[Planted] = []


def planted(invariant: str, *, within: int) -> Callable[[Callable[[], Iterator[Parts]]], Callable[[], Iterator[Parts]]]:
    def register(plant: Callable[[], Iterator[Parts]]) -> Callable[[], Iterator[Parts]]:
        PLANTED.append(Planted(plant.__name__.replace("_", " "), contextmanager(plant), within, invariant))
        return plant

    return register


# --- The saga ---------------------------------------------------------------------------------


@planted("I4", within=20)
def dropped_second_look() -> Iterator[Parts]:
    """A mail that nothing was heard of is not asked for again; retries after failures are."""
    real = mail_saga._try_again

    def try_again(saga: MailSaga, now: datetime, policy: Policy) -> list[Command]:
        return real(saga, now, policy) if saga.retry_due else []

    with patch.object(mail_saga, "_try_again", try_again):
        yield Parts()


@planted("I4", within=20)
def dropped_retry() -> Iterator[Parts]:
    """A mail that failed for now is not tried again."""
    real = mail_saga._try_again

    def try_again(saga: MailSaga, now: datetime, policy: Policy) -> list[Command]:
        return [] if saga.retry_due else real(saga, now, policy)

    with patch.object(mail_saga, "_try_again", try_again):
        yield Parts()


@planted("I4", within=20)
def retries_without_an_end() -> Iterator[Parts]:
    """The registration's end is forgotten while a mail is still to be sent."""
    real = mail_saga._look_again

    def look_again(saga: MailSaga, now: datetime, policy: Policy) -> list[Command]:
        if saga.undoing is None and now >= saga.ends_at:
            return mail_saga._try_again(saga, now, policy)
        return real(saga, now, policy)

    with patch.object(mail_saga, "_look_again", look_again):
        yield Parts()


@planted("claims", within=150)
def address_never_released() -> Iterator[Parts]:
    with patch.object(EmailClaim, "release", lambda self, *, registration_id, now: None):
        yield Parts()


@planted("I4", within=20)
def ended_before_the_activation_is_recorded() -> Iterator[Parts]:
    """The saga ends with the proof and saves that, and only then activates the account."""
    real = mail_saga.react

    def react(saga: MailSaga | None, happened: Any, now: datetime, policy: Policy) -> Any:
        saga, commands = real(saga, happened, now, policy)
        if saga is not None and any(isinstance(command, ActivateAccount) for command in commands):
            saga.end(outcome="active", now=now)
            return saga, []
        return saga, commands

    with patch.object(process_manager, "react", react):
        yield Parts()


@planted("I4", within=150)
def unresumed_compensation() -> Iterator[Parts]:
    """Undoing is tried once; a step that was cut off is not done again."""
    real = ProcessManager._run

    async def run(self: ProcessManager, commands: Sequence[Command], context: Context) -> None:
        try:
            await real(self, commands, context)
        except Unavailable:
            if not isinstance(commands[0], RevokeOtp):
                raise

    def look_again(saga: MailSaga, now: datetime, policy: Policy) -> list[Command]:
        return [] if saga.undoing is not None else real_look(saga, now, policy)

    real_look = mail_saga._look_again
    with patch.object(ProcessManager, "_run", run), patch.object(mail_saga, "_look_again", look_again):
        yield Parts()


# --- Its driver and the relay -----------------------------------------------------------------


@planted("I4", within=50)
def position_saved_before_the_commands_ran() -> Iterator[Parts]:
    class Hasty(ProcessManager):
        async def _follow(self, session: Any, rows: Sequence[RecordedRow], position: Position, seen: Position) -> None:
            async with session.turn() as connection:
                await save_position(connection, self.name, position, seen)
            stories: dict[UUID, Any] = {}
            for row in rows:
                story = stories.setdefault(row.stream_id, process_manager._Inbox(row.stream_id))
                story.add(row, self._tail.decode(row))
            if notes := await self._process(session, stories):
                await self._store.append(notes)

    yield Parts(manager=Hasty)


@planted("I4", within=50)
def notes_saved_apart_from_the_position() -> Iterator[Parts]:
    """The position goes first, in a commit of its own."""

    class Apart(ProcessManager):
        async def _follow(self, session: Any, rows: Sequence[RecordedRow], position: Position, seen: Position) -> None:
            store = self._store

            class Torn:
                def __getattr__(self, name: str) -> Any:
                    return getattr(store, name)

                async def append(self, events: Any, *, moved: Checkpoint | None = None) -> Position:
                    if moved is not None:
                        async with session.turn() as connection:
                            await save_position(connection, moved.name, moved.since, moved.to)
                    return await store.append(events)

            self._store = Torn()  # type: ignore[assignment]
            try:
                await super()._follow(session, rows, position, seen)
            finally:
                self._store = store

    yield Parts(manager=Apart)


@planted("I9", within=50)
def outcome_not_recorded_before_the_position_moves() -> Iterator[Parts]:
    """The relay counts a mail as safe when its sending has begun."""

    class Forward(Relay):
        def __init__(self, *, hand_over: Any, **parts: Any) -> None:
            under_way = set()

            async def begin(request: MailRequest) -> None:
                task = asyncio.get_running_loop().create_task(quietly(request))
                under_way.add(task)

            async def quietly(request: MailRequest) -> None:
                with suppress(Unavailable):
                    await hand_over(request)

            super().__init__(hand_over=begin, **parts)

    yield Parts(relay=Forward)


# --- The delivery -----------------------------------------------------------------------------


@planted("I5", within=50)
def missing_still_wanted_check() -> Iterator[Parts]:
    with patch.object(Registration, "wants_mail", lambda self, serial: True):
        yield Parts()


@planted("I5", within=100)
def claim_to_send_not_taken() -> Iterator[Parts]:
    class Generous(SimulatedClaims):
        async def acquire(self, registration_id: UUID, serial: int) -> SendClaim | None:
            return self.database.claim(registration_id)

    yield Parts(claims=Generous)


@planted("I5", within=150)
def hand_over_not_recorded() -> Iterator[Parts]:
    """A database that is away while the hand-over is recorded is shrugged off."""

    class Careless(MailDelivery):
        async def _record(self, outcome: Command, request: MailRequest, read: Loaded) -> None:
            with suppress(Unavailable):
                await self._handlers.handle(outcome, Context("mail-worker", request.correlation_id))

    yield Parts(delivery=Careless)


@planted("I5", within=100)
def hand_over_recorded_on_what_is_used_up() -> Iterator[Parts]:
    """After an append that failed the same aggregate is taken again, which has nothing more to record."""

    class Thrifty(MailDelivery):
        async def _record(self, outcome: Command, request: MailRequest, read: Loaded) -> None:
            if not isinstance(outcome, RecordEmailDispatched):
                await super()._record(outcome, request, read)
                return
            context, recorded = Context("mail-worker", request.correlation_id), False
            while not recorded:
                with suppress(Unavailable, Conflict):
                    await self._handlers.handle(outcome, context, read=read)
                    recorded = True
                await self._sleep(1 - recorded)

    yield Parts(delivery=Thrifty)


@planted("I4", within=50)
def unknown_outcome_taken_for_a_hand_over() -> Iterator[Parts]:
    """What failed is recorded as handed over."""

    class Rosy:
        def __init__(self, servers: MailServers) -> None:
            self._servers = servers

        def __getattr__(self, name: str) -> Any:
            return getattr(self._servers, name)

        async def send(
            self, letter: Letter, *, until: float | None = None, on_content: Callable[[], None] = lambda: None
        ) -> HandOver:
            try:
                return await self._servers.send(letter, until=until, on_content=on_content)
            except NotSent as error:
                return HandOver(error.failure.provider, error.failure.attempts, 250)

    class Hopeful(MailDelivery):
        def __init__(self, *, servers: MailServers, **parts: Any) -> None:
            super().__init__(servers=cast("MailServers", Rosy(servers)), **parts)

    yield Parts(delivery=Hopeful)


@planted("I5", within=50)
def notices_without_a_limit() -> Iterator[Parts]:
    with patch.object(Registration, "may_notify_owner", lambda self, now, policy: True):
        yield Parts()


# --- Codes ------------------------------------------------------------------------------------


@planted("I6", within=20)
def same_code_after_a_resend() -> Iterator[Parts]:
    class Same(SimulatedSecrets):
        def code(self, registration_id: UUID, serial: int) -> str:
            return super().code(registration_id, 1)

    yield Parts(secrets=Same)


@planted("I6", within=20)
def message_id_of_every_attempt_its_own() -> Iterator[Parts]:
    class Fresh(SimulatedSecrets):
        def message_id(self, registration_id: UUID, serial: int) -> str:
            return f"{self._rng.getrandbits(128):032x}"

    yield Parts(secrets=Fresh)


@planted("I7", within=50)
def wrong_guess_recorded_after_the_answer() -> Iterator[Parts]:
    class Eager(Handlers):
        async def _verify_email(self, command: VerifyEmail, context: Context) -> Answer:
            registration = (await self._log.load(command.registration_id)).get(Registration, command.registration_id)
            if registration is not None:
                refusal = registration.verify(
                    offered=command.code.get_secret_value(),
                    expected=self._secrets.code(registration.id, registration.serial),
                    now=self._clock(),
                    policy=self._policy,
                )
                if refusal is not None:
                    self._later = asyncio.get_running_loop().create_task(self._record(command, context))
                    raise refusal
            return await super()._verify_email(command, context)

        async def _record(self, command: VerifyEmail, context: Context) -> None:
            with suppress(Refused, Unavailable):
                await super()._verify_email(command, context)

    yield Parts(handlers=Eager)


@planted("I6", within=100)
def expired_code_accepted() -> Iterator[Parts]:
    real = Registration.verify

    def verify(self: Registration, *, offered: str, expected: str, now: datetime, policy: Policy) -> Refused | None:
        handed_over, self.handed_over_at = self.handed_over_at, {}
        try:
            return real(self, offered=offered, expected=expected, now=now, policy=policy)
        finally:
            self.handed_over_at = handed_over

    with patch.object(Registration, "verify", verify):
        yield Parts()


@planted("I7", within=50)
def guesses_not_counted_together() -> Iterator[Parts]:
    """The code is never locked."""
    real = Registration.trigger_event

    def trigger_event(self: Registration, event: type[Registration.Event], **fields: Any) -> None:
        if event is not Registration.CodeLocked:
            real(self, event, **fields)

    with patch.object(Registration, "trigger_event", trigger_event):
        yield Parts()


# --- Addresses --------------------------------------------------------------------------------


@planted("I3", within=20)
def proof_without_the_claim_of_the_address() -> Iterator[Parts]:
    with patch.object(KnownAddress, "given_to", lambda self, registration, now: ()):
        yield Parts()


@planted("I3", within=50)
def proof_of_an_address_that_another_has_proven() -> Iterator[Parts]:
    """Nor does a sign-up see that it has, or the other's code would match as little as a duplicate's."""

    def blind(*known: Any) -> tuple[None, tuple[UUID, ...]]:
        return None, address_at_a_glance(*known)[1]

    with patch.object(KnownAddress, "owner", None), patch.object(handlers, "address_at_a_glance", blind):
        yield Parts()


@planted("I5", within=20)
def mail_sent_past_the_mailboxes_budget() -> Iterator[Parts]:
    real = Registration.withholds_mail

    def withholds(self: Registration, serial: int) -> bool:
        return real(self, serial) and self.superseded_by is not None

    with patch.object(Registration, "withholds_mail", withholds):
        yield Parts()


@planted("I5", within=50)
def budget_of_a_mailbox_forgotten() -> Iterator[Parts]:
    with patch.object(mailbox, "_is_used_up", lambda granted, network, now, policy: False):
        yield Parts()


@planted("I6", within=100)
def mail_of_a_superseded_registration_sent() -> Iterator[Parts]:
    with patch.object(Registration, "withholds_mail", lambda self, serial: serial in self.withheld):
        yield Parts()


@planted("I15", within=150)
def kept_answers_never_looked_for() -> Iterator[Parts]:
    """Whoever repeats a request with its key is run again."""
    with patch.object(KeyedRequests, "told_in", lambda *_: None):
        yield Parts()


@planted("I1", within=50)
def lost_append_answered_as_done() -> Iterator[Parts]:
    """A lost append is taken for a success: what was said is not in the log."""

    class Deaf(Handlers):
        async def _save(self, *aggregates: Any, context: Context, **more: Any) -> Position | None:
            try:
                return await super()._save(*aggregates, context=context, **more)
            except Unavailable:
                return 1

    yield Parts(handlers=Deaf)


# --- Reports of bounces ---------------------------------------------------------------------------


@planted("bounces", within=60)
def complaint_that_silences_nobody() -> Iterator[Parts]:
    nobody = SimpleNamespace(collect_events=lambda: ())
    with patch.object(handlers, "silence", lambda *_: nobody):
        yield Parts()


@planted("what-if", within=60)
def bounce_that_nothing_follows_from() -> Iterator[Parts]:
    real = mail_saga.react

    def react(
        saga: MailSaga | None, event: Any, now: datetime, policy: Policy
    ) -> tuple[MailSaga | None, list[Command]]:
        if isinstance(event, Registration.EmailBounced):
            return saga, []
        return real(saga, event, now, policy)

    with patch.object(process_manager, "react", react):
        yield Parts()


@planted("bounces", within=60)
def bounce_before_its_hand_over() -> Iterator[Parts]:
    real = Registration.record_bounced

    def record_bounced(self: Registration, *, serial: int, bounce: Bounce, now: datetime) -> None:
        try:
            real(self, serial=serial, bounce=bounce, now=now)
        except NotHandedOver:
            self.trigger_event(
                Registration.EmailBounced, serial=serial, kind=self.mail_kind, **asdict(bounce), timestamp=now
            )

    with patch.object(Registration, "record_bounced", record_bounced):
        yield Parts()
