"""A webhook that answers as told, and keeps every call it was sent.

async with WebhookStub() as stub:
    stub.then("500", "drop", "hang")   # the next three calls; after them 204 again
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Call:
    """One request, whatever it was answered. Names of headers are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]

    @property
    def says(self) -> tuple[str, str]:
        return self.json["alert"], self.json["state"]


class WebhookStub:
    """Listens on a port of 127.0.0.1 while entered, a free one unless it is given.

    An answer is "drop" (cut the connection), "hang" (never answer), "garbage", or a status and what follows it in its
    line ("302 Found").
    """

    def __init__(self, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.calls: list[Call] = []
        self.connections = 0
        self.headers = ""
        self._tls = tls
        self._answers: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/hook"

    def then(self, *answers: str) -> Self:
        self._answers.extend(answers)
        return self

    def heal(self) -> None:
        """Take everything from now on."""
        self._answers.clear()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._answer(await self._read(reader), writer)
        writer.transport.abort()
        self._tasks.discard(task)

    async def _read(self, reader: asyncio.StreamReader) -> Call:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, target, _ = request.split(" ")
        return Call(method, target, headers, await reader.readexactly(int(headers["content-length"])))

    async def _answer(self, call: Call, writer: asyncio.StreamWriter) -> None:
        answer = self._answers.pop(0) if self._answers else "204 No Content"
        self.calls.append(call)
        if answer == "hang":
            await asyncio.Event().wait()
        elif answer != "drop":
            line = "who is there?" if answer == "garbage" else f"HTTP/1.1 {answer}"
            writer.write(f"{line}\r\n{self.headers}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
