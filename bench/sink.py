"""A mail server that takes everything at once, in a process of its own; a line on its standard input asks what it has.

The answer is a JSON object: recipient to the moment at which the mail was accepted, in seconds of the machine's
monotonic clock, and how many copies there were.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time

import uvloop

_ACCEPTED: dict[str, tuple[float, int]] = {}
_REPLIES = {
    b"EHLO": b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 10000000\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 bye\r\n",
}


class _Session(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""
        self._recipient = ""
        self._in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's are not subclasses
        self._transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            line, end, rest = self._buffer.partition(b"\r\n.\r\n" if self._in_data else b"\r\n")
            if not end:
                return
            self._buffer = rest
            if self._in_data:
                self._in_data = False
                _, copies = _ACCEPTED.get(self._recipient, (0.0, 0))
                self._transport.write(b"250 taken\r\n")
                _ACCEPTED[self._recipient] = (time.perf_counter(), copies + 1)
            else:
                self._command(line)

    def _command(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"RCPT":
            self._recipient = line.partition(b"<")[2].partition(b">")[0].decode()
        self._in_data = verb == b"DATA"
        self._transport.write(_REPLIES.get(verb, b"250 fine\r\n"))


async def _answer_questions() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while question := (await reader.readline()).strip():
        print(json.dumps(len(_ACCEPTED) if question == b"count" else _ACCEPTED), flush=True)


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(_Session, "127.0.0.1", 0, backlog=512)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    await _answer_questions()


if __name__ == "__main__":
    uvloop.run(_main())
