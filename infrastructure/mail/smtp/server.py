"""One mail server: whether it may be called, by how many mails at once, and the outcome of one try."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, cast

from aiosmtplib import SMTPException

from infrastructure.circuits import AsyncCircuitBreaker, Circuit, CircuitOpen
from infrastructure.mail.concurrency_limit import ConcurrencyLimit
from infrastructure.mail.smtp.connection import Progress
from infrastructure.mail.smtp.evidence import Evidence
from infrastructure.mail.smtp.pool import ConnectionPool, Limits
from infrastructure.mail.smtp.replies import OPENING, STAGES, Verdict, judge_error
from infrastructure.settings.values import MailServer

PROBE_RECHECK: Final = 1.0
"""Seconds until the next check of a circuit that another worker is probing."""

CROWDED_PAUSE: Final = 5.0
"""Seconds until a worker without a session asks again for one, while the server takes mails of other workers only."""

TAKES_OTHERS_FOR: Final = 30.0
"""Seconds for which a mail that another worker had taken shows that the server works: workers tell each other of it
every 20 s (`shared_circuits.NAMING_INTERVAL`)."""

MayProbe = Callable[[str], Awaitable[bool]]
"""Called with the server's `host:port` before its open circuit is probed: only one of all workers may do it."""
OnConcurrency = Callable[[str, int], None]
"""Called with the provider and how many mails it may be handed at once, whenever that changes. Must not raise."""


