"""Sending one requested mail: check that it is still wanted, render it, hand it over, record the outcome."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Protocol
from uuid import UUID

from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from application.answers import Answer
from application.commands import Command, RecordEmailDispatched, RecordEmailDispatchFailed, WithholdEmail
from application.crash_points import crash_point
from application.handlers import Handlers
from application.loading import Loaded, loaded, must_be_of_kind
from application.ports import (
    Clock,
    Context,
    Letter,
    MailRequest,
    MailServers,
    NotSent,
    Secrets,
    SendClaim,
    SendClaims,
    Unavailable,
)
from application.retrying import with_retries
from domain.mail_outcome import HandOver
from domain.policy import Policy
from domain.recorded import Actor
from domain.registration import Registration
from domain.synthetic import is_synthetic

NOTICE_SERIAL = 0
"""The serial of the send claim for a notice to an account's owner; issues count from 1."""


ERASED_WITHIN = timedelta(seconds=1)
"""How long a letter is held without asking whether its person was erased; then it is asked again and again."""


class Letters(Protocol):
    """Renders mails; none of their text comes from a registrant."""

    def code(self, *, to: str, locale: str, code: str, message_id: str, registration_id: UUID) -> Letter: ...

    def notice(self, *, to: str, locale: str, message_id: str) -> Letter: ...


class SyntheticMails(Protocol):
    """Where the mails of synthetic registrations go."""

    async def send(
        self,
        registration_id: UUID,
        letter: Letter,
        *,
        until: float | None = None,
        on_content: Callable[[], None] = lambda: None,
    ) -> HandOver:
        """Let the probe have the letter, and fail where it would fail now at the mail servers; otherwise as
        `application.ports.MailServers.send`."""
        ...


class SendInProgress(Unavailable):
    """Another worker may be sending this mail right now; try again after its lease has ended."""


