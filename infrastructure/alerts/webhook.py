"""Webhook: one HTTP request to an address that an operator has set, answered in time or not taken.

h11 on a stream of ours, because every wait then has one deadline and can be cancelled; a client in a thread has neither.
Redirects are not followed: they would carry what the address holds to somewhere nobody set. Nor is a proxy used.
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

DEADLINE: Final = timedelta(seconds=10)
"""For one call, from the look-up of the host to the status of the answer."""

READ: Final = 8192
"""Bytes taken in at once; of an answer only its head is read, and h11 refuses one over 16 KiB."""


class NotTaken(Exception):
    """The call had no answer, or not a 2xx; whether it was heard is unknown.

    Attributes:
        failure: why, in a word of ours, fit for logs: nothing that the other side said but its status.
    """

    def __init__(self, failure: str) -> None:
        super().__init__(failure)
        self.failure = failure


class Webhook:
    """What is at one address.

    Args:
        url: `http://` or `https://`; user, password, path and query may hold secrets, and are never shown.
        tls: whom to trust; by default the system's certificate authorities.
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
        """`host:port`: what of the address may be shown."""
        return f"{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    @property
    def encrypts(self) -> bool:
        return self._encrypts

    async def post(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Hand `body` over; returns once a 2xx has said that it was taken.

        Raises:
            NotTaken: anything else.
        """
        async with self._connected() as (reader, writer):
            status = await self._converse(reader, writer, body, {**headers, **self._headers})
        if not 200 <= status < 300:
            raise NotTaken(f"status {status}")

    async def reach(self) -> None:
        """Connect, encrypted if the address says so, and leave without a call.

        Raises:
            NotTaken: that did not succeed.
        """
        async with self._connected():
            pass

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection for the time of the block, which ends at the deadline."""
        try:
            async with asyncio.timeout(self._deadline.total_seconds()):
                reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
                try:
                    yield reader, writer
                finally:
                    writer.transport.abort()  # to say good-bye would be one more wait
        except TimeoutError:
            raise NotTaken(f"no answer within {self._deadline.total_seconds():g} s") from None
        except ssl.SSLError:
            raise NotTaken("no trustworthy encryption") from None
        except (OSError, UnicodeError):  # the latter from a host that no look-up can be made of
            raise NotTaken("no connection") from None
        except h11.RemoteProtocolError:
            raise NotTaken("no HTTP answer") from None

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, headers: Mapping[str, str]
    ) -> int:
        """Send the request, and answer the status of what comes back."""
        connection = h11.Connection(h11.CLIENT)
        request = h11.Request(
            method="POST",
            target=self._target,
            headers=[*headers.items(), ("Content-Length", str(len(body)))],
        )
        for part in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(part) or b"")
        await writer.drain()
        while True:
            answer = connection.next_event()
            if answer is h11.NEED_DATA:
                connection.receive_data(await reader.read(READ))
            elif isinstance(answer, h11.Response):
                return answer.status_code
            elif not isinstance(answer, h11.InformationalResponse):
                raise NotTaken("no HTTP answer")  # cut off before it said anything
