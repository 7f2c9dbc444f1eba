"""The embedded mailbox: a real SMTP server on this machine that stores what it receives and delivers nothing.

It stands in for a mail server until one is configured. A mail is on disk before it is acknowledged, one file each,
readable by any mail program; the newest thousand are kept. The mails carry codes: files and directory are readable by
their owner alone.
"""

from __future__ import annotations

import asyncio
import email
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from itertools import takewhile
from pathlib import Path
from typing import Final, cast

import structlog
from aiosmtpd.smtp import SMTP, Envelope, Session

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

MAX_MAILS: Final = 1_000
"""The oldest are deleted first."""
MAX_MAIL_BYTES: Final = 256 * 1024
"""Ours have about 7 KiB, and 1,000 of the largest still fit into memory."""
CLIENT_TIMEOUT: Final = 60.0
"""Seconds for which a client may be silent; ours keeps an idle connection for 30 s."""


@dataclass(frozen=True, slots=True)
class MailboxMessage:
    """A mail as `GET /mailbox/messages` shows it.

    Attributes:
        to: the recipient of the envelope; a mail to several is stored once for each.
        headers: by name; the values of a repeated one are joined by line feeds.
        received_at: UTC.
    """

    to: str
    subject: str
    text: str
    html: str
    headers: dict[str, str]
    received_at: datetime


class Mailbox:
    """Listens on the loopback interface from `start` to `stop`.

    Args:
        directory: where the mails are stored; created if missing.
        port: 0 for any free one.
        max_mails: how many are kept.
        now: nanoseconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        max_mails: int = MAX_MAILS,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.host = host
        self.port = port
        self._files = _Files(directory)
        self._max_mails = max_mails
        self._now = now
        self._last = 0
        self._messages: dict[int, MailboxMessage] = {}  # by time of arrival, oldest first
        self._writer: ThreadPoolExecutor | None = None
        self._server: asyncio.Server | None = None
        self._sessions: set[_Session] = set()

    async def start(self) -> None:
        """Read what is stored, then listen; `port` is the one in use from then on.

        Raises:
            OSError: the directory or the port cannot be used.
        """
        loop = asyncio.get_running_loop()
        # aiosmtpd logs every command with its address, and below INFO every line of a mail.
        logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mailbox")
        self._messages = await loop.run_in_executor(self._writer, self._files.load, self._max_mails)
        self._last = max(self._messages, default=0)
        self._server = await loop.create_server(lambda: _Session(self, loop), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, drop all connections, and finish what is being written."""
        if self._server is not None:
            self._server.close()
            for session in tuple(self._sessions):
                session.abort()
            await self._server.wait_closed()
            self._server = None
        if self._writer is not None:
            await asyncio.to_thread(self._writer.shutdown)
            self._writer = None

    def messages(self, to: str | None = None, *, after: datetime | None = None) -> list[MailboxMessage]:
        """Newest first.

        Args:
            to: only those to that address, its case ignored.
            after: only those that arrived later.
        """
        newest_first = reversed(self._messages.values())
        found = newest_first if after is None else takewhile(lambda one: one.received_at > after, newest_first)
        return [message for message in found if to is None or message.to.lower() == to.lower()]

    @property
    def count(self) -> int:
        """How many mails there are."""
        return len(self._messages)

    def clear(self) -> None:
        """Delete all mails; one that is arriving meanwhile stays."""
        self._files.delete(self._messages)
        self._messages.clear()

    async def _store(self, recipients: list[str], content: bytes) -> None:
        if self._writer is None:
            raise ConnectionAbortedError
        arrivals = []
        for recipient in recipients:
            # Unique as it is told, in microseconds, and in order even if the clock is set back.
            self._last = max(self._now(), self._last + 1000)
            arrivals.append((self._last, recipient))
        stored = await asyncio.get_running_loop().run_in_executor(self._writer, self._files.write, arrivals, content)
        self._messages |= stored
        surplus = list(self._messages)[: -self._max_mails]
        for arrival in surplus:
            del self._messages[arrival]
        if surplus and self._writer is not None:
            self._writer.submit(self._files.delete, surplus)


