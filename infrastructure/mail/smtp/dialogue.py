"""What is said on a session once it is open: commands out, replies in, each reply to its command.

aiosmtplib opens sessions, but drops a reply that arrives together with the one before. To send commands ahead of the
replies (PIPELINING, RFC 2920) takes a reader that keeps them all.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from aiosmtplib import SMTPResponseException, SMTPServerDisconnected

MAX_REPLY: Final = 32768
"""Bytes of replies that were not read yet; a reply has some hundreds."""

_LINE: Final = re.compile(rb"([0-9]{3})(?:([- ])([^\r\n]*))?\r?\n")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_MALFORMED: Final = -1


class Reply(NamedTuple):
    """RFC 5321, 4.2; the lines of the text are joined by line feeds."""

    code: int
    text: str


class Dialogue(asyncio.Protocol):
    """Takes a session over from the protocol that opened it.

    What a server says unasked makes the session unusable: it is about to end it (RFC 5321, 3.8), and whatever it meant
    must not be taken for the reply to a command.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._received = bytearray()
        self._lines: list[bytes] = []  # of the reply under way
        self._replies: deque[Reply] = deque()
        self._asked = 0  # commands whose reply has not arrived
        self._waiting: asyncio.Future[None] | None = None
        self._broken: Callable[[], Exception] | None = None
        transport.set_protocol(self)

    @property
    def is_usable(self) -> bool:
        """Is it open, as far as is known?"""
        return self._broken is None and not self._transport.is_closing()

    def ask(self, *commands: bytes) -> None:
        """Send commands, several of them ahead of the replies; `reply` returns one for each, in order.

        Raises:
            SMTPServerDisconnected: the session has ended.
            ValueError: a command is none, but several lines.
        """
        if any(_CONTROL.search(command) for command in commands):
            raise ValueError("a command contains a control character")
        self._write(b"".join(b"%b\r\n" % command for command in commands), len(commands))

    def deliver(self, content: bytes) -> None:
        """Send a mail's content, for which the server has asked; `reply` returns what it says to that.

        Raises:
            SMTPServerDisconnected: the session has ended.
        """
        self._write(content, 1)

    def _write(self, data: bytes, expected: int) -> None:
        if self._broken is not None:
            raise self._broken()
        if self._transport.is_closing():
            raise SMTPServerDisconnected("Connection lost")
        self._asked += expected
        self._transport.write(data)

    async def reply(self) -> Reply:
        """The next reply.

        Raises:
            SMTPServerDisconnected: the session has ended before.
            SMTPResponseException: what came is no reply.
        """
        while not self._replies:
            if self._broken is not None:
                raise self._broken()
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        return self._replies.popleft()

    def abort(self) -> None:
        """Drop the connection at once: to close it would wait for a TLS peer that may be gone."""
        self._transport.abort()

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self._broken is None and (end := self._received.find(b"\n") + 1):
            line = bytes(self._received[:end])
            del self._received[:end]
            self._take(line)
        if len(self._received) + sum(map(len, self._lines)) > MAX_REPLY:
            self._break(lambda: SMTPResponseException(_MALFORMED, "the reply is too long"))
        self._wake()

    def eof_received(self) -> None:
        self._break(lambda: SMTPServerDisconnected("Connection lost"))

    def connection_lost(self, exc: Exception | None) -> None:
        def lost() -> Exception:
            error = SMTPServerDisconnected("Connection lost")
            error.__cause__ = exc
            return error

        self._break(lost)

    def _take(self, line: bytes) -> None:
        found = _LINE.fullmatch(line)
        if found is None:
            self._break(lambda: SMTPResponseException(_MALFORMED, "what came is no reply"))
            return
        self._lines.append(found[3] or b"")
        if found[2] == b"-":
            return
        text = b"\n".join(one.strip(b" \t") for one in self._lines).decode("utf-8", "surrogateescape")
        self._lines.clear()
        if not self._asked:
            self._break(lambda: SMTPServerDisconnected("the server has spoken unasked"))
            return
        self._asked -= 1
        self._replies.append(Reply(int(found[1]), text))

    def _break(self, error: Callable[[], Exception]) -> None:
        """The session is of no use any more; the replies that have arrived still count."""
        self._broken = self._broken or error
        self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done() and (self._replies or self._broken is not None):
            self._waiting.set_result(None)
