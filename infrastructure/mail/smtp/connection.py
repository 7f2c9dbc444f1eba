"""One SMTP conversation.

aiosmtplib connects, negotiates TLS and logs in. The mail transaction itself is spoken command by command, because
only then is it known whether a connection was lost before or after the final dot, and because `send_message` costs
twice the CPU time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from aiosmtplib import SMTP, SMTPException, SMTPResponseException
from aiosmtplib.protocol import SMTPProtocol

from application.crash_points import crash_point
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
        mails: how many it has carried.
        reset_first: the latest mail was refused; its transaction has to be reset before the next.
        refused_after: seconds that the server took over its latest refusal of a command of a mail.
        expiry: timer that closes it after it has been idle for too long.
    """

    client: SMTP
    protocol: SMTPProtocol
    mails: int = 0
    reset_first: bool = False
    refused_after: float = 0.0
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)

    @classmethod
    async def open(
        cls, line: socket.socket, server: MailServer, greeting: str, tls: ssl.SSLContext, progress: Progress
    ) -> Connection:
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
            _abort(client)
            raise
        if client.protocol is None:
            raise ConnectionResetError
        return cls(client, client.protocol)

    async def begin(self, sender: bytes) -> None:
        if self.reset_first:
            await self.reset()
            self.reset_first = False
        self.mails += 1
        await self._command(b"MAIL", b"FROM:<%b>" % sender)

    async def reset(self) -> None:
        await self._command(b"RSET")

    async def send(self, to: str, message: bytes, progress: Progress) -> int:
        """The rest of a transaction after `begin`. Returns the code of the reply by which the server accepted the mail.

        From the first byte of the content on, only that reply tells whether it has.
        """
        progress.stage = "rcpt"
        await self._command(b"RCPT", b"TO:<%b>" % to.encode("ascii"))
        progress.stage = "data"
        await self._command(b"DATA", expected=3)
        self.protocol.write(message)
        progress.stage = "end-of-data"
        progress.on_content()
        crash_point("worker.before_eod_reply")
        code, text = await self.protocol.read_response()
        if code // 100 != 2:
            self.refused_after = 0.0  # it looked at the content
            raise SMTPResponseException(code, text)
        return code

    async def _command(self, *words: bytes, expected: int = 2) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        code, text = await self.protocol.execute_command(*words)
        if code // 100 != expected:
            self.refused_after = loop.time() - asked
            raise SMTPResponseException(code, text)

    def abort(self) -> None:
        _abort(self.client)

    async def quit(self, timeout: float) -> None:
        """Send QUIT; its reply does not matter and is awaited for at most `timeout` seconds."""
        with suppress(OSError, SMTPException):
            async with asyncio.timeout(timeout):
                await self.protocol.execute_command(b"QUIT")
        self.abort()


def _abort(client: SMTP) -> None:
    """Drop the connection at once: `close` would wait for a TLS peer that may be gone."""
    if client.transport is not None:
        cast("asyncio.WriteTransport", client.transport).abort()
    client.close()