class Refused(Exception):
    """A try failed."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.failure)
        self.verdict = verdict


class _Crowded(Exception):
    """The server takes no further session of ours; those that it has, or those of other workers, work."""


class TooLate(Exception):
    """The time that was left for a mail was used up by waiting for its turn."""


class Server:
    """One mail server: its circuit, its throttle, its connections.

    The reaction to "too many" is fewer mails at the same time (`ConcurrencyLimit`). It does not count against a server
    that is accepting other mails of ours: a burst of refusals, which those few cannot outnumber, must not open its
    circuit. A server that says 421 and accepts none is as good as away: then their number is not the reason.
    """

    def __init__(
        self,
        server: MailServer,
        breaker: AsyncCircuitBreaker,
        sender: str,
        *,
        tls: ssl.SSLContext,
        limits: Limits,
        may_probe: MayProbe,
        on_concurrency: OnConcurrency,
        evidence: Evidence,
    ) -> None:
        self.provider = evidence.provider
        self.evidence = evidence
        self.concurrency = ConcurrencyLimit(
            limits.connections, start=limits.first_connections, on_change=partial(on_concurrency, self.provider)
        )
        self._breaker = breaker
        self._timeout = limits.timeout.total_seconds()
        self._content_timeout = limits.content_timeout.total_seconds()
        self._may_probe = may_probe
        self._pool = ConnectionPool(server, sender=sender, tls=tls, limits=limits)
        self._under_way: set[Progress] = set()
        self._moved_at = 0.0  # when one of those last came further, or ended
        self._news: asyncio.Event | None = None  # set the next time

    @property
    def circuit(self) -> Circuit:
        return cast("Circuit", self._breaker.context)

    async def hand_over(
        self,
        to: str,
        message: bytes | None,
        until: float | None,
        on_content: Callable[[], None] = lambda: None,
    ) -> int:
        """One try; returns the reply code. Without a message it ends before the recipient.

        Args:
            until: by the loop's clock, when the content must have been sent; the try is not started if that may take
                longer.
            on_content: called when it was: `limits.content_timeout` begins.

        Raises:
            CircuitOpen, TooLate: it was not made; the former also if the server has come to a halt.
            Refused: it failed.
        """
        if (seconds := self.circuit.ready_in()) > 0:
            raise CircuitOpen(self.provider, min(seconds, self.circuit.ttl))
        while True:
            async with self._turn() as generation:  # waiting for one is not the server's fault: no timeout yet
                if until is not None and asyncio.get_running_loop().time() + self._timeout > until:
                    raise TooLate
                if self.circuit.is_due:  # last: a worker that may probe and does not keeps all others from it
                    await self._ask_to_probe()
                with suppress(_Crowded):  # another turn comes when a session that works is free
                    return await self._try(to, message, generation, on_content)
                if not self._sessions:
                    await asyncio.sleep(CROWDED_PAUSE)

    async def close(self) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[int]:
        """Waits for one, however long the server takes over other mails; not if it has done nothing about any of them
        for as long as a try may take: it may be gone, and others should be asked.

        Raises:
            CircuitOpen: it has not.
        """
        while True:
            try:
                async with asyncio.timeout(self._timeout):
                    generation = await self.concurrency.__aenter__()
                break
            except TimeoutError:
                if asyncio.get_running_loop().time() - self._moved_at >= self._timeout:
                    raise CircuitOpen(self.provider, self._timeout) from None
        try:
            yield generation
        finally:
            await self.concurrency.__aexit__()

    async def _ask_to_probe(self) -> None:
        if not await self._may_probe(self.provider):
            self.circuit.put_off(PROBE_RECHECK)
            raise CircuitOpen(self.provider, PROBE_RECHECK)
        # Another mail of ours may have asked at the same time, been refused and called `put_off`; but we have the right
        # to probe now, and nobody else has.
        self.circuit.make_due()

    async def _try(self, to: str, message: bytes | None, generation: int, on_content: Callable[[], None]) -> int:
        progress = Progress(asyncio.get_running_loop().time(), on_move=self._tell)
        async with self._breaker:
            self._under_way.add(progress)
            try:
                with self.concurrency.exempting(after=self._timeout) as exempt:
                    async with asyncio.timeout(self._timeout) as deadline:
                        progress.on_content = partial(self._await_acceptance, deadline, exempt, on_content)
                        code = await self._converse(to, message, progress)
                if message is not None:
                    self.evidence.taken(to)
                    self.concurrency.succeeded(generation, asyncio.get_running_loop().time() - progress.ready_at)
                if self.evidence.expected is None:
                    return code
                verdict = self.evidence.expected  # what a mail would get
            except (OSError, SMTPException) as error:
                verdict = judge_error(progress.stage, error)
            finally:
                self._under_way.discard(progress)
                self._tell()
            # Outside of the except clause: the refusal must not carry the reply's text in its context.
            is_crowded = _may_be_crowded(progress, verdict) and await self._works_for_others(progress)
            if is_crowded:
                self._pool.keep_sessions()
                self.concurrency.refused(generation, works=self._sessions)
            elif message is not None:
                verdict = await self.evidence.judge(verdict, to)
            if verdict.hopeless and not is_crowded:
                self.circuit.open()
            is_outage = verdict.outage and not (is_crowded or (verdict.too_many and self._takes_others(progress)))
            if verdict.too_many and not is_outage and not is_crowded:
                self.concurrency.refused(generation)
            if is_outage:
                raise Refused(verdict)
        # The server works: not a failure of its circuit.
        if is_crowded:
            raise _Crowded
        raise Refused(verdict)

    def _await_acceptance(
        self, deadline: asyncio.Timeout, exempt: Callable[[], None], on_content: Callable[[], None]
    ) -> None:
        """The server may take its time now; but a mail that it takes long over keeps no other one waiting."""
        if not deadline.expired():
            deadline.reschedule(asyncio.get_running_loop().time() + self._content_timeout)
        exempt()
        on_content()

    @property
    def _sessions(self) -> int:
        """How many the server has given us, as far as is known."""
        return sum(one.stage not in {"connect", "greeting"} for one in self._under_way) + self._pool.idle

    async def _works_for_others(self, refused: Progress) -> bool:
        """Does the server work for other mails, while it gave this one no session?

        Waits, as long as a try may take, until that is known: others may be about to get a session, or to be refused
        one as well, and a server that a mail is waiting for may be working on it or gone.
        """
        opening = {one for one in self._under_way if one.stage in OPENING}
        with suppress(TimeoutError):
            async with asyncio.timeout_at(refused.started + self._timeout):
                while (opening := {one for one in opening & self._under_way if one.stage in OPENING}) or (
                    self._under_way and not self._takes_others(refused, moved_since=refused.started)
                ):
                    if self._news is None:
                        self._news = asyncio.Event()
                    await self._news.wait()
        works = self._takes_others(refused, moved_since=refused.started)
        return works or self._takes_mails_of_other_workers

    def _takes_others(self, refused: Progress, *, moved_since: float = -math.inf) -> bool:
        """Has it let other mails of ours get further, or accepted one, while it refused this one?

        Args:
            moved_since: those that got there earlier say nothing.
        """
        reached, taken_at = STAGES.index(refused.stage), self.evidence.standing.taken_at
        return (taken_at is not None and taken_at >= refused.started) or any(
            one.moved_at >= moved_since and STAGES.index(one.stage) > reached for one in self._under_way
        )

    @property
    def _takes_mails_of_other_workers(self) -> bool:
        taken_at = self.evidence.taken_elsewhere_at
        return taken_at is not None and asyncio.get_running_loop().time() - taken_at <= TAKES_OTHERS_FOR

    def _tell(self) -> None:
        self._moved_at = asyncio.get_running_loop().time()
        if self._news is not None:
            self._news.set()
            self._news = None

    async def _converse(self, to: str, message: bytes | None, progress: Progress) -> int:
        connection = await self._pool.begin(None if message is None else to, progress)
        progress.ready_at = asyncio.get_running_loop().time()
        try:
            if message is None:
                await connection.reset()
                code = 250
            else:
                code = (await connection.send(to, message, progress)).code
        except BaseException as error:
            self._pool.recycle(connection, error)
            raise
        self._pool.put_back(connection)
        return code


def _may_be_crowded(refused: Progress, verdict: Verdict) -> bool:
    """Is it a no to one more session, as far as can be told: by a reply, or by a close instead of one?"""
    if verdict.failure in {"timeout", "tls"}:
        return False
    is_for_now = verdict.reply_code is not None and verdict.reply_code // 100 == 4
    return refused.stage in {"greeting", "ehlo"} or (refused.stage == "login" and is_for_now)
