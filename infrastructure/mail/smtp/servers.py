"""Handing letters to mail servers over SMTP: what the servers answer, in the few words of the port.

A *try* is one conversation with one server; a server that will not talk to us at all (open circuit, no TLS, login
refused) is passed over without using one up. Retries happen here and only for what may be different in a few seconds;
what takes longer (greylisting, an outage) is the mail saga's.

aiosmtplib connects, negotiates TLS and logs in. The mail transaction itself is spoken command by command, because
only then is it known on which side of the final dot a connection was lost, and because `send_message` costs twice
the CPU. Everything that aiosmtplib raises is turned into a `Verdict` in one spot and forgotten: its exceptions quote
the server's reply, and servers quote the address.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Literal, cast, get_args

import structlog
from aiosmtplib import SMTP, SMTPException, SMTPResponseException
from aiosmtplib.protocol import SMTPProtocol
from purgatory.service._async.circuitbreaker import AsyncCircuitBreaker
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from application.crash_points import crash_point
from application.mail_delivery import persist
from application.ports import Accepted, Letter, MailFailure, MailServersAway, NotSent
from infrastructure.mail.circuits import Circuit, CircuitOpen, Circuits
from infrastructure.mail.composing import Composer, mailbox
from infrastructure.mail.concurrency_limit import Slots
from infrastructure.settings.settings import MailServer

log = structlog.get_logger(__name__)

TRIES: Final = 3
"""Plan: three attempts, 2ⁿ s apart."""
PAUSE: Final = wait_exponential(multiplier=2) + wait_random(0, 1)
"""2 s, then 4 s, and up to a second on top, so that mails that failed together do not come back together."""
CONNECTIONS: Final = 32
"""Open at once to one server; large providers allow 10 to 50 from one client."""
MAILS_PER_CONNECTION: Final = 100
"""Postfix and Exchange Online end a session after 100 to 1,000; a new connection per 100 costs 1 %."""
LEARNED_FOR: Final = 100
"""Connections that keep to the number of mails after which a server ended one; then it is asked anew, which costs each
open connection a round trip. What was learned by mistake is forgotten so."""
QUIT_PATIENCE: Final = 2.0
"""Seconds to wait for the reply to QUIT, which decides nothing."""

ALARMS: Final = {
    "authentication": (
        "mail.unauthorized",
        "login, sender or relaying is refused: correct REGISTRAR_SMTP_URLS, REGISTRAR_MAIL_FROM or our account there",
    ),
    "tls": (
        "mail.not_encrypted",
        "nothing goes out in clear: there is no TLS, or a certificate that is expired, not trusted or another host's",
    ),
    "content": (
        "mail.content_refused",
        "all our mails say the same: look at that server's filter, at blocklists, at our domain's SPF, DKIM and DMARC",
    ),
}
"""Failures that somebody has to do something about: the event that is logged, and what to do. Mails wait meanwhile."""

SOMEBODY_PROBES: Final = 1.0
"""Seconds until the next look at a circuit that another worker is probing."""

MayProbe = Callable[[str], Awaitable[bool]]
"""Asked with the server's `host:port` before its open circuit is probed: only one of all workers is to do it."""

