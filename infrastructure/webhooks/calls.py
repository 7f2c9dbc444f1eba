"""Calls an endpoint over HTTP/1.1, many at a time on connections that are kept.

Each connection is made to an address that was looked up and judged for it, and stays with that address; the name is
what the certificate must be for. A connection is kept for a minute at most, so an endpoint that moves is followed.
Redirects are answers like any other that is no 2xx; no proxy is used; of an answer nothing is kept but its status.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import time
from typing import Final
from urllib.parse import unquote, urlsplit

import httptools
from aiohappyeyeballs import start_connection

from application.integration_events import CONTENT_TYPE
from infrastructure.reach import HEAD_START, look_up
from infrastructure.settings.addresses import Reachable
from infrastructure.settings.webhooks import WebhookEndpoint
from infrastructure.webhooks.signing import Signer

DEADLINE: Final = timedelta(seconds=15)
"""For one call, from the look-up of the host to the head of the answer; Standard Webhooks says 15 to 30 s."""

KEEP: Final = timedelta(seconds=60)
"""From the making of a connection: later it is not used again, and one that is idle is closed."""

REST: Final = timedelta(seconds=1)
"""For what an answer says beyond its head, which nobody reads: if it takes longer, the connection is given up."""

MOST_BYTES: Final = 64 * 1024
"""Of one answer."""

MOST_RETRY_AFTER: Final = timedelta(days=1)


class NotDelivered(Exception):
    """The call got no answer, or not a 2xx; whether it was received is unknown.

    Attributes:
        failure: why, in our own words and safe to show: nothing from the other side but its status.
        status: of the answer, None without one.
        retry_after: what the answer asks us to wait, None if it does not say.
        advice: what may be the cause, a sentence or none.
    """

    def __init__(
        self, failure: str, status: int | None = None, retry_after: timedelta | None = None, *, advice: str = ""
    ) -> None:
        super().__init__(failure)
        self.failure = failure
        self.status = status
        self.retry_after = retry_after
        self.advice = advice or _advice(status)


def _advice(status: int | None) -> str:
    if status is None:
        return ""
    if 300 <= status < 400:
        return "Redirects are not followed: name the address that answers in REGISTRAR_WEBHOOKS."
    return {
        **dict.fromkeys((401, 403), "Does it verify with the secret that REGISTRAR_WEBHOOK_SECRETS has for it?"),
        404: "Is that the path of its route for webhooks? REGISTRAR_WEBHOOKS names it.",
        405: "Does its route for webhooks take a POST? REGISTRAR_WEBHOOKS names its path.",
        410: "It does not want to be called any more; `registrar webhooks enable` goes on.",
    }.get(status, "Its log says why." if status >= 400 else "It has to answer 2xx.")


class _NotAllowed(OSError):
    """None of the host's addresses may be called."""


