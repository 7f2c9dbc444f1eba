"""Requests with an Idempotency-Key: the first is run, and its answer kept in the commit of what it did.

There is no table of keys. A key leads to a stream, by a keyed hash: that of the registration which it began, or of the
answer (`KeptAnswer`). So nothing is lost in a crash, the store's primary key decides between two at once, and a request
without a key neither reads nor writes more than it would without all this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from hmac import compare_digest
from typing import TypeVar
from uuid import UUID

from eventsourcing.domain import Aggregate

from application.addresses import canonical_address
from application.answers import Answer
from application.commands import Command, RegisterUser, RequestNewCode, VerifyEmail
from application.keyed_lock import KeyedLock
from application.operator_acts import act_of
from application.ports import Conflict, Context, Keyed, Log, Once, Secrets, Streams
from domain.errors import IdempotencyKeyReused, Refused, WrongCode
from domain.kept_answer import KeptAnswer
from domain.registration import Status

T = TypeVar("T")

Admit = Callable[[bool], Awaitable[None]]
"""Lets a request in, once it is known whether its key is: raises what is to be answered instead."""

Run = Callable[..., Awaitable[Answer]]
"""Runs the command in a context; a registration is also told how it is let in."""


class KeyedRequests:
    """What has to do with keys, for `Handlers`."""

    def __init__(self, log: Log, secrets: Secrets) -> None:
        self._log = log
        self._secrets = secrets
        self._lock = KeyedLock()

    def keyed(self, command: Command, context: Context) -> Keyed | None:
        """Where the answer is kept; None without a key. That to a registration follows from its own stream."""
        secrets = self._secrets
        match command:
            case RegisterUser(idempotency_key=str(key)):
                return Keyed(secrets.registration_id_for(canonical_address(command.email), key), "register", "")
            case VerifyEmail(idempotency_key=str(key)):
                answer_id = secrets.answer_id("verify", str(command.registration_id), key)
                guess = secrets.fingerprint(str(answer_id), command.code.get_secret_value())
                return Keyed(answer_id, "verify", guess)
            case RequestNewCode(idempotency_key=str(key)):
                # (It has no body: whatever comes again with its key is the same.)
                return Keyed(secrets.answer_id("new-code", str(command.registration_id), key), "new-code", "")
        return None if context.once is None else self.of_operator(context.once, act_of(command) or "")

    def of_operator(self, once: Once, request: str) -> Keyed:
        """Where the answer to an operator's request is kept."""
        answer_id = self.operators_id(once.key)
        asked = self._secrets.fingerprint(str(answer_id), once.asked)
        return Keyed(answer_id, request, asked, always=once.always)

    def operators_id(self, key: str) -> UUID:
        """What follows from an operator's key, whichever of their routes it is for."""
        return self._secrets.answer_id("operator", key)

    async def run_once(self, command: Command, context: Context, keyed: Keyed, run: Run, admit: Admit | None) -> Answer:
        """The answer of the first request with this key; in this process one at a time, so that of many at once only
        the first is let in as a new one.

        Raises:
            IdempotencyKeyReused: that one asked for something else.
        """
        if isinstance(command, RegisterUser):  # what the key leads to is among what it has to read anyway
            return await self.in_turn(keyed, partial(run, context, admit))
        return await self.in_turn(keyed, partial(self._run_once, command, context, keyed, run, admit))

    async def in_turn(self, keyed: Keyed, work: Callable[[], Awaitable[T]]) -> T:
        """Run the work once no other request with this key runs in this process."""
        return await self._lock.run(keyed.answer_id, work)

    async def _run_once(
        self, command: Command, context: Context, keyed: Keyed, run: Run, admit: Admit | None
    ) -> Answer:
        streams = await self._log.load(keyed.answer_id)
        if admit is not None:
            await admit(streams.position(keyed.answer_id) > 0)
        told = self.told_in(command, keyed, streams)
        if told is not None:
            return told
        try:
            return await run(replace(context, keyed=keyed))
        except WrongCode:
            raise  # it is recorded, and with it that it was told
        except (Conflict, Refused):
            # Another process may have been faster with this very request.
            told = self.told_in(command, keyed, await self._log.load(keyed.answer_id))
            if told is None:
                raise
            return told

    async def told(self, keyed: Keyed) -> Answer | None:
        """The kept answer; None if there is none.

        Raises:
            IdempotencyKeyReused: it is that to another request.
        """
        return answered_before(await self._log.load(keyed.answer_id), keyed.answer_id, keyed.fingerprint)

    def told_in(self, command: Command, keyed: Keyed, streams: Streams) -> Answer | None:
        """The kept answer, from streams that were loaded with it.

        Raises:
            IdempotencyKeyReused: it is that to another request.
            WrongCode: that was the answer.
        """
        kept = streams.get(KeptAnswer, keyed.answer_id)
        if kept is None:
            return None
        if not self._is_same(command, keyed, kept):
            raise IdempotencyKeyReused
        if kept.attempts_left is not None:
            refused = WrongCode(kept.attempts_left)
            refused.replayed = True
            raise refused
        return told_again(kept, streams)

    def _is_same(self, command: Command, keyed: Keyed, kept: KeptAnswer) -> bool:
        if isinstance(command, VerifyEmail) and kept.serial is not None:
            return self.is_code_of(command, kept.serial)
        return compare_digest(kept.fingerprint, keyed.fingerprint)

    def is_code_of(self, command: VerifyEmail, serial: int) -> bool:
        """Is it the right code of this issue? Then it is not stored, in no form."""
        expected = self._secrets.code(command.registration_id, serial)
        return compare_digest(command.code.get_secret_value().encode(), expected.encode())


def answered_before(streams: Streams, answer_id: UUID, fingerprint: str) -> Answer | None:
    """The kept answer; None if there is none, also where a registration was begun with the key.

    Raises:
        IdempotencyKeyReused: it is that to another request.
    """
    kept = streams.get(Aggregate, answer_id)
    if not isinstance(kept, KeptAnswer):
        return None
    if not compare_digest(kept.fingerprint, fingerprint):
        raise IdempotencyKeyReused
    return told_again(kept, streams)


def told_again(kept: KeptAnswer, streams: Streams) -> Answer:
    """A kept answer."""
    return Answer(
        kept.subject_id or kept.id,
        None if kept.status is None else Status(kept.status),
        streams.position(kept.id),
        recorded=False,
        replayed=True,
        details=kept.details,
    )
