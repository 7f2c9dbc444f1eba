"""A connection to whichever of the broker's addresses answers."""

from __future__ import annotations

import asyncio
from typing import Any

from aio_pika import Connection, RobustConnection
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from infrastructure.reach import open_streams


class _ByAnyAddress(TransportFactory):
    """Opens the connection at the first address that answers; one without a route cannot use up the time of the others.

    The library has `happy_eyeballs_delay` for this, which uvloop 0.23.0 does not know (`TypeError`).
    """

    async def create(self, url: URL, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = await more["ssl_context_provider"].get_context() if url.scheme == "amqps" else None
        assert url.host is not None  # noqa: S101 - settings demand one
        try:
            return await open_streams(url.host, url.port or 5672, tls)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error


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
