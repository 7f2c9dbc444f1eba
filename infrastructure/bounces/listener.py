"""An SMTP server for nothing but notifications: it takes mails to bounce addresses, and keeps none of them. Reports of
unwanted mails may come to `BOUNCE_ADDRESS` itself.

Whoever connects may be anybody. So an address counts only with its token, sessions and what one of them may do are
bounded, and what cannot be taken now is refused for now (4xx): who sends notifications comes again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol, cast
from uuid import UUID

import structlog
from aiosmtpd.smtp import SMTP, Envelope, Session, TLSSetupException

from application.ports import Unavailable
from domain.mail_outcome import Bounce
from infrastructure.bounces.addresses import BounceAddresses
from infrastructure.bounces.certificate import Certificate
from infrastructure.bounces.complaints import REPORTED_BY, Complaint
from infrastructure.bounces.notices import Notice, read_complaint, read_notice

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

MAX_BYTES: Final = 256 * 1024
"""Of a notification: ours come back with 7 KiB of their own, as a rule."""
MAX_SESSIONS: Final = 100
MAX_SESSIONS_OF_ONE: Final = 20
"""Of one address: who holds more than that is no mail server that has something to say."""
SESSION_TIMEOUT: Final = 300.0
"""Seconds of a whole session."""
CLIENT_TIMEOUT: Final = 60.0
"""Seconds for which a client may be silent."""
MAX_RECIPIENTS: Final = 10
"""Of one mail: a notification has one."""
MAX_MISTAKES: Final = 10
"""Addresses of a session that name no mail; then it is over."""


class Reports(Protocol):
    """`application.bounce_reports.BounceReports`."""

    @property
    def full(self) -> bool: ...

    async def bounced(self, registration_id: UUID, serial: int, bounce: Bounce) -> None: ...

    async def complained(self, registration_id: UUID, serial: int, reported_by: str) -> None: ...

    def unknown(self) -> None: ...


class BounceListener:
    """Listens from `start` to `stop`.

    Args:
        port: 0 for any free one; the one in use from `start` on.
        certificate: with it STARTTLS is offered, and not demanded: servers that cannot do it have bounces, too.
    """

    def __init__(
        self,
        addresses: BounceAddresses,
        reports: Reports,
        *,
        host: str,
        port: int,
        certificate: Certificate | None = None,
        sessions: int = MAX_SESSIONS,
    ) -> None:
        self.host = host
        self.port = port
        self.addresses = addresses
        self.reports = reports
        self.certificate = certificate
        self.sessions: set[_Session] = set()
        self.most = sessions
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """
        Raises:
            OSError: the address cannot be used.
        """
        loop = asyncio.get_running_loop()
        # aiosmtpd logs every command with its address, and below INFO every line of a mail; flufl.bounce a traceback of
        # each mail that one of its parts stumbles over.
        for name in ("mail.log", "flufl.bounce"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._server = await loop.create_server(lambda: _Session(self, loop), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and drop all sessions: what was not acknowledged comes again."""
        if self._server is not None:
            self._server.close()
            for session in tuple(self.sessions):
                session.abort()
            await self._server.wait_closed()
            self._server = None


class _Session(SMTP):
    """A client's connection: aiosmtpd's protocol with our limits."""

    line_length_limit = MAX_BYTES  # what comes back has longer lines than RFC 5321 allows

    def __init__(self, owner: BounceListener, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            _Handler(owner),
            data_size_limit=MAX_BYTES,
            hostname=owner.addresses.domain,
            ident="ESMTP",
            enable_SMTPUTF8=True,
            timeout=CLIENT_TIMEOUT,
            tls_context=None if owner.certificate is None else owner.certificate.context(),
            command_call_limit={"RCPT": 1000, "*": 1000},
            loop=loop,
        )
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self in self._owner.sessions:  # again, after STARTTLS
            super().connection_made(transport)
            return
        self.peer_address = str((transport.get_extra_info("peername") or ("",))[0])
        beside = sum(1 for one in self._owner.sessions if one.peer_address == self.peer_address)
        if len(self._owner.sessions) >= self._owner.most or beside >= MAX_SESSIONS_OF_ONE:
            there = cast("asyncio.WriteTransport", transport)
            there.write(b"421 4.3.2 too many sessions, come again later\r\n")
            there.close()
            return
        super().connection_made(transport)
        self._owner.sessions.add(self)
        self._deadline = asyncio.get_running_loop().call_later(SESSION_TIMEOUT, self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._owner.sessions:
            self._owner.sessions.discard(self)
            self._deadline.cancel()
            super().connection_lost(error)

    def abort(self) -> None:
        if self.transport is not None:
            cast("asyncio.WriteTransport", self.transport).abort()


class _Handler:
    def __init__(self, owner: BounceListener) -> None:
        self._owner = owner
        self._mistakes = 0

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: _Session, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        addresses = self._owner.addresses
        if addresses.mail_of(address) is None and not addresses.is_plain(address):
            self._owner.reports.unknown()
            self._mistakes += 1
            if self._mistakes > MAX_MISTAKES:
                asyncio.get_running_loop().call_soon(server.abort)
            return "550 5.1.1 no such address here"
        if self._owner.reports.full:
            return "451 4.3.2 too many notifications at present, come again later"
        if len(envelope.rcpt_tos) >= MAX_RECIPIENTS:
            return "452 4.5.3 too many recipients"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 go on"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        mails = self._named(envelope.rcpt_tos)
        # To the address that names none anybody may send anything: what takes long to read it is for the others.
        read: Callable[[bytes], Notice] = read_notice if mails else read_complaint
        notice = await asyncio.to_thread(read, envelope.original_content or b"")
        if not mails and isinstance(notice, Complaint):
            mails = self._named(notice.named)[:1]
        if not mails:
            self._owner.reports.unknown()
            return "550 5.7.1 nothing about a mail of ours"
        try:
            for registration_id, serial in mails:
                await self._report(registration_id, serial, notice)
        except Unavailable:
            return "451 4.3.0 cannot be recorded now, come again later"
        return "250 2.0.0 taken"

    def _named(self, addresses: Iterable[str]) -> list[tuple[UUID, int]]:
        return list(filter(None, map(self._owner.addresses.mail_of, addresses)))

    async def _report(self, registration_id: UUID, serial: int, notice: Notice) -> None:
        reports = self._owner.reports
        if isinstance(notice, Complaint):
            await reports.complained(registration_id, serial, reported_by=REPORTED_BY)
        elif isinstance(notice, Bounce):
            await reports.bounced(registration_id, serial, notice)

    async def handle_exception(self, error: Exception) -> str:
        """Replaces aiosmtpd's own, which repeats what was sent in its reply and in the log."""
        if isinstance(error, TLSSetupException):
            return ""  # the client's own doing; the session is closed without a word
        log.error("bounces.broke_off", error=type(error).__name__, hint="a notification comes again; report this bug")
        return "451 4.3.0 something went wrong"
