"""Attackers who do not speak HTTP as one should: slowly, at length, in two ways at once, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count, repeat
from typing import Final

from tests.attack.deeds import Field
from tests.attack.floods import in_lanes
from tests.attack.wire import Answer, at_our_domain
from tests.faults.journal import NAME

PATIENCE: Final = 120.0
"""Seconds in which the server must have ended what a slow client holds; it does after ten, a busy machine later."""

HEAD: Final = b"POST /v1/registrations HTTP/1.1\r\nHost: registrar.test\r\nContent-Type: application/json\r\n"


class Slow:
    """Holds connections: by saying nothing, by a head or a body that comes a byte at a time, by half of either.

    Claim: the server ends each of them, and meanwhile serves everybody else.
    """

    BEGINNINGS: Final[Mapping[str, tuple[bytes, bytes]]] = {
        "says nothing": (b"", b""),
        "sends a head by the byte": (HEAD + b"X-Slow: ", b"a"),
        "sends half a head": (HEAD, b""),
        "sends a body by the byte": (HEAD + b"Content-Length: 9000\r\n\r\n{", b" "),
        "sends half a body": (HEAD + b'Content-Length: 90\r\n\r\n{"email": ', b""),
    }

    def __init__(self, clients: int) -> None:
        self._clients = clients

    async def hold(self, field: Field, ports: list[int]) -> None:
        """Until the attack is over, each client again and again."""

        async def client(number: int) -> None:
            turns = count(number)
            while not field.over:
                turn = next(turns)
                how = list(self.BEGINNINGS)[turn % len(self.BEGINNINGS)]
                await self._once(field, ports[turn % len(ports)], how)

        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(client(number))

    async def _once(self, field: Field, port: int, how: str) -> None:
        beginning, then = self.BEGINNINGS[how]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        outcome = "held on"
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(PATIENCE):
                trickling = asyncio.create_task(_trickle(writer, beginning, then))
                try:
                    await reader.read()
                except ConnectionError:
                    pass
                finally:
                    trickling.cancel()
                outcome = "ended"
        writer.close()
        field.deeds.ended[f"{how}: {outcome}"] += 1


async def _trickle(writer: asyncio.StreamWriter, beginning: bytes, byte: bytes) -> None:
    writer.write(beginning)
    for each in repeat(byte) if byte else ():
        await asyncio.sleep(0.5)  # slowly is what it does
        writer.write(each)


class Malformed:
    """Sends what is too large, broken, or two requests to one reader and one to another.

    Claim: it is refused; nothing that stands within another request is ever done.
    """

    async def attack(self, field: Field, ports: Sequence[int], requests: int) -> None:
        async def once(turn: int) -> None:
            hidden = at_our_domain(f"smuggled{turn}")
            forms = _forms(hidden)
            what = list(forms)[turn % len(forms)]
            field.deeds.never_mailed.add(hidden)
            for status in await _answers(ports[turn % len(ports)], forms[what]):
                if status == 200:
                    continue
                field.deeds.tell(f"malformed: {what}", Answer(status, b"", b""), _ALLOWED)

        await in_lanes(4, requests, once)


_ALLOWED: Final = frozenset({400, 404, 405, 408, 411, 413, 414, 415, 417, 422, 431, 501, 505})


def _forms(hidden: str) -> Mapping[str, bytes]:
    """Requests that must not be done; where one stands within another, it would register `hidden`."""
    body = json.dumps({"email": hidden, "name": NAME}).encode()
    inner = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    length = b"Content-Length: %d\r\n" % len(inner)
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    return {
        "two lengths": HEAD + b"Content-Length: 0\r\n" + length + b"\r\n" + inner,
        "a length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk,
        "chunks and a length": HEAD + b"Transfer-Encoding: chunked\r\n" + length + b"\r\n0\r\n\r\n",
        "an odd encoding": HEAD + b"Transfer-Encoding: xchunked\r\n" + length + b"\r\n" + inner,
        "a name with a space": HEAD + b"Content-Length : 0\r\n" + length + b"\r\n" + inner,
        "a folded header": HEAD + b"X-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\n[]",
        "a length in hexadecimal": HEAD + b"Content-Length: 0x10\r\n\r\n" + inner,
        "a negative length": HEAD + b"Content-Length: -1\r\n\r\n" + inner,
        "a body in a request that has none": b"GET /v1/registrations/x HTTP/1.1\r\nHost: a\r\n"
        + length
        + b"\r\n"
        + inner,
        "no host": b"POST /v1/registrations HTTP/1.1\r\nContent-Type: application/json\r\n"
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body,
        "a NUL in a header": HEAD + b"X-Nul: a\0b\r\nContent-Length: 2\r\n\r\n{}",
        "another way to the same path": inner.replace(b"/v1/registrations ", b"/v1//registrations "),
        "an encoded slash": inner.replace(b"/v1/registrations ", b"/v1%2Fregistrations "),
        "dots": inner.replace(b"/v1/registrations ", b"/health/../v1/registrations "),
        "no JSON": HEAD + b"Content-Length: 9\r\n\r\n{'email':",
        "a list": HEAD + b"Content-Length: 2\r\n\r\n[]",
        "deep JSON": HEAD + b"Content-Length: 8000\r\n\r\n" + b"[" * 8000,
        "text": inner.replace(b"application/json", b"text/plain"),
        "compressed": HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        "a large body": HEAD + b"Content-Length: 20000\r\n\r\n" + b" " * 20000,
        "large headers": HEAD + b"X-Large: " + b"a" * 9000 + b"\r\nContent-Length: 2\r\n\r\n{}",
        "more than was asked for": HEAD
        + b"Content-Length: %d\r\n\r\n" % (len(body) + 13)
        + body[:-1]
        + b',"role":"r"}}',
        "two recipients": HEAD + _with_length(json.dumps({"email": f"{hidden}, {hidden}", "name": NAME}).encode()),
        "a line end in the address": HEAD
        + _with_length(json.dumps({"email": f"{hidden}\r\nBcc: {hidden}", "name": NAME}).encode()),
        "another method": inner.replace(b"POST ", b"PATCH "),
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40,
    }


def _with_length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


_THEN: Final = b"GET /health/live HTTP/1.1\r\nHost: registrar.test\r\nConnection: close\r\n\r\n"


async def _answers(port: int, request: bytes) -> list[int]:
    """The statuses of everything that is answered to these bytes; after them comes a request that is as it should be,
    and if it is understood (200) the last one."""
    statuses: list[int] = []
    with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(request + _THEN)
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    statuses.append(int(head[9:12]))
                    length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
                    await reader.readexactly(int(length or b"0"))
        finally:
            writer.close()
    return statuses