Stage = Literal["connect", "ehlo", "tls", "login", "mail", "rcpt", "data", "end-of-data"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
"""As a conversation goes through them."""
OnAttempt = Callable[[str, str], None]
"""Told the provider (`host:port`) and "accepted" or the failure class of each conversation. Must not raise."""
OnConcurrency = Callable[[str, int], None]
"""Told the provider and how many mails it may be handed at the same time, whenever that changes. Must not raise."""


# --- What a server's answer means -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a conversation ended without a 250.

    Attributes:
        failure, permanent, reply_code, reply_status, outcome_unknown: as in `NotSent`.
        outage: the server's fault and not this mail's or this mailbox's: counts for the circuit breaker (but see
            `_Server` for `too_many`), and the next try goes to another server, if there is one.
        hopeless: no mail can go through this server before an operator has done something: opens its circuit.
        too_many: the server is there, and asks for fewer mails at the same time.
    """

    failure: MailFailure
    permanent: bool = False
    outage: bool = False
    hopeless: bool = False
    reply_code: int | None = None
    reply_status: str | None = None
    outcome_unknown: bool = False
    too_many: bool = False

    @property
    def alarming(self) -> bool:
        """Not over by itself."""
        return self.failure in ALARMS and (self.reply_code is None or self.reply_code >= 500)

    @property
    def costs_a_try(self) -> bool:
        """False where the server refuses us rather than the mail: another server may be willing."""
        return self.failure not in {"authentication", "tls"}


def judge_reply(stage: Stage, code: int, text: str) -> Verdict:
    """Classify a negative reply by its code (RFC 5321, 4.2), enhanced status (RFC 3463) and stage.

    Permanent is only what is about this mailbox or this mail. A 5xx before RCPT is about us: it would be the same for
    every mail, an operator mends it, and then the mail must still go out. Whom a refused content is about a single
    reply does not tell; the server's history does (`_Server`).
    """
    found = re.match(r"([245])\.\d{1,3}\.\d{1,3}(?!\S)", text)
    status = found[0] if found and int(found[1]) == code // 100 else None
    subject = status.split(".")[1] if status else None

    def verdict(
        failure: MailFailure,
        *,
        permanent: bool = False,
        outage: bool = False,
        hopeless: bool = False,
        unknown: bool = False,
        too_many: bool = False,
    ) -> Verdict:
        return Verdict(failure, permanent, outage or hopeless, hopeless, code, status, unknown, too_many)

    if code == 421:
        return verdict("throttled", outage=True, too_many=status != "4.3.2")  # 4.3.2: it shuts down
    if code // 100 not in {4, 5}:  # not an answer to what was asked
        return verdict("connection", outage=True, unknown=stage == "end-of-data")
    refused_for_good = code // 100 == 5
    match stage:
        case "connect" | "ehlo":
            return verdict("connection" if refused_for_good else "temporary", outage=True)
        case "tls":
            return verdict("tls", outage=True, hopeless=refused_for_good)
        case "login":
            return verdict("authentication", outage=True, hopeless=refused_for_good)
    if not refused_for_good:
        if status == "4.7.0":
            return verdict("throttled", too_many=True)
        if status == "4.7.1" or (code in {450, 451} and subject != "3"):  # X.3: the server's own trouble
            return verdict("greylisted")
        return verdict("temporary")
    match stage:
        case "mail":
            if code == 552 or subject == "3":  # 5.3.4: too big
                return verdict("content", permanent=True)
            return verdict("authentication", hopeless=True)  # our sender address is not welcome
        case "rcpt":
            if subject == "7" or code == 530:  # relaying denied, blocked: about us, though perhaps not always
                return verdict("authentication")
            if subject == "1" or (subject is None and code in {550, 551, 553, 556}):
                return verdict("mailbox-unknown", permanent=True)
            if code in {550, 551, 553} and subject != "2":  # 5.2: it exists, but is full or disabled
                return verdict("mailbox-unknown", permanent=True)
        case "data" | "end-of-data":
            if subject == "1":
                return verdict("mailbox-unknown", permanent=True)
            if subject in {"6", "7"} or code in {552, 554}:
                return verdict("content", permanent=True)
    return verdict("permanent", permanent=True)


def judge_error(stage: Stage, error: OSError | SMTPException) -> Verdict:
    """Classify what was raised. Replies first: aiosmtplib has replies that are OSErrors too."""
    if isinstance(error, SMTPResponseException):
        return judge_reply(stage, error.code, error.message)
    if stage in {"connect", "ehlo", "tls"} and _is_tls_failure(error):
        return Verdict("tls", outage=True, hopeless=True)
    if not isinstance(error, OSError):  # aiosmtplib's own "not supported by this server"
        if stage == "tls":
            return Verdict("tls", outage=True, hopeless=True)
        if stage == "login":
            return Verdict("authentication", outage=True, hopeless=True)
    failure: MailFailure = "timeout" if isinstance(error, TimeoutError) else "connection"
    return Verdict(failure, outage=True, outcome_unknown=stage == "end-of-data")


def _is_tls_failure(error: BaseException | None) -> bool:
    """A bad certificate or no TLS at all, also as the cause of a failed connect; not a connection lost in between."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, ssl.SSLEOFError)
        error = error.__cause__
    return False


class _Refused(Exception):
    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.failure)
        self.verdict = verdict


class _TooLate(Exception):
    """The time that was left for a mail was used up by waiting for its turn."""


