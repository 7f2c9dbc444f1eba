"""Webhook: one HTTP request to an address that an operator has configured; it succeeds in time or counts as failed.

h11 on our own stream, so that all waits share one deadline and can be cancelled; a client in a thread allows neither.
Redirects are not followed: they would send the address's secrets to a host that nobody configured. No proxy is used.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final
from urllib.parse import unquote, urlsplit

import h11

from infrastructure.reach import open_streams

DEADLINE: Final = timedelta(seconds=10)
"""For one call, from the look-up of the host to the status of the response."""

READ_BYTES: Final = 8192
"""Bytes read at once; h11 refuses a head of over 16 KiB, and of the rest no more is read than was asked for."""


class NotTaken(Exception):
    """The call got no response, or not a 2xx; whether it was received is unknown.

    Attributes:
        failure: why, in our own words and safe to log: nothing from the other side but its status.
    """

    def __init__(self, failure: str) -> None:
        super().__init__(failure)
        self.failure = failure


class Webhook:
    """A client for the webhook at one address.

    Args:
        url: `http://` or `https://`; user, password, path and query may hold secrets, and are never shown.
        tls: which certificates to trust; by default those of the system's authorities.
    """

    def __init__(self, url: str, *, deadline: timedelta = DEADLINE, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._encrypts = parts.scheme == "https"
        self._port = parts.port or (443 if self._encrypts else 80)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Host": parts.netloc.rpartition("@")[2], "Connection": "close"}
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {b64encode(credentials.encode()).decode()}"
        self._deadline = deadline
        self._tls = (tls or ssl.create_default_context()) if self._encrypts else None

    @property
    def where(self) -> str:
        """`host:port`: the part of the address that may be shown."""
        return f"{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    @property
    def encrypts(self) -> bool:
        return self._encrypts

    async def post(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Send `body`; returns once a 2xx has confirmed it.

        Raises:
            NotTaken: anything else.
        """
        status, _ = await self.call(body, headers)
        if not 200 <= status < 300:
            raise NotTaken(f"status {status}")

    async def call(self, body: bytes, headers: Mapping[str, str], *, most: int = 0) -> tuple[int, bytes]:
        """Send `body`; returns the status of the response, and what it says, if that is at most so many bytes.

        Raises:
            NotTaken: there was none.
        """
        async with self._connected() as (reader, writer):
            return await self._converse(reader, writer, body, {**headers, **self._headers}, most)

    async def reach(self) -> None:
        """Connect, encrypted if the address says so, and disconnect without a call.

        Raises:
            NotTaken: it did not succeed.
        """
        async with self._connected():
            pass

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection for the time of the block, which ends at the deadline."""
        try:
            async with asyncio.timeout(self._deadline.total_seconds()):
                reader, writer = await open_streams(self._host, self._port, self._tls)
                try:
                    yield reader, writer
                finally:
                    writer.transport.abort()  # an orderly end would be one more wait
        except TimeoutError:
            raise NotTaken(f"no answer within {self._deadline.total_seconds():g} s") from None
        except ssl.SSLError:
            raise NotTaken("no trustworthy encryption") from None
        except OSError:
            raise NotTaken("no connection") from None
        except h11.RemoteProtocolError:
            raise NotTaken("no HTTP answer") from None

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        body: bytes,
        headers: Mapping[str, str],
        most: int,
    ) -> tuple[int, bytes]:
        """Send the request; see `call`."""
        connection = h11.Connection(h11.CLIENT)
        request = h11.Request(
            method="POST",
            target=self._target,
            headers=[*headers.items(), ("Content-Length", str(len(body)))],
        )
        for part in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(part) or b"")
        await writer.drain()
        status, said = 0, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
                if not most:
                    return status, b""
            elif isinstance(event, h11.Data):
                said += event.data
                if len(said) > most:
                    return status, b""
            elif isinstance(event, h11.EndOfMessage):
                return status, said
            elif not isinstance(event, h11.InformationalResponse):
                raise NotTaken("no HTTP answer")  # closed before any response
