"""One handler per command: load, call one aggregate method, append. `Handlers` is the table of contents."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from eventsourcing.domain import Aggregate

from application.addresses import canonical_address
from application.commands import (
    ActivateAccount,
    CancelRegistration,
    Command,
    DiscardMail,
    DiscardStrayMessage,
    EraseRegistration,
    KeepStrayMessage,
    RecordEmailDispatched,
    RecordEmailDispatchFailed,
    RegisterUser,
    ReleaseEmail,
    ReplaceStaleCode,
    RequestNewCode,
    RetryMail,
    RevokeOtp,
    VerifyEmail,
    WithholdEmail,
)
from application.crash_points import crash_point
from application.passwords import parse_password
from application.ports import (
    A,
    Clock,
    Conflict,
    Context,
    ForeignRequest,
    Log,
    OtherKind,
    PasswordHasher,
    Person,
    Secrets,
    Streams,
    WrappedKey,
    entries_of,
)
from domain.email_claim import EmailClaim
from domain.errors import Refused, UnknownRegistration
from domain.recorded import Position
from domain.registration import Policy, Registration, Status
from domain.sign_up import Seat, sign_up
from domain.stray_message import StrayMessage

T = TypeVar("T")

CONFLICT_RETRIES = 3
"""How often a command that lost a race is decided anew before the caller is told (docs/house-style.md, rule 9)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command led to.

    Attributes:
        registration_id: the registration it was about.
        status: its status now.
        position: a read model at this position shows the effect.
    """

    registration_id: UUID
    status: Status
    position: Position


class Turns:
    """Lets commands about one thing go one after the other within this process.

    Only a courtesy: the store's versions keep order across processes. But a hundred callers who push the same button
    here would otherwise spend their retries against each other.
    """

    def __init__(self) -> None:
        self._queues: dict[UUID, deque[asyncio.Future[None]]] = {}

    async def of(self, key: UUID, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work when nobody else here is at work on the same."""
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque()
        else:
            turn = asyncio.get_running_loop().create_future()
            queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was given to us while we were called off
                    self._give_on(key)
                raise
        try:
            return await work()
        finally:
            self._give_on(key)

    def _give_on(self, key: UUID) -> None:
        queue = self._queues[key]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._queues[key]


