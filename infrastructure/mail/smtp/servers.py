"""Hands letters to mail servers over SMTP, in order of preference and within three tries."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from application.ports import Letter, MailServersAway, NotSent
from application.retrying import with_retries
from domain.mail_outcome import DispatchFailure, HandOver, MailFailure
from infrastructure.circuits import Circuit, CircuitOpen, Circuits
from infrastructure.mail.composing import Composer
from infrastructure.mail.smtp.evidence import Alone, Beliefs, Evidence
from infrastructure.mail.smtp.pool import Limits
from infrastructure.mail.smtp.replies import ALARMS, Verdict
from infrastructure.mail.smtp.server import MayProbe, OnConcurrency, Refused, Server, TooLate
from infrastructure.mail.smtp.spans import traced
from infrastructure.settings.sender import mailbox
from infrastructure.settings.values import MailServer
from infrastructure.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

MAX_TRIES: Final = 3
"""Three attempts, 2ⁿ s apart."""
RETRY_WAIT: Final = wait_exponential(multiplier=2) + wait_random(0, 1)
"""2 s, then 4 s, and up to a second on top, so that mails that failed together do not come back together."""

OnOpened = Callable[[Sequence[Circuit], Sequence[Evidence]], None]
OnAttempt = Callable[[str, str], None]
"""Called with the provider (`host:port`) and "accepted" or the failure class of each conversation. Must not raise."""


@dataclass(slots=True, eq=False)
class _Sending:
    """A letter on its way: what its tries have shown so far."""

    to: str
    message: bytes | None
    until: float | None
    on_content: Callable[[], None] = lambda: None
    tries: int = 0
    again: bool = False
    avoided: set[str] = field(default_factory=set)
    last: tuple[Server, Verdict] | None = None

    def failed(self) -> NotSent:
        if self.last is None:
            raise AssertionError("nothing failed")
        server, verdict = self.last
        return NotSent(
            DispatchFailure(
                verdict.failure,
                permanent=verdict.permanent,
                provider=server.provider,
                attempts=self.tries,
                reply_code=verdict.reply_code,
                reply_status=verdict.reply_status,
                outcome_unknown=verdict.outcome_unknown,
                circuit=server.circuit.state,
            )
        )


class SmtpServers:
    """The mail servers, in order of preference: implements `application.ports.MailServers`.

    A *try* is one conversation with one server; a server that does not deal with us at all (open circuit, no TLS, login
    refused) is skipped without using one up. Retries happen here only for what may be different in a few seconds; what
    takes longer (greylisting, an outage) is left to the mail saga.

    If a try fails through the server's fault, the next one goes to another server, if one may be called: with a single
    mail an hour no circuit would ever open. A failure that opens the server's circuit at once uses up no try, as if it
    had been open before: a wrong password or an expired certificate is not a mail's fault. Where the outcome is unknown
    no further try is made here: it may produce a second copy, and the saga's next try comes late enough for the first
    copy to be noticed.

    Args:
        sender: `MAIL_FROM`, with or without a name; its domain is used in EHLO.
        reply_to: `REPLY_TO`.
        circuits: creates one per server, named `host:port`.
        tls: trust in the servers' certificates; the system's if None.
        on_concurrency: called with how many mails each server may be handed at the same time.
        tracing: makes a span for each conversation; None: none is made.
        may_probe: asked before a call that would be a circuit's probe.
        beliefs: asked before a refusal that does not say why is taken to be about one mail.
        on_standing: called when what is known of a server should be published at once; see `Evidence`.
        on_opened: called with each server's circuit and evidence once they are created.
        sleep: waits between tries, in seconds.
        now: for the `Date` header.
    """

    def __init__(
        self,
        servers: Sequence[MailServer],
        *,
        sender: str,
        reply_to: str | None = None,
        circuits: Circuits | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        on_attempt: OnAttempt | None = None,
        on_concurrency: OnConcurrency = lambda *_: None,
        tracing: Tracing | None = None,
        may_probe: MayProbe | None = None,
        beliefs: Beliefs | None = None,
        on_standing: Callable[[], None] = lambda: None,
        on_opened: OnOpened = lambda *_: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not servers:
            raise ValueError("at least one mail server is needed")
        self._composer = Composer(sender, reply_to)
        self._settings = tuple(servers)
        self._factory = circuits or Circuits()
        self._limits = limits or Limits()
        self._tls = tls or ssl.create_default_context()
        self._on_attempt = on_attempt
        self._on_concurrency = on_concurrency
        self._tracing = tracing
        self._may_probe = may_probe or _always_allowed
        self._beliefs = beliefs or Alone()
        self._on_standing = on_standing
        self._on_opened = on_opened
        self._sleep = sleep
        self._now = now
        self._opened: list[Server] = []

    async def send(
        self, letter: Letter, *, until: float | None = None, on_content: Callable[[], None] = lambda: None
    ) -> HandOver:
        to = message = None
        failure: MailFailure = "mailbox-unknown"
        with suppress(ValueError):  # which may quote the address
            to = mailbox(letter.to)
            failure = "content"
            message = self._composer.compose(letter, to, self._now())
        servers = await self._servers()
        if to is None or message is None:
            raise NotSent(DispatchFailure(failure, permanent=True, provider=servers[0].provider, attempts=0))
        return await self._through(_Sending(to, message, until, on_content), servers)

    async def probe(self, *, until: float | None = None) -> HandOver:
        return await self._through(_Sending("", None, until), await self._servers())

    async def _through(self, sending: _Sending, servers: Sequence[Server]) -> HandOver:
        return await with_retries(
            partial(self._try, sending, servers),
            lambda: AsyncRetrying(
                sleep=self._sleep,
                stop=stop_after_attempt(MAX_TRIES),
                wait=RETRY_WAIT,
                retry=retry_if_exception(lambda _: sending.again),
                reraise=True,
            ),
        )

    async def until_ready(self) -> None:
        waiting = [asyncio.create_task(server.circuit.until_ready()) for server in await self._servers()]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    @property
    def circuits(self) -> Sequence[Circuit]:
        """Each server's circuit, in order of preference; none before the first use of any server."""
        return [server.circuit for server in self._opened]

    @property
    def in_flight(self) -> int:
        """How many mails are being handed over."""
        return sum(server.concurrency.in_flight for server in self._opened)

    @property
    def waiting(self) -> int:
        """How many mails wait for their turn because as many as their server takes are being handed over."""
        return sum(server.concurrency.waiting for server in self._opened)

    async def states(self) -> dict[str, str]:
        """Each server's circuit by `host:port`: "closed", "half-opened" or "opened"."""
        return {server.provider: server.circuit.state for server in await self._servers()}

    async def close(self) -> None:
        """Close the connections; call it when nothing is being sent any more."""
        await asyncio.gather(*(server.close() for server in self._opened))

    async def _try(self, sending: _Sending, servers: Sequence[Server]) -> HandOver:
        """One try, at the first server that may be called."""
        sending.again = False
        retry_after = self._factory.default_ttl
        for server in sorted(servers, key=lambda server: server.provider in sending.avoided):
            try:
                code = await self._hand_over(sending, server)
            except CircuitOpen as rejection:
                retry_after = min(retry_after, rejection.retry_after)
                continue
            except TooLate:
                retry_after = 0.0
                continue
            except Refused as refusal:
                verdict = refusal.verdict
            else:
                self._report(server, None)
                return HandOver(server.provider, sending.tries + 1, code)
            self._report(server, verdict)
            if verdict.hopeless:
                continue
            sending.last = server, verdict
            if verdict.outage:
                sending.avoided.add(server.provider)
            if verdict.costs_a_try:
                sending.tries += 1
                elsewhere = len(sending.avoided) < len(servers)
                may_help = elsewhere or verdict.failure != "content"  # which will be the same in a few seconds
                sending.again = may_help and not verdict.permanent and not verdict.outcome_unknown
                raise sending.failed()
        if sending.last is None:
            raise MailServersAway("no mail server may be called now", retry_after=retry_after)
        raise sending.failed()

    async def _hand_over(self, sending: _Sending, server: Server) -> int:
        talking = server.hand_over(sending.to, sending.message, sending.until, sending.on_content)
        return await (talking if self._tracing is None else traced(self._tracing, server.provider, talking))

    def _report(self, server: Server, verdict: Verdict | None) -> None:
        if self._on_attempt is not None:
            self._on_attempt(server.provider, "accepted" if verdict is None else verdict.failure)
        if verdict is None:
            return
        if verdict.alarming:
            event, hint = ALARMS[verdict.failure]
            log.error(event, provider=server.provider, reply=verdict.reply_code, status=verdict.reply_status, hint=hint)

    async def _servers(self) -> Sequence[Server]:
        """Created at the first call, as purgatory's `get_breaker` is a coroutine."""
        if not self._opened:
            self._opened = [
                Server(
                    server,
                    await self._factory.get_breaker(provider),
                    self._composer.sender,
                    tls=self._tls,
                    limits=self._limits,
                    may_probe=self._may_probe,
                    on_concurrency=self._on_concurrency,
                    evidence=Evidence(provider, beliefs=self._beliefs, on_change=self._on_standing),
                )
                for server, provider in ((one, f"{one.host}:{one.port}") for one in self._settings)
            ]
            self._on_opened(self.circuits, [one.evidence for one in self._opened])
        return self._opened


async def _always_allowed(*_: object) -> bool:
    return True
