"""An endpoint of webhooks that takes everything at once, in a process of its own; a line on its standard input asks how
many calls it has had."""

from __future__ import annotations

import asyncio
import gc
import json
import sys

import httptools
import uvloop

_TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"
_calls = 0


class _Session(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's are not subclasses
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        global _calls  # noqa: PLW0603 - the one thing that this process knows
        _calls += 1
        self._transport.write(_TAKEN)


async def _answer_questions() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(_calls), flush=True)


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(_Session, "127.0.0.1", 0, backlog=512)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    await _answer_questions()


if __name__ == "__main__":
    uvloop.run(_main())
