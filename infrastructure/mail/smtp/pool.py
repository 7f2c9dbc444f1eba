"""The connections to one mail server: reused as far as the server allows, and closed with QUIT."""

from __future__ import annotations

import asyncio
import math
import ssl
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from aiosmtplib import SMTPException, SMTPResponseException

from infrastructure.mail.smtp.connection import Connection, Progress
from infrastructure.mail.smtp.replies import is_plain_refusal, may_be_used_up
from infrastructure.reach import reach
from infrastructure.settings.values import MailServer

CONNECTIONS: Final = 32
"""Maximum number open to one server; large providers allow 10 to 50 from one client."""
FIRST_CONNECTIONS: Final = 4
"""Open at first. A server that refuses the eleventh in ten minutes, or closes the sixth, has not been asked for 32."""
MAILS_PER_CONNECTION: Final = 100
"""Postfix and Exchange Online end a session after 100 to 1,000; a new connection per 100 costs 1 %."""
LEARNED_FOR: Final = 100
"""Used-up connections until the server is tested with more mails per connection again, which costs each open
connection a round trip. That way a limit learned by mistake is forgotten."""
SCARCE_FOR: Final = timedelta(minutes=10)
"""How long sessions are kept after a server has refused a further one: Sendmail counts connections per that time."""
SCARCE_IDLE: Final = timedelta(minutes=4)
"""How long they are then kept without a mail; RFC 5321, 4.5.3.2.7, has servers wait for five minutes."""
SLOW_REFUSAL: Final = timedelta(seconds=2)
"""A server that takes longer over a refusal punishes this session: Courier waits 8, 16, 32, … s at each unknown
mailbox. The next mail gets another one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a try may take, and how connections are kept.

    Attributes:
        timeout: of one try, from the first packet to the end of the content (`SEND_TIMEOUT`).
        content_timeout: then for the reply to it (`ACCEPT_TIMEOUT`): RFC 5321, 4.5.3.2.6. A server that scans mails for
            viruses takes seconds; a mail whose reply was not waited for is sent again, and arrives as often as it is
            tried.
        idle: how long an unused connection is kept.
        quit_timeout: how long to wait for the reply to QUIT, which does not matter.
        connections, mails_per_connection: maximum; fewer once a server says that it is too many.
        first_connections: open at first; see `infrastructure.mail.concurrency_limit`.
        learned_for: see `LEARNED_FOR`.
    """

    timeout: timedelta = timedelta(seconds=10)
    content_timeout: timedelta = timedelta(minutes=10)
    idle: timedelta = timedelta(seconds=30)
    quit_timeout: timedelta = timedelta(seconds=2)
    connections: int = CONNECTIONS
    first_connections: int = FIRST_CONNECTIONS
    mails_per_connection: int = MAILS_PER_CONNECTION
    learned_for: int = LEARNED_FOR


class MailsPerConnection:
    """How many mails a server accepts on one connection, learned from when it closes them.

    A server that closes a connection with 421 and accepts the mail on a new one may have a limit of mails per
    connection. It has if it closes the next one after as many.
    """

    def __init__(self, limit: int, *, learned_for: int) -> None:
        self.limit = limit
        self._most = limit
        self._learned_for = learned_for
        self._ended_after: int | None = None  # mails on the latest connection that the server closed
        self._used_up = 0  # connections since the limit was learned

    def ended(self, mails: int) -> None:
        """The server closed a connection after that many mails, and accepted the next mail on a new one."""
        if mails == self._ended_after:
            self.limit, self._used_up = mails, 0
        self._ended_after = mails

    def used_up(self, mails: int) -> bool:
        """Has a connection carried as many mails as it may? Then it has to be closed."""
        if mails < self.limit:
            return False
        self._used_up += 1
        if self._used_up == self._learned_for:
            self.limit = self._most
        return True