class MailDelivery:
    """Delivers requested mails. Used by the in-process relay and by the worker of a broker's queue alike."""

    def __init__(
        self,
        *,
        handlers: Handlers,
        secrets: Secrets,
        claims: SendClaims,
        servers: MailServers,
        letters: Letters,
        clock: Clock,
        policy: Policy,
        retry_claimed_after: timedelta,
        give_up_after: timedelta | None = None,
        synthetic: SyntheticMails | None = None,
        return_path: Callable[[UUID, int], str] | None = None,
        on_first_mail: Callable[[timedelta], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            retry_claimed_after: when to try again a mail that another worker may be sending.
            give_up_after: deadline until a mail's content was sent, whatever that waits for; shorter than the lease of
                a send claim. A process that was suspended for longer must not continue: another worker may have sent
                the mail by then. While a server takes its time over the content, the claim is extended.
            return_path: makes the envelope's sender of an issue's mail; None: all have the same.
            on_first_mail: called with the time from a registration's first event until a mail server accepted its first
                mail; not of a synthetic one.
            synthetic: None where there are none.
            sleep: waits for a number of seconds.
        """
        self._handlers = handlers
        self._secrets = secrets
        self._claims = claims
        self._servers = servers
        self._letters = letters
        self._clock = clock
        self._policy = policy
        self._retry_claimed_after = retry_claimed_after
        self._give_up_after = None if give_up_after is None else give_up_after.total_seconds()
        self._synthetic = synthetic
        self._return_path = return_path
        self._on_first_mail = on_first_mail
        self._sleep = sleep
        self._took: deque[timedelta] = deque(maxlen=64)  # by the latest hand-overs

    async def deliver(self, request: MailRequest) -> None:
        """Send the mail if it is still wanted. Returns once the outcome is recorded; safe to repeat.

        Raises:
            SendInProgress: another worker may be sending it, or this one's claim has ended; try again later.
            MailServersAway: no server may be called now; this does not count as a try.
            Unavailable: the database cannot be reached.
            UnknownRegistration: the request belongs to another log, or to this one before a restore from a backup.
            ForeignRequest: the request is for another kind of mail than the registration's.
        """
        crash_point("worker.before_claim")
        # By the monotonic clock, which also runs while a process is suspended, and from before the lease began.
        until = None
        if self._give_up_after is not None:
            until = asyncio.get_running_loop().time() + self._give_up_after
        claim = await self._claims.acquire(request.registration_id, request.serial)
        if claim is None:
            raise SendInProgress(
                "another worker may be sending it", retry_after=self._retry_claimed_after.total_seconds()
            )
        crash_point("worker.after_claim")
        try:
            await self._deliver_claimed(request, claim, until)
        finally:
            await self._claims.release(request.registration_id, request.serial)

    async def _deliver_claimed(self, request: MailRequest, claim: SendClaim, until: float | None = None) -> None:
        # Read after the claim was had: what the previous holder recorded is seen, and so is an erasure.
        read = loaded(claim.streams, request.registration_id)
        registration = read.registration
        must_be_of_kind(registration, request.kind)
        if not registration.wants_mail(request.serial) or _was_tried(request, read):
            return
        if registration.withholds_mail(request.serial):
            await self._attempt(request, read, None, until)
            return
        if registration.duplicate_of is not None:
            await self._deliver_notice(request, read, registration.duplicate_of, until)
            return
        if claim.wrapped is None:
            return  # erased
        person = self._secrets.open(registration.id, registration.personal_data, claim.wrapped)
        letter = self._letters.code(
            to=person.email,
            locale=registration.locale,
            code=self._secrets.code(registration.id, request.serial),
            message_id=self._secrets.message_id(registration.id, request.serial),
            registration_id=registration.id,
        )
        await self._attempt(request, read, letter, until, (request.registration_id, request.serial))

    async def _deliver_notice(
        self, request: MailRequest, duplicate: Loaded, owner_id: UUID, until: float | None
    ) -> None:
        """Notify the owner, at the address as the owner registered it, at most once within the interval."""
        claim = await self._claims.acquire(owner_id, NOTICE_SERIAL)
        if claim is None:
            raise SendInProgress(
                "the owner is being notified right now", retry_after=self._retry_claimed_after.total_seconds()
            )
        try:
            owner = claim.streams.get(Registration, owner_id)
            if owner is None or claim.wrapped is None or not owner.may_notify_owner(self._clock(), self._policy):
                await self._attempt(request, duplicate, None, until)
                return
            letter = self._letters.notice(
                to=self._secrets.open(owner_id, owner.personal_data, claim.wrapped).email,
                locale=owner.locale,
                message_id=self._secrets.message_id(request.registration_id, request.serial),
            )
            held = (request.registration_id, request.serial), (owner_id, NOTICE_SERIAL)
            await self._attempt(request, duplicate, letter, until, *held)
        finally:
            await self._claims.release(owner_id, NOTICE_SERIAL)

    async def _attempt(
        self,
        request: MailRequest,
        read: Loaded,
        letter: Letter | None,
        until: float | None,
        *claims: tuple[UUID, int],
    ) -> None:
        """Send the letter, or withhold it (None), and record the outcome.

        The registrant must not be able to tell that nothing was sent: a withheld mail fails when one sent now would
        fail, and takes as long as a recent hand-over did.

        Args:
            claims: those that it is sent by, to be extended while a server takes its time over the content.
        """
        begun = self._clock()
        if letter is not None and self._return_path is not None:
            letter = replace(letter, return_path=self._return_path(request.registration_id, request.serial))
        outcome: RecordEmailDispatched | RecordEmailDispatchFailed | WithholdEmail
        try:
            accepted = await self._hand_over(letter, until, claims)
        except NotSent as error:
            outcome = RecordEmailDispatchFailed(
                registration_id=request.registration_id,
                serial=request.serial,
                kind=request.kind,
                failure=error.failure,
            )
        else:
            accepted_at = self._clock()
            took = accepted_at - begun
            if letter is None:
                await self._sleep(max(timedelta(0), self._usual(request) - took).total_seconds())
                outcome = WithholdEmail(registration_id=request.registration_id, serial=request.serial)
            else:
                crash_point("worker.before_sent_event")
                if not is_synthetic(request.registration_id):
                    self._took.append(took)
                    if not (read.registration.handed_over_at or read.registration.bounced):
                        self._on_first_mail(accepted_at - read.registration.created_on)
                outcome = RecordEmailDispatched(
                    registration_id=request.registration_id,
                    serial=request.serial,
                    hand_over=accepted,
                )
        await self._record(outcome, request, read)
        is_dead = isinstance(outcome, RecordEmailDispatchFailed) and outcome.failure.permanent
        crash_point("worker.before_dead_ack" if is_dead else "worker.before_ack")

    async def _hand_over(
        self, letter: Letter | None, until: float | None, claims: Sequence[tuple[UUID, int]]
    ) -> HandOver:
        """Send the letter, or go as far as one would be sent (None).

        Raises:
            NotSent: see `application.ports.MailServers`.
            SendInProgress: the lease has ended.
        """

        def content_sent() -> None:  # from now on the server may take its time
            if not limit.expired():
                limit.reschedule(None)
            for claim in claims:
                self._claims.keep(*claim)

        try:
            async with asyncio.timeout_at(until) as limit:
                if letter is None:
                    return await self._servers.probe(until=until)
                person = claims[-1][0]
                send = self._servers.send
                if self._synthetic is not None and is_synthetic(person):
                    send = partial(self._synthetic.send, person)
                with self._dropped_if_erased(person, limit):
                    return await send(letter, until=until, on_content=content_sent)
        except TimeoutError:
            raise SendInProgress(
                "the lease has ended, or the person was erased", retry_after=self._retry_claimed_after.total_seconds()
            ) from None

    @contextmanager
    def _dropped_if_erased(self, person: UUID, limit: asyncio.Timeout) -> Iterator[None]:
        """Let go of a letter once its person is erased, wherever it is: waiting for its turn or between two tries, when
        it is not sent; or with a mail server that has yet to reply, which may deliver it. Its outcome is not recorded
        then: nobody waits for it. Most letters are gone before it is asked for the first time."""
        loop = asyncio.get_running_loop()
        asking: list[asyncio.Task[None]] = []

        async def ask() -> None:
            while True:
                with suppress(Unavailable):  # then nobody can be erased, either
                    if await self._claims.is_erased(person) and not limit.expired():
                        limit.reschedule(loop.time())
                await asyncio.sleep(ERASED_WITHIN.total_seconds())

        first = loop.call_later(ERASED_WITHIN.total_seconds(), lambda: asking.append(asyncio.create_task(ask())))
        try:
            yield
        finally:
            first.cancel()
            for task in asking:
                task.cancel()

    def _usual(self, request: MailRequest) -> timedelta:
        """The duration of one of the latest hand-overs, chosen by the id: they vary as much as real ones do."""
        return self._took[request.registration_id.int % len(self._took)] if self._took else timedelta(0)

    async def _record(self, outcome: Command, request: MailRequest, read: Loaded) -> None:
        """Record the outcome, however long the database cannot be reached.

        Only this is retried, never the sending: the mail was handed over, or its try used up, whatever the database
        says.
        """
        context = _context(request)
        known = [read]  # for the first try only: an aggregate that has recorded something must not be used again

        async def record() -> Answer:
            return await self._handlers.handle(outcome, context, read=known.pop() if known else None)

        await with_retries(
            record,
            lambda: AsyncRetrying(
                retry=retry_if_exception_type(Unavailable),
                wait=wait_exponential(multiplier=0.2, max=5),
                sleep=self._sleep,
            ),
        )


def _was_tried(request: MailRequest, read: Loaded) -> bool:
    """Has a try failed since the request was made? Then the saga requests the mail again, when it is time to.

    During an outage the requests of one mail pile up. If each were a try, a mail whose outcome is unknown would be sent
    again at once, before anybody can use the first copy, and one that is refused for now would not wait.
    """
    since = request.position is not None and request.position < read.position
    return since and read.registration.latest_try_failed


def _context(request: MailRequest) -> Context:
    return Context(Actor.MAIL_WORKER, request.correlation_id, request.position, request.trace)
