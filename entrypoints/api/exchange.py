"""A registration, from the last byte of its request to its response.

uvicorn starts on a request with its head, waits for its body, and takes a response in pieces that it looks at byte by
byte. Nearly every registration comes in one piece, and its response is ours: that takes half as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

EXCHANGE: Final = "registrar.exchange"
"""Under this name the ASGI scope of a request whose body is there holds its `Exchange`."""


class WholeResponse(Response):
    """JSON that is sent in one piece, with headers in Latin-1."""

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.body: bytes = body
        self.background = None
        self.raw_headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        self.raw_headers += [(b"content-length", b"%d" % len(body)), _JSON]


_JSON: Final = (b"content-type", b"application/json")


class _Nobody(asyncio.Event):
    """Nobody waits for the body of an exchange."""

    def set(self) -> None:
        pass


class Exchange(RequestResponseCycle):
    """uvicorn's cycle of a request and its response, for a request that is there and a response in one piece."""

    _NOBODY: Final = _Nobody()

    def __init__(self, protocol: Any, body: bytes, *, keep_alive: bool) -> None:
        """
        Args:
            protocol: uvicorn's, whose `scope` is complete.
        """
        self.scope = protocol.scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.default_headers = protocol.server_state.default_headers
        self.message_event = self._NOBODY
        self.on_response = protocol.on_response_complete
        self.keep_alive = keep_alive
        self.disconnected = self.response_started = self.response_complete = self.more_body = False
        self._whole = body
        self._begun: Any = None

    async def receive(self) -> Any:
        """The body; to be called once."""
        return {"type": "http.request", "body": self._whole, "more_body": False}

    async def send(self, message: Any) -> None:
        """As ASGI has it: the head of the response, then all of its body."""
        if message["type"] == "http.response.start":
            self._begun = message
            self.response_started = True
        else:
            await self.respond(self._begun["status"], self._begun["headers"], message["body"])

    async def respond(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Both at once."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        self.transport.write(self._bytes_of(status, headers, body))
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _bytes_of(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
        content = [STATUS_LINE[status]]
        closes = False
        for header in (*self.default_headers, *headers):
            if header[0] == b"connection":  # which we never send for anything else
                closes, self.keep_alive = True, False
            content.append(b"%b: %b\r\n" % header)
        if not (self.keep_alive or closes):
            content.append(b"connection: close\r\n")
        content += (b"\r\n", body)
        return b"".join(content)
