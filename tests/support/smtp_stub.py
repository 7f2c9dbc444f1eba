"""A mail server that misbehaves as told, at any stage of the conversation, and keeps every byte it was sent.

async with SmtpStub() as stub:
    stub.at("rcpt", "450 4.7.1 greylisted", times=1)   # a reply of our own
    stub.at("quit", "hang")                            # never answer, for ever
    stub.at("eod", "drop")                             # cut the connection
    stub.at("rcpt", lambda: "450 busy" if busy else None)   # decided each time
    stub.at("eod", "wait")                             # with the answer, for `stub.go_on`
    stub.bears = 3                                     # mails at the same time; to more it says `stub.throttle`
    stub.mails_per_session = 10                        # then 421
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Self

Action = str | Callable[[], str | None]
Stage = Literal["banner", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "eod", "rset", "quit"]


@dataclass
class Mail:
    """A mail whose final dot was received, at `at`; `data` is as sent, with its dots still stuffed."""

    sender: bytes
    recipients: list[bytes]
    data: bytes
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass
class Session:
    """One connection: all that was received on it, commands and mail data, after TLS in clear."""

    received: bytearray = field(default_factory=bytearray)
    commands: list[bytes] = field(default_factory=list)  # first words only
    encrypted: bool = False
    over: bool = False
    busy: bool = False
    mails: int = 0


class _HangUpError(Exception):
    pass


class SmtpStub:
    """Listens on a free port of 127.0.0.1 while entered.

    Args:
        tls: certificate to offer by STARTTLS, or with `implicit` to speak TLS from the first byte.
        offer_starttls: False strips the offer, as somebody in the middle would.
        credentials: user and password to demand; AUTH is offered only where they are given.
        pipelining: take commands ahead of the replies.

    All but `implicit` may be changed between sessions. `faults` counts by stage how often it misbehaved; what it
    throttles is counted as "too many at once" and "too many on one connection".
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
        offer_starttls: bool = True,
        credentials: tuple[str, str] | None = None,
        pipelining: bool = False,
        port: int = 0,
    ) -> None:
        self.port = port
        self.sessions: list[Session] = []
        self.mails: list[Mail] = []
        self.peak = 0
        self.tls = tls
        self.offer_starttls = offer_starttls
        self.credentials = credentials
        self.pipelining = pipelining
        self.faults: Counter[str] = Counter()
        self.bears: int | None = None
        self.mails_per_session: int | None = None
        self.throttle = "450 4.7.0 too many at once"
        self.go_on = asyncio.Event()
        self._implicit = implicit
        self._plans: dict[str, list[Action]] = {}
        self._always: dict[str, Action] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    def at(self, stage: Stage, action: Action, *, times: int | None = None) -> Self:
        """From now on do `action` at `stage`: "hang", "drop", "wait", a reply or what it answers; `times=None`: until
        `heal`."""
        if times is None:
            self._always[stage] = action
        else:
            self._plans.setdefault(stage, []).extend([action] * times)
        return self

    def heal(self) -> None:
        self._plans.clear()
        self._always.clear()

    async def until(self, condition: Callable[[], bool], *, deadline: float = 5.0) -> None:
        """Return when `condition` holds; it is looked at whenever something is received or a session ends."""
        async with asyncio.timeout(deadline):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    @property
    def received(self) -> bytes:
        return b"".join(bytes(session.received) for session in self.sessions)

    def drop_connections(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self.tls if self._implicit else None
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.drop_connections()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        session = Session(encrypted=self._implicit)
        self.sessions.append(session)
        self.peak = max(self.peak, sum(not session.over for session in self.sessions))
        with suppress(_HangUpError, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            await _Conversation(self, session, reader, writer).run()
        session.over = True
        writer.transport.abort()
        self._tasks.discard(task)
        self._changed.set()

    def _too_many(self, session: Session) -> str | None:
        """What is said to a mail that is too much; to any other nothing, and it is begun."""
        if self.mails_per_session is not None and session.mails >= self.mails_per_session:
            self.faults["too many on one connection"] += 1
            return "421 4.7.0 too many on one connection"
        if self.bears is not None and sum(one.busy for one in self.sessions if not one.over) >= self.bears:
            self.faults["too many at once"] += 1
            return self.throttle
        session.busy = True
        session.mails += 1
        return None

    def _action(self, stage: str) -> str | None:
        plan = self._plans.get(stage)
        action = plan.pop(0) if plan else self._always.get(stage)
        if callable(action):
            action = action()
        if action is not None:
            self.faults[stage] += 1
        return action


class _Conversation:
    def __init__(
        self, stub: SmtpStub, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.stub, self.session, self.reader, self.writer = stub, session, reader, writer

    async def run(self) -> None:
        await self.answer("banner", "220 stub.test ESMTP")
        mail: Mail | None = None
        while True:
            line = await self.line()
            verb, _, rest = line.partition(b" ")
            self.session.commands.append(verb.upper())
            match verb.upper():
                case b"EHLO":
                    await self.answer("ehlo", "\r\n".join(self.greeting()))
                case b"STARTTLS":
                    await self.answer("starttls", "220 go ahead")
                    if self.stub.tls is None:
                        raise _HangUpError
                    await self.writer.start_tls(self.stub.tls)
                    self.session.encrypted = True
                case b"AUTH":
                    await self.authenticate(rest)
                case b"MAIL":
                    mail = Mail(rest.split(b":", 1)[1].split(b" ")[0].strip(b"<>"), [], b"")
                    if not await self.answer("mail", self.stub._too_many(self.session) or "250 2.1.0 fine"):
                        mail = None
                case b"RCPT" | b"DATA" if mail is None:
                    self.writer.write(b"503 5.5.1 nobody has begun a mail\r\n")
                case b"RCPT" if mail is not None:
                    if await self.answer("rcpt", "250 2.1.5 fine"):
                        mail.recipients.append(rest.split(b":", 1)[1].strip(b"<>"))
                case b"DATA" if mail is not None:
                    if not await self.answer("data", "354 go ahead" if mail.recipients else "554 5.5.1 to whom?"):
                        continue
                    mail.data = await self.content()
                    mail.at = datetime.now(UTC)
                    action = self.stub._action("eod")
                    if action is None or action[0] not in "45":
                        self.stub.mails.append(mail)
                    self.session.busy = False
                    await self.act(action, "250 2.0.0 accepted")
                case b"RSET":
                    self.session.busy = False
                    await self.answer("rset", "250 2.0.0 forgotten")
                case b"QUIT":
                    await self.answer("quit", "221 2.0.0 bye")
                    raise _HangUpError
                case _:
                    self.writer.write(b"502 5.5.1 unknown\r\n")

    def greeting(self) -> Iterator[str]:
        yield "250-stub.test"
        if self.stub.tls and self.stub.offer_starttls and not self.session.encrypted:
            yield "250-STARTTLS"
        if self.stub.credentials:
            yield "250-AUTH PLAIN LOGIN"
        if self.stub.pipelining:
            yield "250-PIPELINING"
        yield "250 8BITMIME"

    async def authenticate(self, words: bytes) -> None:
        mechanism, _, initial = words.partition(b" ")
        assert self.stub.credentials is not None
        if mechanism.upper() == b"PLAIN":
            offered = base64.b64decode(initial).split(b"\0")[1:]
        else:
            self.writer.write(b"334 UGFzc3dvcmQ6\r\n")
            offered = [base64.b64decode(initial), base64.b64decode(await self.line())]
        right = offered == [part.encode() for part in self.stub.credentials]
        await self.answer("auth", "235 2.7.0 welcome" if right else "535 5.7.8 wrong credentials")

    async def answer(self, stage: str, reply: str) -> bool:
        """True: it was a positive answer."""
        return await self.act(self.stub._action(stage), reply)

    async def act(self, action: str | None, reply: str) -> bool:
        match action:
            case "hang":
                self.note(await self.reader.read())  # until the client gives up
                raise _HangUpError
            case "drop":
                raise _HangUpError
            case "wait":
                await self.stub.go_on.wait()
            case str(own):
                reply = own
        self.writer.write(reply.encode() + b"\r\n")
        await self.writer.drain()
        if reply.startswith("421"):
            raise _HangUpError
        return reply[0] in "23"

    async def line(self) -> bytes:
        line = await self.reader.readuntil(b"\r\n")
        self.note(line)
        return line.removesuffix(b"\r\n")

    async def content(self) -> bytes:
        data = b""
        while not (data == b".\r\n" or data.endswith(b"\r\n.\r\n")):
            chunk = await self.reader.readuntil(b"\r\n")
            self.note(chunk)
            data += chunk
        return data.removesuffix(b".\r\n")

    def note(self, received: bytes) -> None:
        self.session.received += received
        self.stub._changed.set()