class Handlers:
    """Runs commands. Every one of them may be repeated: an effect that holds already is not recorded again.

    Raises (all of them):
        Refused: a rule says no; a final answer.
        Conflict: lost the race several times over; worth a repeat.
        Unavailable, Overloaded: worth a repeat later; the outcome may be unknown.
    """

    def __init__(
        self,
        *,
        log: Log,
        clock: Clock,
        secrets: Secrets,
        hasher: PasswordHasher,
        policy: Policy,
        reveal_duplicates: bool = False,
    ) -> None:
        self._log = log
        self._clock = clock
        self._secrets = secrets
        self._hasher = hasher
        self._policy = policy
        self._reveal_duplicates = reveal_duplicates
        self._turns = Turns()
        self._table: dict[type[Command], Callable[[Any, Context], Awaitable[Answer]]] = {
            RegisterUser: self.register_user,
            VerifyEmail: self.verify_email,
            RequestNewCode: self.request_new_code,
            RecordEmailDispatched: self.record_email_dispatched,
            RecordEmailDispatchFailed: self.record_email_dispatch_failed,
            WithholdEmail: self.withhold_email,
            ReplaceStaleCode: self.replace_stale_code,
            ActivateAccount: self.activate_account,
            RevokeOtp: self.revoke_otp,
            CancelRegistration: self.cancel_registration,
            ReleaseEmail: self.release_email,
            EraseRegistration: self.erase_registration,
            RetryMail: self.retry_mail,
            DiscardMail: self.discard_mail,
            KeepStrayMessage: self.keep_stray_message,
            DiscardStrayMessage: self.discard_stray_message,
        }

    async def handle(self, command: Command, context: Context) -> Answer:
        """Run any command."""
        return await self._table[type(command)](command, context)

    # --- The registrant -----------------------------------------------------------------------

    async def register_user(
        self, command: RegisterUser, context: Context, *, idempotency_key: str | None = None
    ) -> Answer:
        """Begin a registration: one read and one append, whether the address is new, pending or taken.

        With an Idempotency-Key the id follows from address and key, so a repeat after any crash meets itself.
        """
        secrets = self._secrets
        address = canonical_address(command.email)
        password_hash = None
        if command.password is not None:
            password = parse_password(command.password.get_secret_value())
            password_hash = await self._hasher.hash(password, address)
        # The hash in place of the password: a fast hash of the password itself must not stand in the log.
        fingerprint = secrets.fingerprint(command.email, command.name, password_hash or "", command.locale)
        person = Person(email=command.email, name=command.name, password_hash=password_hash)
        claim_id = secrets.claim_id(address)
        duplicates_id = secrets.claim_id(address, duplicate=True)
        repeatable_id = secrets.registration_id_for(address, idempotency_key) if idempotency_key else None

        async def decide() -> Answer:
            streams = await self._log.load(
                *((repeatable_id,) if repeatable_id else ()), holders_of=(claim_id, duplicates_id)
            )
            now = self._clock()
            earlier = streams.get(Registration, repeatable_id) if repeatable_id else None
            # A key whose day is over names a stream that has begun: what comes now needs another.
            fresh = repeatable_id if earlier is None else None
            registration_id = fresh or secrets.new_registration_id(now)
            sealed, key = secrets.seal(registration_id, person)
            outcome = sign_up(
                address=_seat(streams, claim_id),
                duplicates=_seat(streams, duplicates_id),
                earlier=earlier,
                registration_id=registration_id,
                fingerprint=fingerprint,
                personal_data=sealed,
                locale=command.locale,
                now=now,
                reveal_duplicates=self._reveal_duplicates,
            )
            registration = outcome.registration
            crash_point("api.before_append")
            position = await self._save(*outcome.changed, context=context, keys=(key,) if outcome.changed else ())
            crash_point("api.after_commit")
            return Answer(registration.id, Status.PENDING, position or streams.position(registration.id))

        return await self._in_turn(claim_id, decide)

    async def verify_email(self, command: VerifyEmail, context: Context) -> Answer:
        """Accept the proof. A wrong try is recorded before it is answered."""
        refusals: list[Refused | None] = [None]

        def verify(registration: Registration) -> None:
            refusals[:] = [
                registration.verify(
                    offered=command.code.get_secret_value(),
                    expected=self._secrets.code(registration.id, registration.serial),
                    now=self._clock(),
                    policy=self._policy,
                )
            ]

        answer = await self._change(command.registration_id, context, verify)
        if refusals[0] is not None:
            raise refusals[0]
        return answer

    async def request_new_code(self, command: RequestNewCode, context: Context) -> Answer:
        return await self._change(
            command.registration_id, context, lambda r: r.request_new_code(now=self._clock(), policy=self._policy)
        )

    # --- The mail worker ----------------------------------------------------------------------

    async def record_email_dispatched(
        self, command: RecordEmailDispatched, context: Context, *, read: Registration | None = None
    ) -> Answer:
        """Record the hand-over; for a notice, on the owner's stream too, in the same commit.

        Args:
            read: the registration as the caller has read it, which spares reading it again; ours from now on. If
                somebody has written to it since, the append tells, and it is read after all.
        """
        known = [read] if read is not None else []

        async def decide() -> Answer:
            registration = known.pop() if known else await self._load(command.registration_id)
            owner = None
            if registration.duplicate_of is not None:
                owner_streams = await self._log.load(registration.duplicate_of)
                owner = owner_streams.get(Registration, registration.duplicate_of)
            before = registration.version
            registration.record_dispatched(now=self._clock(), **command.model_dump(exclude={"registration_id"}))
            if owner is not None and registration.version > before:
                owner.record_owner_notified(duplicate_id=registration.id, now=self._clock())
            position = await self._save(registration, *((owner,) if owner else ()), context=context)
            if not position:  # it was recorded already
                position = (await self._log.load(registration.id)).position(registration.id)
            return Answer(registration.id, registration.status, position)

        return await self._in_turn(command.registration_id, decide)

    async def record_email_dispatch_failed(self, command: RecordEmailDispatchFailed, context: Context) -> Answer:
        """Record that a mail failed.

        Raises:
            ForeignRequest: the registration's mails are of another kind.
        """

        def fail(registration: Registration) -> None:
            must_be_of_kind(registration, command.kind)
            registration.record_dispatch_failed(
                now=self._clock(), **command.model_dump(exclude={"registration_id", "kind"})
            )

        return await self._change(command.registration_id, context, fail)

    async def withhold_email(self, command: WithholdEmail, context: Context) -> Answer:
        return await self._change(
            command.registration_id, context, lambda r: r.withhold_mail(serial=command.serial, now=self._clock())
        )

    # --- The consumer of dead letters ---------------------------------------------------------

    async def keep_stray_message(self, command: KeepStrayMessage, context: Context) -> Answer:
        message_id = StrayMessage.stream_id(command.digest)

        async def decide() -> Answer:
            streams = await self._log.load(message_id)
            if streams.get(StrayMessage, message_id) is not None:  # also one that was discarded: it was looked at
                return Answer(message_id, Status.PENDING, streams.position(message_id))
            described = command.model_dump(exclude={"fields"})
            message = StrayMessage.keep(now=self._clock(), fields=",".join(command.fields), **described)
            return Answer(message_id, Status.PENDING, await self._save(message, context=context))

        return await self._in_turn(message_id, decide)

    # --- The mail saga ------------------------------------------------------------------------

    async def replace_stale_code(self, command: ReplaceStaleCode, context: Context) -> Answer:
        return await self._change(
            command.registration_id, context, lambda r: r.replace_stale_code(serial=command.serial, now=self._clock())
        )

    async def activate_account(self, command: ActivateAccount, context: Context) -> Answer:
        return await self._change(command.registration_id, context, lambda r: r.activate(now=self._clock()))

    async def revoke_otp(self, command: RevokeOtp, context: Context) -> Answer:
        return await self._change(command.registration_id, context, lambda r: r.revoke_code(now=self._clock()))

    async def cancel_registration(self, command: CancelRegistration, context: Context) -> Answer:
        return await self._change(
            command.registration_id, context, lambda r: r.cancel(reason=command.reason, now=self._clock())
        )

    async def release_email(self, command: ReleaseEmail, context: Context) -> Answer:
        async def decide() -> Answer:
            streams = await self._log.load(command.claim_id)
            claim = streams.get(EmailClaim, command.claim_id)
            position = 0
            if claim is not None:
                claim.release(registration_id=command.registration_id, now=self._clock())
                position = await self._save(claim, context=context)
            return Answer(command.registration_id, Status.CANCELLED, position or streams.position(command.claim_id))

        return await self._in_turn(command.claim_id, decide)

    # --- The operator -------------------------------------------------------------------------

    async def erase_registration(self, command: EraseRegistration, context: Context) -> Answer:
        """End, free and destroy in one commit: no moment in which the key is gone and the event is not there."""

        async def decide() -> Answer:
            streams = await self._log.load(command.registration_id)
            registration = _found(streams, command.registration_id)
            claims = await self._log.load(registration.claim_id)
            claim = claims.get(EmailClaim, registration.claim_id)
            now = self._clock()
            registration.erase(now=now)
            if claim is not None:
                claim.release(registration_id=registration.id, now=now)
            position = await self._save(
                registration,
                *((claim,) if claim else ()),
                context=context,
                keys=(WrappedKey(registration.id, wrapped=None),),
            )
            return Answer(registration.id, registration.status, position or streams.position(registration.id))

        return await self._in_turn(command.registration_id, decide)

    async def retry_mail(self, command: RetryMail, context: Context) -> Answer:
        return await self._change(command.registration_id, context, lambda r: r.retry_mail(now=self._clock()))

    async def discard_mail(self, command: DiscardMail, context: Context) -> Answer:
        return await self._change(command.registration_id, context, lambda r: r.discard_mail(now=self._clock()))

    async def discard_stray_message(self, command: DiscardStrayMessage, context: Context) -> Answer:
        async def decide() -> Answer:
            streams = await self._log.load(command.message_id)
            message = existing(StrayMessage, streams, command.message_id)
            message.discard(now=self._clock())
            position = await self._save(message, context=context)
            return Answer(command.message_id, Status.CANCELLED, position or streams.position(command.message_id))

        return await self._in_turn(command.message_id, decide)

    # --- The three moves ----------------------------------------------------------------------

    async def _load(self, registration_id: UUID) -> Registration:
        return _found(await self._log.load(registration_id), registration_id)

    async def _change(self, registration_id: UUID, context: Context, change: Callable[[Registration], None]) -> Answer:
        """Load a registration, change it, append."""

        async def decide() -> Answer:
            streams = await self._log.load(registration_id)
            registration = _found(streams, registration_id)
            change(registration)
            position = await self._save(registration, context=context)
            return Answer(registration.id, registration.status, position or streams.position(registration.id))

        return await self._in_turn(registration_id, decide)

    async def _save(self, *aggregates: Aggregate, context: Context, keys: tuple[WrappedKey, ...] = ()) -> Position:
        """Append what the aggregates recorded; 0 if that is nothing."""
        events = [event for aggregate in aggregates for event in aggregate.collect_events()]
        return await self._log.append(entries_of(events, context), keys=keys) if events else 0

    async def _in_turn(self, key: UUID, decide: Callable[[], Awaitable[Answer]]) -> Answer:
        async def insist() -> Answer:
            for _ in range(CONFLICT_RETRIES):
                try:
                    return await decide()
                except Conflict:
                    continue
            return await decide()

        return await self._turns.of(key, insist)


def _found(streams: Streams, registration_id: UUID) -> Registration:
    return existing(Registration, streams, registration_id)


def existing(kind: type[A], streams: Streams, stream_id: UUID) -> A:
    """The aggregate of this stream.

    Raises:
        UnknownRegistration: it is empty, or of another kind: an id of something else is as unknown as one of nothing.
    """
    with suppress(OtherKind):
        aggregate = streams.get(kind, stream_id)
        if aggregate is not None:
            return aggregate
    raise UnknownRegistration


def must_be_of_kind(registration: Registration, kind: str) -> None:
    """Check what a request says of the mail that it asks for.

    Raises:
        ForeignRequest: this registration's mails are of another kind.
    """
    if kind != registration.mail_kind:
        raise ForeignRequest


def _seat(streams: Streams, claim_id: UUID) -> Seat:
    claim = streams.get(EmailClaim, claim_id)
    holder = streams.get(Registration, claim.holder) if claim is not None and claim.holder is not None else None
    return Seat(claim_id, claim, holder)
