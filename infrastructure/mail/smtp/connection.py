"""One SMTP conversation.

aiosmtplib connects, negotiates TLS and logs in. The mail transaction itself is spoken here, because only then is it
known whether a connection was lost before or after the final dot, and because `send_message` costs twice the CPU time.
A server that announces it (PIPELINING) is sent all commands of a mail at once: one round trip before the content
instead of three.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self, cast

from aiosmtplib import SMTP, SMTPException, SMTPResponseException, SMTPServerDisconnected

from application.crash_points import crash_point
from infrastructure.mail.smtp.dialogue import Dialogue, Reply
from infrastructure.mail.smtp.replies import Stage
from infrastructure.settings.values import MailServer


class Progress:
    """How far a try has come.

    Attributes:
        started, ready_at, moved_at: when it began, when it had a session, and when it reached its stage; by the event
            loop's clock.
        on_content: called when the content was sent, and only the server's reply to it is awaited.
    """

    __slots__ = ("_on_move", "_stage", "moved_at", "on_content", "ready_at", "started")

    def __init__(self, started: float, *, on_move: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            on_move: called whenever it reaches a stage.
        """
        self.started = self.ready_at = self.moved_at = started
        self.on_content: Callable[[], None] = lambda: None
        self._stage: Stage = "connect"
        self._on_move = on_move

    @property
    def stage(self) -> Stage:
        return self._stage

    @stage.setter
    def stage(self, stage: Stage) -> None:
        self._stage = stage
        self.moved_at = asyncio.get_running_loop().time()
        self._on_move()


@dataclass(slots=True, eq=False)
class Connection:
    """A session that is ready for a mail: greeted, encrypted and logged in as its server demands.

    Attributes:
        pipelining: commands may be sent ahead of the replies. After a refusal they are not: a DATA that is then in vain
            is one more error to a server that counts them.
        mails: how many it has carried.
        reset_first: the latest mail was refused; its transaction has to be reset before the next.
        refused_after: seconds that the server took over its latest refusal of a command of a mail.
        expiry: timer that closes it after it has been idle for too long.
    """

    dialogue: Dialogue
    pipelining: bool = False
    mails: int = 0
    reset_first: bool = False
    refused_after: float = 0.0
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)
    _ahead: int = 0  # commands that were sent and whose replies were not read

    @classmethod
    async def open(
        cls, line: socket.socket, server: MailServer, greeting: str, tls: ssl.SSLContext, progress: Progress
    ) -> Self:
        """
        Args:
            line: to the server; it is the connection's from now on.
        """
        client = SMTP(
            hostname=server.host,
            sock=line,
            local_hostname=greeting,
            use_tls=server.scheme == "smtps",
            start_tls=False,
            tls_context=tls,
            timeout=None,  # the try has one
        )
        progress.stage = "greeting"
        try:
            await client.connect()
        except BaseException:
            line.close()
            raise
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
            if client.transport is not None:
                cast("asyncio.WriteTransport", client.transport).abort()
            client.close()
            raise
        if client.transport is None:
            raise ConnectionResetError
        return cls(Dialogue(cast("asyncio.WriteTransport", client.transport)), client.supports_extension("pipelining"))

    async def begin(self, sender: bytes, to: str | None) -> None:
        """Begin a mail: returns when the server has accepted its sender.

        Args:
            to: whom it is for, so that the commands that follow can be sent along; None: it will be reset.
        """
        if self.reset_first:
            await self._forget_what_was_sent_ahead()
            await self.reset()
            self.reset_first = False
        self.mails += 1
        commands = [b"MAIL FROM:<%b>" % sender]
        if to is not None and self.pipelining:
            commands += [_recipient(to), b"DATA"]
        self.dialogue.ask(*commands)
        self._ahead = len(commands)
        await self._answered()

    async def _forget_what_was_sent_ahead(self) -> None:
        """Read what the server said to the commands behind a refused one.

        Raises:
            SMTPServerDisconnected: it waits for content, though nobody is to get it; the session is of no use.
        """
        while self._ahead:
            self._ahead -= 1
            if (await self.dialogue.reply()).code // 100 == 3:
                raise SMTPServerDisconnected("the server waits for a mail that it has refused")

    async def reset(self) -> None:
        await self._command(b"RSET")

    async def send(self, to: str, message: bytes, progress: Progress) -> Reply:
        """The rest of a transaction after `begin`. Returns the reply by which the server accepted the mail.

        From the first byte of the content on, only that reply tells whether it has.
        """
        progress.stage = "rcpt"
        await (self._answered() if self._ahead else self._command(_recipient(to)))
        progress.stage = "data"
        await (self._answered(expected=3) if self._ahead else self._command(b"DATA", expected=3))
        self.dialogue.deliver(message)
        progress.stage = "end-of-data"
        progress.on_content()
        crash_point("worker.before_eod_reply")
        reply = await self.dialogue.reply()
        if reply.code // 100 != 2:
            self.refused_after = 0.0  # it looked at the content
            raise SMTPResponseException(*reply)
        return reply

    async def _command(self, command: bytes, expected: int = 2) -> None:
        self.dialogue.ask(command)
        self._ahead = 1
        await self._answered(expected)

    async def _answered(self, expected: int = 2) -> None:
        """Return once the server has said yes to the first command that it has not answered."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        code, text = await self.dialogue.reply()
        self._ahead -= 1
        if code // 100 != expected:
            self.refused_after = loop.time() - since
            self.pipelining = False
            raise SMTPResponseException(code, text)

    @property
    def is_usable(self) -> bool:
        """Is it open, as far as is known?"""
        return self.dialogue.is_usable

    def abort(self) -> None:
        self.dialogue.abort()

    async def quit(self, timeout: float) -> None:
        """Send QUIT; its reply does not matter and is awaited for at most `timeout` seconds."""
        with suppress(OSError, SMTPException):
            async with asyncio.timeout(timeout):
                await self._forget_what_was_sent_ahead()
                self.dialogue.ask(b"QUIT")
                await self.dialogue.reply()
        self.abort()


def _recipient(to: str) -> bytes:
    return b"RCPT TO:<%b>" % to.encode("ascii")