class Calls:
    """The calls to one endpoint."""

    def __init__(
        self,
        endpoint: WebhookEndpoint,
        reachable: Reachable,
        *,
        deadline: timedelta = DEADLINE,
        tls: ssl.SSLContext | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        """
        Args:
            tls: which certificates to trust; by default those of the system's authorities.
            now: seconds since 1970.
        """
        parts = urlsplit(endpoint.url)
        self._host = parts.hostname or ""
        self._encrypts = parts.scheme == "https"
        self._port = parts.port or (443 if self._encrypts else 80)
        self._head = _head(parts.path, parts.query, parts.netloc, parts.username, parts.password)
        self._tls = (tls or ssl.create_default_context()) if self._encrypts else None
        self._reachable = reachable
        self._signer = Signer(endpoint)
        self._deadline = deadline.total_seconds()
        self._now = now
        self._idle: list[_Line] = []
        self._closing: asyncio.TimerHandle | None = None  # of the idle line that was made first

    @property
    def where(self) -> str:
        """`host:port`: the part of the address that may be shown."""
        return f"{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    async def post(self, message_id: str, body: bytes) -> None:
        """Send a message, signed now; returns once a 2xx has confirmed it.

        Raises:
            NotDelivered: anything else.
        """
        signed = self._signer.headers(message_id, int(self._now()), body)
        request = b"%b%bContent-Length: %d\r\n\r\n%b" % (self._head, signed, len(body), body)
        async with self._in_time():
            status, line = await self._exchange(request)
        if not 200 <= status < 300:
            self.drop()
            line.abort()
            raise NotDelivered(f"status {status}", status, _retry_after(line.retry_after, self._now()))
        await self._keep(line)

    async def reach(self) -> None:
        """Connect, encrypted if the address says so, and disconnect without a call.

        Raises:
            NotDelivered: it did not succeed.
        """
        async with self._in_time():
            (await self._connect()).abort()

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """What goes wrong within the deadline, or is not done by then, in our own words."""
        try:
            async with asyncio.timeout(self._deadline):
                yield
        except TimeoutError:
            raise NotDelivered(f"no answer within {self._deadline:g} s") from None
        except _NotAllowed:
            raise NotDelivered(
                "its address is not public, and not in REGISTRAR_WEBHOOK_NETWORKS",
                advice="To call it there, or with http://, put its network into REGISTRAR_WEBHOOK_NETWORKS.",
            ) from None
        except ssl.SSLError as error:
            raise _no_encryption(error) from None
        except OSError:
            raise NotDelivered("no connection", advice="Does it run, and listen at that address and port?") from None
        except httptools.HttpParserError:
            advice = "" if self._encrypts else "If it speaks TLS there, name it with https:// in REGISTRAR_WEBHOOKS."
            raise NotDelivered("no HTTP answer", advice=advice) from None

    async def _exchange(self, request: bytes) -> tuple[int, _Line]:
        """Send a request on a connection that is there, or a new one. A connection that was kept may have been closed
        at the same moment, which is nobody's failure: then once more, on a new one."""
        line = self._kept()
        if line is not None:
            try:
                return await line.send(request), line
            except OSError:
                if line.answered:
                    raise
            finally:
                line.abort_unless_answered()
        line = await self._connect()
        try:
            return await line.send(request), line
        finally:
            line.abort_unless_answered()

    def drop(self) -> None:
        """Give up the connections that are kept: the next call finds out anew where the endpoint is."""
        while self._idle:
            self._idle.pop().abort()
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _kept(self) -> _Line | None:
        oldest = asyncio.get_running_loop().time() - KEEP.total_seconds()
        while self._idle:
            line = self._idle.pop()
            if line.usable and line.made_at > oldest:
                return line
            line.abort()
        return None

    async def _keep(self, line: _Line) -> None:
        if not line.complete:
            with suppress(TimeoutError):
                async with asyncio.timeout(REST.total_seconds()):
                    await line.rest()
        if line.usable:
            self._idle.append(line)
            self._close_in_time(line)
        else:
            line.abort()

    def _close_in_time(self, line: _Line) -> None:
        """One timer for all: set anew where a line is due before it, and where it ends and there are others."""
        due = line.made_at + KEEP.total_seconds()
        if self._closing is None or due < self._closing.when():
            if self._closing is not None:
                self._closing.cancel()
            self._closing = asyncio.get_running_loop().call_at(due, self._close_old)

    def _close_old(self) -> None:
        self._closing = None
        oldest = asyncio.get_running_loop().time() - KEEP.total_seconds()
        idle, self._idle = self._idle, []
        for line in idle:
            if line.usable and line.made_at > oldest:
                self._idle.append(line)
            else:
                line.abort()
        if self._idle:
            self._close_in_time(min(self._idle, key=lambda one: one.made_at))

    async def _connect(self) -> _Line:
        found = [
            one
            for one in await look_up(self._host, self._port)
            if self._reachable.allows(str(one[4][0]), encrypted=self._encrypts)
        ]
        if not found:
            raise _NotAllowed
        pinned = await start_connection(found, happy_eyeballs_delay=HEAD_START.total_seconds())
        try:
            _, line = await asyncio.get_running_loop().create_connection(
                _Line, sock=pinned, ssl=self._tls, server_hostname=self._host if self._tls else None
            )
        except BaseException:
            pinned.close()
            raise
        return line


_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
"""What OpenSSL, in its versions, makes of an answer in clear text."""


def _no_encryption(error: ssl.SSLError) -> NotDelivered:
    if error.reason in _NO_TLS:
        return NotDelivered(
            "it does not speak TLS",
            advice="Name another port, or http:// in REGISTRAR_WEBHOOKS and its network in REGISTRAR_WEBHOOK_NETWORKS.",
        )
    return NotDelivered(
        "no trustworthy encryption",
        advice="Its certificate has to be for that name, valid, and of an authority that this machine trusts.",
    )


def _head(path: str, query: str, netloc: str, user: str | None, password: str | None) -> bytes:
    """A request's first lines, which are always the same."""
    target = (path or "/") + (f"?{query}" if query else "")
    lines = [f"POST {target} HTTP/1.1", f"Host: {netloc.rpartition('@')[2]}", "User-Agent: registrar", "Accept: */*"]
    lines.append(f"Content-Type: {CONTENT_TYPE}")
    if user is not None:
        login = b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()
        lines.append(f"Authorization: Basic {login}")
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


def _retry_after(text: bytes, now: float) -> timedelta | None:
    """What `Retry-After` says, seconds or a time (RFC 9110), as far as it makes sense."""
    said = text.decode("latin-1").strip()
    if said.isascii() and said.isdigit() and len(said) < 10:
        wait = timedelta(seconds=int(said))
    else:
        try:
            at = parsedate_to_datetime(said)
        except (ValueError, OverflowError):
            return None
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
        wait = at - datetime.fromtimestamp(now, UTC)
    return min(max(wait, timedelta(0)), MOST_RETRY_AFTER)


class _Line(asyncio.Protocol):
    """A connection: one request at a time.

    Attributes:
        made_at: by the event loop's clock.
        retry_after: what the last answer says.
        complete: has all of the last answer come?
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.made_at = self._loop.time()
        self.retry_after = b""
        self.complete = True
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._status: asyncio.Future[int] | None = None
        self._end: asyncio.Future[None] | None = None
        self._bytes = 0
        self._sound = True

    @property
    def usable(self) -> bool:
        return self._sound and self.complete

    async def send(self, request: bytes) -> int:
        """Send a request; returns the status of its answer once the head has come.

        Raises:
            OSError: the connection has ended.
            HttpParserError: what came is no HTTP answer.
        """
        if self._transport is None or not self._sound:
            raise ConnectionResetError
        self._status, self.complete, self._bytes, self.retry_after = self._loop.create_future(), False, 0, b""
        self._transport.write(request)
        return await self._status

    async def rest(self) -> None:
        """Return when all of the answer has come, or the connection has ended."""
        if not self.complete and self._sound:
            self._end = self._loop.create_future()
            await self._end

    @property
    def answered(self) -> bool:
        """Has anything of an answer to the last request come?"""
        return self._bytes > 0

    def abort_unless_answered(self) -> None:
        """Give the connection up, unless the last request has got its status: what comes later is of no use."""
        if self._status is None or not self._status.done() or self._status.cancelled() or self._status.exception():
            self.abort()

    def abort(self) -> None:
        self._sound = False
        if self._transport is not None:
            self._transport.abort()

    # --- What the transport tells ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        if self.complete:
            self._fail(httptools.HttpParserError("said without being asked"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)
        except httptools.HttpParserUpgrade:
            self._fail(httptools.HttpParserError("another protocol"))
        if self._bytes > MOST_BYTES:
            self._fail(httptools.HttpParserError("too much"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc if isinstance(exc, OSError) else ConnectionResetError())

    def _fail(self, error: Exception) -> None:
        self.abort()
        if self._status is not None and not self._status.done():
            self._status.set_exception(error)
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    # --- What the parser tells ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:  # a second answer to one request must not become that to the next
            self._sound = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.retry_after = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._status is not None and not self._status.done():
            self._status.set_result(status)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return
        self.complete = True
        if not self._parser.should_keep_alive():
            self._sound = False
        if self._end is not None and not self._end.done():
            self._end.set_result(None)