class _Session(SMTP):
    """A client's connection: aiosmtpd's protocol with our limits, registered with the mailbox while it lasts."""

    def __init__(self, owner: Mailbox, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            _Handler(owner),
            data_size_limit=MAX_MAIL_BYTES,
            hostname="mailbox.localhost",
            timeout=CLIENT_TIMEOUT,
            loop=loop,
        )
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._owner._sessions.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner._sessions.discard(self)
        super().connection_lost(error)

    def abort(self) -> None:
        if self.transport is not None:
            cast("asyncio.WriteTransport", self.transport).abort()


class _Handler:
    def __init__(self, owner: Mailbox) -> None:
        self._owner = owner

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.original_content or b""
        # Shielded: once the dot is read the mail is stored completely, even if the client does not wait for the reply.
        try:
            await asyncio.shield(self._owner._store(list(envelope.rcpt_tos), content))
        except OSError as error:
            log.error("the mailbox cannot store a mail, check disk space and rights", error=type(error).__name__)  # noqa: TRY400 - a traceback is of no use here
            return "452 4.3.1 cannot store it now"
        return "250 2.0.0 stored"

    async def handle_exception(self, error: Exception) -> str:
        """Replaces aiosmtpd's own, which repeats what was sent in its reply and in the log."""
        log.error("the mailbox broke off a conversation", error=type(error).__name__)
        return "451 4.3.0 something went wrong"


class _Files:
    """One file per mail: `<nanoseconds of arrival>.eml`, with the envelope's recipient as its first header."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, kept: int) -> dict[int, MailboxMessage]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for unfinished in self._directory.glob("*.tmp"):
            unfinished.unlink()
        arrivals = sorted(int(path.stem) for path in self._directory.glob("*.eml") if path.stem.isdecimal())
        self.delete(arrivals[:-kept])
        return {arrival: _read(arrival, self._path(arrival).read_bytes()) for arrival in arrivals[-kept:]}

    def write(self, arrivals: list[tuple[int, str]], content: bytes) -> dict[int, MailboxMessage]:
        stored = {}
        for arrival, recipient in arrivals:
            mail = b"Delivered-To: %b\r\n%b" % (recipient.encode("utf-8", "replace"), content)
            path = self._path(arrival)
            temporary = path.with_suffix(".tmp")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(mail)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            stored[arrival] = _read(arrival, mail)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)  # otherwise a power failure may undo the renaming
        finally:
            os.close(directory)
        return stored

    def delete(self, arrivals: Iterable[int]) -> None:
        for arrival in arrivals:
            self._path(arrival).unlink(missing_ok=True)

    def _path(self, arrival: int) -> Path:
        return self._directory / f"{arrival:020d}.eml"


def _read(arrival: int, mail: bytes) -> MailboxMessage:
    message = email.message_from_bytes(mail)  # the modern policy takes 2 ms for one of ours, this one 0.2 ms
    headers: dict[str, str] = {}
    for name, raw in message.items():
        value = _decoded(str(raw))
        headers[name] = f"{headers[name]}\n{value}" if name in headers else value
    to = headers.pop("Delivered-To", "").partition("\n")[0]
    seconds, nanoseconds = divmod(arrival, 10**9)
    received_at = datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)
    subject = headers.get("Subject", "")
    return MailboxMessage(to, subject, _body(message, "text/plain"), _body(message, "text/html"), headers, received_at)


def _decoded(header: str) -> str:
    unfolded = "".join(header.splitlines())
    if "=?" not in unfolded:
        return unfolded
    try:
        return str(make_header(decode_header(unfolded)))
    except (ValueError, LookupError, HeaderParseError):
        return unfolded


def _body(message: Message, kind: str) -> str:
    """The first part of that kind, empty if there is none; undecodable bytes are replaced."""
    for part in message.walk():
        payload = part.get_payload(decode=True) if part.get_content_type() == kind else None
        if isinstance(payload, bytes):
            try:
                text = payload.decode(part.get_content_charset("utf-8"), "replace")
            except LookupError:
                text = payload.decode("utf-8", "replace")
            return text.replace("\r\n", "\n")
    return ""