def _is_plain_refusal(error: BaseException) -> bool:
    """The server said no, and the session goes on."""
    return isinstance(error, SMTPResponseException) and error.code // 100 in {4, 5} and error.code != 421


def _may_be_used_up(error: OSError | SMTPException) -> bool:
    """May the server have ended this connection, so far idle, for the mails that it has carried?"""
    verdict = judge_error("mail", error)
    return verdict.reply_code == 421 and verdict.reply_status not in {"4.3.2", "4.4.2"}  # shuts down, waited too long


# --- One server --------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Progress:
    """Attributes: begun: by the loop's clock."""

    begun: float
    stage: Stage = "connect"


@dataclass(slots=True, eq=False)
class _Connection:
    """A session that is ready for a mail: greeted, encrypted and logged in as its server demands."""

    client: SMTP
    protocol: SMTPProtocol
    mails: int = 0
    reset_first: bool = False
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)

    @classmethod
    async def open(cls, server: MailServer, greeting: str, tls: ssl.SSLContext, progress: _Progress) -> _Connection:
        progress.stage = "connect"
        client = SMTP(
            hostname=server.host,
            port=server.port,
            local_hostname=greeting,
            use_tls=server.scheme == "smtps",
            start_tls=False,
            tls_context=tls,
            timeout=None,  # the whole try has one
        )
        await client.connect()
        progress.stage = "ehlo"
        try:
            await client.ehlo()
            if server.scheme == "smtp" and server.starttls == "required":
                progress.stage = "tls"
                await client.starttls()
                progress.stage = "ehlo"
                await client.ehlo()
            if server.username is not None:
                progress.stage = "login"
                await client.login(server.username, server.password.get_secret_value() if server.password else "")
        except BaseException:
            _abort(client)
            raise
        if client.protocol is None:
            raise ConnectionResetError
        return cls(client, client.protocol)

    async def command(self, *words: bytes, expected: int = 2) -> None:
        code, text = await self.protocol.execute_command(*words)
        if code // 100 != expected:
            raise SMTPResponseException(code, text)

    async def begin(self, sender: bytes) -> None:
        if self.reset_first:
            await self.command(b"RSET")
            self.reset_first = False
        self.mails += 1
        await self.command(b"MAIL", b"FROM:<%b>" % sender)

    async def transfer(self, message: bytes, progress: _Progress) -> int:
        """Send the content; from the first byte on only the reply tells whether the server took the mail."""
        self.protocol.write(message)
        progress.stage = "end-of-data"
        crash_point("worker.before_eod_reply")
        code, text = await self.protocol.read_response()
        if code // 100 != 2:
            raise SMTPResponseException(code, text)
        return code

    def abort(self) -> None:
        _abort(self.client)

    async def quit(self) -> None:
        with suppress(OSError, SMTPException):
            async with asyncio.timeout(QUIT_PATIENCE):
                await self.protocol.execute_command(b"QUIT")
        self.abort()


def _abort(client: SMTP) -> None:
    """Drop the connection without waiting: `close` would wait for a TLS peer that may be gone."""
    if client.transport is not None:
        cast("asyncio.WriteTransport", client.transport).abort()
    client.close()


