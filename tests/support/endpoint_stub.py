"""An endpoint of webhooks: it keeps connections, answers as told, and remembers what it has been sent.

async with EndpointStub() as stub:
    stub.answer = lambda call: "500 No" if call.json["subject"] == bad else "204 No Content"
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from infrastructure.settings.settings import Settings
from infrastructure.settings.webhooks import WebhookEndpoint
from tests.support.webhook_stub import Call

SECRET = f"whsec_{b64encode(bytes(range(32))).decode()}"
LOOPBACK = "127.0.0.0/8"


def endpoint(url: str, secrets: str = SECRET, *, name: str = "app") -> WebhookEndpoint:
    """An endpoint with these secrets, separated by spaces, as settings have it."""
    told = ",".join(f"{name}={secret}" for secret in secrets.split())
    environ = {"REGISTRAR_WEBHOOKS": f"{name}={url}", "REGISTRAR_WEBHOOK_SECRETS": told}
    environ["REGISTRAR_WEBHOOK_NETWORKS"] = LOOPBACK
    return Settings.from_environment(environ).webhook_endpoints[0]


class EndpointStub:
    """Listens on a port of a loopback address while entered, a free one unless it is given.

    Attributes:
        answer: what a call is answered with: "drop" (cut the connection), "hang" (never answer), all bytes as they are,
            or a status and what follows it in its line, with further lines of the head behind.
        most: how many calls were under way at the same time at most.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None, name: str | None = None
    ) -> None:
        self.port = port
        self.calls: list[Call] = []
        self.connections = 0
        self.answer: Callable[[Call], str | bytes] = lambda _: "204 No Content"
        self.most = 0
        self._host, self._tls, self._name = host, tls, name or host
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._name}:{self.port}/hook?key=1"

    @property
    def connected(self) -> int:
        """How many connections there are now."""
        return len(self._tasks)

    @property
    def ids(self) -> list[str]:
        return [call.headers["webhook-id"] for call in self.calls]

    @property
    def told(self) -> Mapping[str, list[str]]:
        """The types of each registration's events in the order of their first arrival."""
        found: dict[str, list[str]] = defaultdict(list)
        for call in self.calls:
            kind = call.json["type"].removeprefix("registrar.registration.").removesuffix(".v1")
            if kind not in found[call.json["subject"]]:
                found[call.json["subject"]].append(kind)
        return found

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                await self._answer(await self._read(reader), writer)
        writer.transport.abort()
        self._tasks.discard(task)

    async def _read(self, reader: asyncio.StreamReader) -> Call:
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, target, _ = request.split(" ")
        return Call(method, target, headers, await reader.readexactly(int(headers["content-length"])))

    async def _answer(self, call: Call, writer: asyncio.StreamWriter) -> None:
        self.calls.append(call)
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        answer = self.answer(call)
        try:
            if answer == "hang":
                await asyncio.Event().wait()
            await asyncio.sleep(0)
        finally:
            self._under_way -= 1
        if answer == "drop":
            raise ConnectionResetError
        status = answer if isinstance(answer, str) else ""
        raw = answer if isinstance(answer, bytes) else f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
        writer.write(raw)
        await writer.drain()
