"""The parser of HTTP requests: the library's, but for what it takes for the end of HTTP on a connection."""

from __future__ import annotations

from typing import Protocol

import httptools


class Receiver(Protocol):
    """What is told of each request, by httptools' callbacks."""

    def head_without_upgrade(self) -> bytes:
        """The head that was read last, but for its `Upgrade`."""


class RequestParser:
    """httptools', for a server that never changes the protocol: to it, `Upgrade` is a header to ignore (RFC 9110, 7.8).

    The library takes whatever follows the head of such a request for the other protocol, its body too, and is done. So
    another parser is given that head again, without the header, and goes on from there.
    """

    def __init__(self, protocol: Receiver) -> None:
        self._protocol = protocol
        self._begin()

    def _begin(self) -> None:
        parser = httptools.HttpRequestParser(self._protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does, to answer a pipelined request
        self._feed = parser.feed_data
        self._is_upgrade = parser.should_upgrade
        self.get_method = parser.get_method
        self.get_http_version = parser.get_http_version
        self.should_keep_alive = parser.should_keep_alive

    def should_upgrade(self) -> bool:
        """Is this a request with that header, whose head is to come again? CONNECT, the other kind, is refused as it
        is."""
        return self._is_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                self._feed(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if not self.should_upgrade():
                    raise
                rest = rest[upgrade.args[0] :]
                head = self._protocol.head_without_upgrade()
                self._begin()
                self._feed(head)
            else:
                return