class _Server:
    """One mail server: its connections, its circuit, its try.

    Our mails all say the same, so a refused content is about that one mail only where the server has just taken
    another's. A second refusal in a row, or one before any was taken, is about all of them: then it is an outage, and
    nobody's registration is undone by it.

    "Too many" is answered by fewer at the same time (`Slots`). It says nothing against a server that is just taking
    others of our mails, and a burst of refusals that those few cannot outnumber must not open its circuit. Whoever says
    421 and takes none is as good as away: then it has nothing to do with how many they are.
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
    ) -> None:
        self.provider = f"{server.host}:{server.port}"
        self._server = server
        self._breaker = breaker
        self._sender = sender.encode("ascii")
        self._greeting = sender.rpartition("@")[2]
        self._tls = tls
        self._limits = limits
        self._may_probe = may_probe
        self._slots = Slots(limits.connections, on_change=partial(on_concurrency, self.provider))
        self._under_way: set[_Progress] = set()
        self._taken_at = -math.inf
        self._mails_per_connection = limits.mails_per_connection
        self._ended_after: int | None = None  # so many mails, the connection that the server ended last
        self._used_up = 0  # connections, since it was learned how many mails they carry
        self._idle: list[_Connection] = []
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._closed = False
        self._content_taken = False  # of the mail that was judged last
        self._content_refused: Verdict | None = None

    @property
    def circuit(self) -> Circuit:
        return cast("Circuit", self._breaker.context)

    async def hand_over(self, to: str, message: bytes | None, until: float | None) -> int:
        """One try, over in `limits.timeout`; answers the reply code. Without a message it ends before the recipient.

        Args:
            until: by the loop's clock, when it must be over; it is not begun if it may take longer.

        Raises:
            CircuitOpen, _TooLate: it was not made.
            _Refused: it failed.
        """
        if (seconds := self.circuit.ready_in()) > 0:
            raise CircuitOpen(self.provider, min(seconds, self.circuit.ttl))
        async with self._slots as begun:  # waiting for a slot is no fault of the server: no timeout yet
            if until is not None and asyncio.get_running_loop().time() + self._limits.timeout.total_seconds() > until:
                raise _TooLate
            if self.circuit.is_due:  # last: who is allowed to probe and does not, keeps everybody else from it
                await self._ask_to_probe()
            return await self._try(to, message, begun)

    async def _ask_to_probe(self) -> None:
        if not await self._may_probe(self.provider):
            self.circuit.put_off(SOMEBODY_PROBES)
            raise CircuitOpen(self.provider, SOMEBODY_PROBES)
        # Another mail of ours, which asked beside us, may have been told no and have put it off; but nobody else may
        # probe now until we have.
        self.circuit.be_due()

    async def _try(self, to: str, message: bytes | None, begun: int) -> int:
        progress = _Progress(asyncio.get_running_loop().time())
        async with self._breaker:
            self._under_way.add(progress)
            try:
                async with asyncio.timeout(self._limits.timeout.total_seconds()):
                    code = await self._converse(to, message, progress)
                if message is not None:
                    self._content_taken, self._content_refused = True, None
                    self._taken_at = asyncio.get_running_loop().time()
                    self._slots.succeeded(begun)
                if self._content_refused is None:
                    return code
                verdict = self._content_refused  # what would become of a mail
            except (OSError, SMTPException) as error:
                verdict = self._judge(progress.stage, error)
            finally:
                self._under_way.discard(progress)
            # Raised outside of the except clause: the refusal must not carry the reply's text in its context.
            if verdict.hopeless:
                self.circuit.open()
            is_outage = verdict.outage and not (verdict.too_many and self._takes_others(progress))
            if verdict.too_many and not is_outage:
                self._slots.refused(begun)
            if is_outage:
                raise _Refused(verdict)
        raise _Refused(verdict)  # the server is well: no failure of its circuit

    def _takes_others(self, refused: _Progress) -> bool:
        """Has it let others of our mails further, or taken one, while it refused this one?"""
        reached = STAGES.index(refused.stage)
        return self._taken_at >= refused.begun or any(STAGES.index(other.stage) > reached for other in self._under_way)

    def _judge(self, stage: Stage, error: OSError | SMTPException) -> Verdict:
        verdict = judge_error(stage, error)
        if verdict.failure != "content":
            return verdict
        about_this_mail, self._content_taken = self._content_taken, False
        self._content_refused = replace(verdict, permanent=False, outage=True)
        return replace(self._content_refused, permanent=about_this_mail)

    async def _converse(self, to: str, message: bytes | None, progress: _Progress) -> int:
        connection = await self._begin(progress)
        try:
            if message is None:
                await connection.command(b"RSET")
                self._put_back(connection)
                return 250
            progress.stage = "rcpt"
            await connection.command(b"RCPT", b"TO:<%b>" % to.encode("ascii"))
            progress.stage = "data"
            await connection.command(b"DATA", expected=3)
            code = await connection.transfer(message, progress)
        except BaseException as error:
            self._settle(connection, error)
            raise
        self._put_back(connection)
        return code

    async def _begin(self, progress: _Progress) -> _Connection:
        """A connection on which MAIL FROM was accepted: an idle one, or if that has gone stale, a new one.

        A server that ends a connection with 421 and takes the mail on a new one may mean the mails that the first has
        carried. It does if the next one ends after as many.
        """
        ended_after = None
        if (connection := self._take_idle()) is not None:
            progress.stage = "mail"
            mails = connection.mails
            try:
                async with asyncio.timeout(self._limits.timeout.total_seconds() / 2):  # leaves time for a new one
                    await connection.begin(self._sender)
                return connection
            except (OSError, SMTPException) as error:
                if _is_plain_refusal(error) and not connection.reset_first:
                    self._settle(connection, error)
                    raise
                connection.abort()
                if _may_be_used_up(error):
                    ended_after = mails
            except BaseException:
                connection.abort()
                raise
        connection = await _Connection.open(self._server, self._greeting, self._tls, progress)
        progress.stage = "mail"
        try:
            await connection.begin(self._sender)
        except BaseException as error:
            self._settle(connection, error)
            raise
        if ended_after is not None:
            if ended_after == self._ended_after:
                self._mails_per_connection, self._used_up = ended_after, 0
            self._ended_after = ended_after
        return connection

    def _settle(self, connection: _Connection, error: BaseException) -> None:
        """Keep the connection after a plain refusal; after anything else nobody knows where it stands."""
        if _is_plain_refusal(error):
            connection.reset_first = True  # by the next mail: this one's answer should not wait for it
            self._put_back(connection)
        else:
            connection.abort()

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the warmest; the others may get old and be closed
            if connection.expiry is not None:
                connection.expiry.cancel()
            if connection.protocol.is_connected:
                return connection
        return None

    def _put_back(self, connection: _Connection) -> None:
        used_up = connection.mails >= self._mails_per_connection
        if used_up:
            self._used_up += 1
            if self._used_up == LEARNED_FOR:
                self._mails_per_connection = self._limits.mails_per_connection
        if self._closed or used_up:
            self._say_goodbye(connection)
            return
        loop = asyncio.get_running_loop()
        connection.expiry = loop.call_later(self._limits.idle.total_seconds(), self._expire, connection)
        self._idle.append(connection)

    def _expire(self, connection: _Connection) -> None:
        self._idle.remove(connection)
        self._say_goodbye(connection)

    def _say_goodbye(self, connection: _Connection) -> None:
        task = asyncio.create_task(connection.quit())
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)

    async def close(self) -> None:
        self._closed = True
        while (connection := self._take_idle()) is not None:
            self._say_goodbye(connection)
        while self._goodbyes:
            await asyncio.wait(self._goodbyes)


# --- All servers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a try may take, and how connections are kept.

    Attributes:
        timeout: of one try, from the first packet to the last reply (`SEND_TIMEOUT`).
        idle: how long an unused connection is kept.
        connections, mails_per_connection: the most; fewer once a server says that they are too many for it.
    """

    timeout: timedelta = timedelta(seconds=10)
    idle: timedelta = timedelta(seconds=30)
    connections: int = CONNECTIONS
    mails_per_connection: int = MAILS_PER_CONNECTION


