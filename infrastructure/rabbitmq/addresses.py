"""A connection to whichever of the broker's addresses answers: each has a share of the time."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from typing import Any, Final

from aio_pika import Connection, RobustConnection
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

REACH_WITHIN: Final = timedelta(seconds=4)
"""For all addresses together; the rest of `session.CONNECT_TIMEOUT` is for the protocol."""


class _ByAnyAddress(TransportFactory):
    """Opens the connection at the first address that answers; one without a route cannot use up the time of the others.

    The library has `happy_eyeballs_delay` for this, which uvloop 0.23.0 does not know (`TypeError`).
    """

    async def create(self, url: URL, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = await more["ssl_context_provider"].get_context() if url.scheme == "amqps" else None
        assert url.host is not None  # noqa: S101 - settings demand one
        try:
            line = await _reach(url.host, url.port or 5672)
            return await asyncio.open_connection(sock=line, ssl=tls, server_hostname=url.host if tls else None)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error


async def _reach(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REACH_WITHIN.total_seconds()
    failure: OSError = OSError(f"no address of {host}")
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        line = socket.socket(family, kind, protocol)
        line.setblocking(False)
        try:
            async with asyncio.timeout((deadline - loop.time()) / (len(addresses) - number)):
                await loop.sock_connect(line, address)
        except OSError as error:  # a TimeoutError, too
            line.close()
            failure = error
        except BaseException:
            line.close()
            raise
        else:
            return line
    raise failure


class ReachedConnection(Connection):
    """For a command, without a recovery of its own."""

    def __init__(self, url: URL, *positional: Any, **named: Any) -> None:
        super().__init__(url, *positional, **named)
        self.kwargs["transport_factory"] = _ByAnyAddress()


class ReachedRobustConnection(RobustConnection):
    """For FastStream, which insists on this class."""

    def __init__(self, url: URL, *positional: Any, **named: Any) -> None:
        super().__init__(url, *positional, **named)
        self.kwargs["transport_factory"] = _ByAnyAddress()
