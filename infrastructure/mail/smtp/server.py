"""One mail server: whether it may be called, by how many mails at once, and the outcome of one try."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final, cast

from aiosmtplib import SMTPException
from purgatory.service._async.circuitbreaker import AsyncCircuitBreaker

from infrastructure.mail.circuits import Circuit, CircuitOpen
from infrastructure.mail.concurrency_limit import ConcurrencyLimit
from infrastructure.mail.smtp.connection import Progress
from infrastructure.mail.smtp.evidence import Evidence
from infrastructure.mail.smtp.pool import ConnectionPool, Limits
from infrastructure.mail.smtp.replies import STAGES, Verdict, judge_error
from infrastructure.settings.values import MailServer

PROBE_RECHECK: Final = 1.0
"""Seconds until the next check of a circuit that another worker is probing."""

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
    """The server takes no further session of ours; those that it has work."""


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
            CircuitOpen, TooLate: it was not made.
            Refused: it failed.
        """
        if (seconds := self.circuit.ready_in()) > 0:
            raise CircuitOpen(self.provider, min(seconds, self.circuit.ttl))
        while True:
            async with self.concurrency as generation:  # waiting for a turn is not the server's fault: no timeout yet
                if until is not None and asyncio.get_running_loop().time() + self._timeout > until:
                    raise TooLate
                if self.circuit.is_due:  # last: a worker that may probe and does not keeps all others from it
                    await self._ask_to_probe()
                with suppress(_Crowded):  # another turn comes when a session that works is free
                    return await self._try(to, message, generation, on_content)

    async def close(self) -> None:
        await self._pool.close()

    async def _ask_to_probe(self) -> None:
        if not await self._may_probe(self.provider):
            self.circuit.put_off(PROBE_RECHECK)
            raise CircuitOpen(self.provider, PROBE_RECHECK)
        # Another mail of ours may have asked at the same time, been refused and called `put_off`; but we have the right
        # to probe now, and nobody else has.
        self.circuit.make_due()

    async def _try(self, to: str, message: bytes | None, generation: int, on_content: Callable[[], None]) -> int:
        progress = Progress(asyncio.get_running_loop().time())
        async with self._breaker:
            self._under_way.add(progress)
            try:
                async with asyncio.timeout(self._timeout) as deadline:
                    progress.on_content = partial(self._await_acceptance, deadline, on_content)
                    code = await self._converse(to, message, progress)
                if message is not None:
                    self.evidence.taken(to)
                    self.concurrency.succeeded(generation)
                if self.evidence.expected is None:
                    return code
                verdict = self.evidence.expected  # what a mail would get
            except (OSError, SMTPException) as error:
                verdict = judge_error(progress.stage, error)
            finally:
                self._under_way.discard(progress)
            # Outside of the except clause: the refusal must not carry the reply's text in its context.
            takes_others = self._takes_others(progress)
            is_crowded = takes_others and progress.stage in {"connect", "ehlo"} and verdict.failure != "tls"
            if is_crowded:
                self._pool.keep_sessions()
                self.concurrency.refused(generation, works=self._sessions_at_work)
            elif message is not None:
                verdict = await self.evidence.judge(verdict, to)
            if verdict.hopeless:
                self.circuit.open()
            is_outage = verdict.outage and not (is_crowded or (verdict.too_many and takes_others))
            if verdict.too_many and not is_outage and not is_crowded:
                self.concurrency.refused(generation)
            if is_outage:
                raise Refused(verdict)
        # The server works: not a failure of its circuit.
        if is_crowded:
            raise _Crowded
        raise Refused(verdict)

    def _await_acceptance(self, deadline: asyncio.Timeout, on_content: Callable[[], None]) -> None:
        if not deadline.expired():
            deadline.reschedule(asyncio.get_running_loop().time() + self._content_timeout)
        on_content()

    @property
    def _sessions_at_work(self) -> int:
        opened = STAGES.index("login")
        return sum(STAGES.index(one.stage) > opened for one in self._under_way) + self._pool.idle

    def _takes_others(self, refused: Progress) -> bool:
        """Has it let other mails of ours get further, or accepted one, while it refused this one?"""
        reached, taken_at = STAGES.index(refused.stage), self.evidence.standing.taken_at
        has_taken = taken_at is not None and taken_at >= refused.started
        return has_taken or any(STAGES.index(one.stage) > reached for one in self._under_way)

    async def _converse(self, to: str, message: bytes | None, progress: Progress) -> int:
        connection = await self._pool.begin(progress)
        began = asyncio.get_running_loop().time()
        try:
            if message is None:
                await connection.reset()
                code = 250
            else:
                code = await connection.send(to, message, progress)
        except BaseException as error:
            self._pool.recycle(connection, error, took=asyncio.get_running_loop().time() - began)
            raise
        self._pool.put_back(connection)
        return code