@dataclass(slots=True, eq=False)
class _Sending:
    """A letter on its way: what its tries have shown so far."""

    to: str
    message: bytes | None
    until: float | None
    tries: int = 0
    again: bool = False
    avoided: set[str] = field(default_factory=set)
    last: tuple[str, Verdict] | None = None

    def failed(self) -> NotSent:
        if self.last is None:
            raise AssertionError("nothing failed")
        provider, verdict = self.last
        return NotSent(
            verdict.failure,
            permanent=verdict.permanent,
            provider=provider,
            attempts=self.tries,
            reply_code=verdict.reply_code,
            reply_status=verdict.reply_status,
            outcome_unknown=verdict.outcome_unknown,
        )


class SmtpServers:
    """The mail servers, in order of preference: implements `application.ports.MailServers`.

    A try that failed through the server's fault is followed by one at another server, if there is one that may be
    called: a single mail an hour would not open any circuit. A failure that opens the server's circuit at once uses
    up nothing, as if it had been open before: a wrong password or an expired certificate is no mail's fault. Where the
    outcome is unknown no further try is made here: it may make a second copy, and the saga's next one comes late
    enough for the first to be seen.

    Args:
        sender: `MAIL_FROM`, with or without a name; its domain is what we greet the servers with.
        circuits: makes one per server, named `host:port`.
        tls: trust in the servers' certificates; the system's if None.
        on_concurrency: told how many mails each server may be handed at the same time.
        may_probe: asked before a call that would be a circuit's probe.
        on_opened: told the circuits once they are made.
        sleep: waits between tries, in seconds.
        now: for the `Date` header.
    """

    def __init__(
        self,
        servers: Sequence[MailServer],
        *,
        sender: str,
        circuits: Circuits | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        on_attempt: OnAttempt | None = None,
        on_concurrency: OnConcurrency = lambda *_: None,
        may_probe: MayProbe | None = None,
        on_opened: Callable[[Sequence[Circuit]], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not servers:
            raise ValueError("at least one mail server is needed")
        self._composer = Composer(sender)
        self._settings = tuple(servers)
        self._circuits = circuits or Circuits()
        self._limits = limits or Limits()
        self._tls = tls or ssl.create_default_context()
        self._on_attempt = on_attempt
        self._on_concurrency = on_concurrency
        self._may_probe = may_probe or _nobody_else_does
        self._on_opened = on_opened
        self._sleep = sleep
        self._now = now
        self._opened: list[_Server] = []

    async def send(self, letter: Letter, *, until: float | None = None) -> Accepted:
        to = message = None
        failure: MailFailure = "mailbox-unknown"
        with suppress(ValueError):  # which may quote the address
            to = mailbox(letter.to)
            failure = "content"
            message = self._composer.compose(letter, to, self._now())
        servers = await self._servers()
        if to is None or message is None:
            raise NotSent(failure, permanent=True, provider=servers[0].provider, attempts=0)
        return await self._through(_Sending(to, message, until), servers)

    async def probe(self, *, until: float | None = None) -> Accepted:
        return await self._through(_Sending("", None, until), await self._servers())

    async def _through(self, sending: _Sending, servers: Sequence[_Server]) -> Accepted:
        return await persist(
            partial(self._try, sending, servers),
            lambda: AsyncRetrying(
                sleep=self._sleep,
                stop=stop_after_attempt(TRIES),
                wait=PAUSE,
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

    async def states(self) -> dict[str, str]:
        """Each server's circuit by `host:port`: "closed", "half-opened" or "opened"."""
        return {server.provider: server.circuit.state for server in await self._servers()}

    async def close(self) -> None:
        """Say goodbye to the servers; call it when nothing is being sent any more."""
        await asyncio.gather(*(server.close() for server in self._opened))

    async def _try(self, sending: _Sending, servers: Sequence[_Server]) -> Accepted:
        """One try, at the first server that lets us."""
        sending.again = False
        retry_after = self._circuits.default_ttl
        for server in sorted(servers, key=lambda server: server.provider in sending.avoided):
            try:
                code = await server.hand_over(sending.to, sending.message, sending.until)
            except CircuitOpen as rejection:
                retry_after = min(retry_after, rejection.retry_after)
                continue
            except _TooLate:
                retry_after = 0.0
                continue
            except _Refused as refusal:
                verdict = refusal.verdict
            else:
                self._report(server, None)
                return Accepted(server.provider, sending.tries + 1, code)
            self._report(server, verdict)
            if verdict.hopeless:
                continue
            sending.last = server.provider, verdict
            if verdict.outage:
                sending.avoided.add(server.provider)
            if verdict.costs_a_try:
                sending.tries += 1
                elsewhere = len(sending.avoided) < len(servers)
                may_help = elsewhere or verdict.failure != "content"  # which is no other in a few seconds
                sending.again = may_help and not verdict.permanent and not verdict.outcome_unknown
                raise sending.failed()
        if sending.last is None:
            raise MailServersAway("no mail server may be called now", retry_after=retry_after)
        raise sending.failed()

    def _report(self, server: _Server, verdict: Verdict | None) -> None:
        if self._on_attempt is not None:
            self._on_attempt(server.provider, "accepted" if verdict is None else verdict.failure)
        if verdict is not None and verdict.alarming:
            event, hint = ALARMS[verdict.failure]
            log.error(event, provider=server.provider, reply=verdict.reply_code, status=verdict.reply_status, hint=hint)

    async def _servers(self) -> Sequence[_Server]:
        """Made at the first call, as purgatory hands out breakers only to coroutines."""
        if not self._opened:
            self._opened = [
                _Server(
                    server,
                    await self._circuits.get_breaker(f"{server.host}:{server.port}"),
                    self._composer.sender,
                    tls=self._tls,
                    limits=self._limits,
                    may_probe=self._may_probe,
                    on_concurrency=self._on_concurrency,
                )
                for server in self._settings
            ]
            self._on_opened([server.circuit for server in self._opened])
        return self._opened


async def _nobody_else_does(_provider: str) -> bool:
    return True