class ConnectionPool:
    """Idle connections to one server, for the next mails.

    The number of open connections is not limited here but by `server.Server`, before a mail gets to the pool.

    Args:
        sender: used in MAIL FROM where a mail has no other; its domain is used in EHLO.
    """

    def __init__(self, server: MailServer, *, sender: str, tls: ssl.SSLContext, limits: Limits) -> None:
        self._server = server
        self._sender = sender.encode("ascii")
        self._greeting = sender.rpartition("@")[2]
        self._tls = tls
        self._idle_seconds = limits.idle.total_seconds()
        self._quit_seconds = limits.quit_timeout.total_seconds()
        self._stale_seconds = limits.timeout.total_seconds() / 2  # leaves time for a new connection
        self._mails_per_connection = MailsPerConnection(limits.mails_per_connection, learned_for=limits.learned_for)
        self._idle: list[Connection] = []
        self._quitting: set[asyncio.Task[None]] = set()
        self._closed = False
        self._scarce_until = -math.inf
        self._silent: dict[str, float] = {}  # when an address last took a connection and did not open a session on it

    @property
    def idle(self) -> int:
        """How many sessions wait for a mail."""
        return len(self._idle)

    def keep_sessions(self) -> None:
        """The server has refused a further one: those that there are will be needed."""
        self._scarce_until = asyncio.get_running_loop().time() + SCARCE_FOR.total_seconds()
        for connection in self._idle:
            self._let_expire(connection)

    def _let_expire(self, connection: Connection) -> None:
        if connection.expiry is not None:
            connection.expiry.cancel()
        idle = max(self._idle_seconds, SCARCE_IDLE.total_seconds()) if self._is_scarce else self._idle_seconds
        connection.expiry = asyncio.get_running_loop().call_later(idle, self._expire, connection)

    @property
    def _is_scarce(self) -> bool:
        return asyncio.get_running_loop().time() < self._scarce_until

    async def begin(self, to: str | None, progress: Progress, sender: str | None = None) -> Connection:
        """A connection on which MAIL FROM was accepted: an idle one, or if that has gone stale, a new one.

        The caller returns it by `put_back` or `recycle`.

        Args:
            to: see `Connection.begin`.
            sender: the mail's own; None: everybody's.
        """
        own = self._sender if sender is None else sender.encode("ascii")
        ended_after = None
        if (connection := self._take_idle()) is not None:
            progress.stage = "mail"
            mails = connection.mails
            try:
                async with asyncio.timeout(self._stale_seconds):
                    await connection.begin(own, to)
                return connection
            except (OSError, SMTPException) as error:
                if is_plain_refusal(error) and not connection.reset_first:
                    self.recycle(connection, error)
                    raise
                connection.abort()
                if may_be_used_up(error):
                    ended_after = mails
            except BaseException:
                connection.abort()
                raise
        connection = await self._open(progress)
        progress.stage = "mail"
        try:
            await connection.begin(own, to)
        except BaseException as error:
            self.recycle(connection, error)
            raise
        if ended_after is not None:
            self._mails_per_connection.ended(ended_after)
        return connection

    async def _open(self, progress: Progress) -> Connection:
        progress.stage = "connect"
        line = await reach(self._server.host, self._server.port, rank=lambda address: self._silent.get(address, 0.0))
        try:
            address = str(line.getpeername()[0])
        except OSError:  # it was reset already
            line.close()
            raise
        try:
            connection = await Connection.open(line, self._server, self._greeting, self._tls, progress)
        except SMTPResponseException:  # it does answer
            raise
        except BaseException:
            self._silent[address] = asyncio.get_running_loop().time()
            raise
        self._silent.pop(address, None)
        return connection

    def put_back(self, connection: Connection) -> None:
        """Keep it for the next mail, unless it is used up or the pool is closed."""
        if self._closed or (not self._is_scarce and self._mails_per_connection.used_up(connection.mails)):
            self._quit(connection)
            return
        self._idle.append(connection)
        self._let_expire(connection)

    def recycle(self, connection: Connection, error: BaseException) -> None:
        """Keep the connection after a plain refusal; after anything else its state is unknown, and it is dropped."""
        if is_plain_refusal(error) and connection.refused_after > SLOW_REFUSAL.total_seconds():
            self._quit(connection)
        elif is_plain_refusal(error):
            connection.reset_first = True  # before the next mail: this one's outcome should not wait for it
            self.put_back(connection)
        else:
            connection.abort()

    async def close(self) -> None:
        """Close every idle connection with QUIT; the others follow when they are put back."""
        self._closed = True
        while (connection := self._take_idle()) is not None:
            self._quit(connection)
        while self._quitting:
            await asyncio.wait(self._quitting)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the most recently used one; the others may expire
            if connection.expiry is not None:
                connection.expiry.cancel()
            if connection.is_usable:
                return connection
        return None

    def _expire(self, connection: Connection) -> None:
        self._idle.remove(connection)
        self._quit(connection)

    def _quit(self, connection: Connection) -> None:
        task = asyncio.create_task(connection.quit(self._quit_seconds))
        self._quitting.add(task)
        task.add_done_callback(self._quitting.discard)
