"""Notifications of mails that came back, and whoever hands them over."""

from __future__ import annotations

import asyncio
import quopri
from base64 import b64encode
from contextlib import suppress
from types import TracebackType
from typing import Self
from uuid import UUID

from domain.mail_outcome import Bounce


class Reported:
    """Implements `infrastructure.bounces.listener.Reports`."""

    full = False

    def __init__(self) -> None:
        self.told: list[tuple[UUID, int, Bounce | str]] = []
        self.of_nothing = 0

    async def bounced(self, registration_id: UUID, serial: int, bounce: Bounce) -> None:
        self.told.append((registration_id, serial, bounce))

    async def complained(self, registration_id: UUID, serial: int, reported_by: str) -> None:
        self.told.append((registration_id, serial, reported_by))

    def unknown(self) -> None:
        self.of_nothing += 1


def notification(
    *, action: str = "failed", status: str | None = "5.1.1", kind: str = "message/delivery-status"
) -> bytes:
    """As RFC 3464 has it, about somebody else's address: whom it names must not matter."""
    lines = [
        "From: MAILER-DAEMON@mx.example.com",
        "To: bounces@mail.example.org",
        "Subject: Undelivered",
        "MIME-Version: 1.0",
        'Content-Type: multipart/report; report-type=delivery-status; boundary="=_b"',
        "",
        "--=_b",
        f"Content-Type: {kind}",
        "",
        "Reporting-MTA: dns; mx.example.com",
        "",
        "Final-Recipient: rfc822; somebody@else.example",
        f"Action: {action}",
        *([f"Status: {status}"] if status is not None else []),
        "",
        "--=_b--",
        "",
    ]
    return "\r\n".join(lines).encode()


def feedback_report(*, about: str, kind: str = "abuse", encoding: str = "7bit") -> bytes:
    """As RFC 5965 has it, about a mail with this envelope's sender; whom it names otherwise must not matter."""
    original = f"Return-Path: <{about}>\r\nTo: somebody@else.example\r\nSubject: Your code\r\n".encode()
    if encoding == "quoted-printable":
        original = quopri.encodestring(original.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
    elif encoding == "base64":
        original = b64encode(original)
    head = [
        "From: feedback@mx.example.com",
        "To: bounces@mail.example.org",
        "Subject: FW: Your code",
        "MIME-Version: 1.0",
        'Content-Type: multipart/report; report-type=feedback-report; boundary="=_b"',
        "",
        "--=_b",
        "Content-Type: text/plain",
        "",
        "This is an email abuse report.",
        "--=_b",
        "Content-Type: message/feedback-report",
        "",
        f"Feedback-Type: {kind}",
        "User-Agent: SomeGenerator/1.0",
        "Version: 1",
        "",
        "--=_b",
        "Content-Type: text/rfc822-headers",
        f"Content-Transfer-Encoding: {encoding}",
        "",
        "",
    ]
    return "\r\n".join(head).encode() + original + b"\r\n--=_b--\r\n"


class MailExchanger:
    """Another provider's server, which sends notifications."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.greeting = await self._reply()
        if self.greeting == 220:
            assert await self._ask(b"EHLO mx.example.com") == 250
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    async def notify(self, to: str, content: bytes | None = None) -> int:
        """Hand one over; the code by which it, or its address, was taken or refused; 0: the session has ended."""
        if await self._ask(b"RSET") == 0:
            return 0
        assert await self._ask(b"MAIL FROM:<>") == 250
        code = await self._ask(b"RCPT TO:<%b>" % to.encode())
        if code != 250:
            return code
        assert await self._ask(b"DATA") == 354
        return await self._ask((notification() if content is None else content) + b"\r\n.")

    async def _ask(self, command: bytes) -> int:
        self._writer.write(command + b"\r\n")
        return await self._reply()

    async def _reply(self) -> int:
        with suppress(ConnectionError):
            while line := await self._reader.readline():
                if line[3:4] != b"-":
                    return int(line[:3])
        return 0
