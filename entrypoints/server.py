"""The HTTP server: uvicorn on a socket of ours, started and stopped by whoever owns the process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infrastructure.settings import Network

HEAD_DEADLINE = timedelta(seconds=10)
"""What a client has to send a request's headers in, from its connect or from their first byte; then it is cut off."""

HEAD_LIMIT = 64 * 1024
"""Bytes of headers that are taken in before a connection is cut off; more than 8 KiB are refused anyway."""

BACKLOG: Final = 2048

KEEP_ALIVE: Final = timedelta(seconds=15)
"""How long an idle connection is kept."""


class Server:
    """Serves an application from `start` to `stop`.

    Attributes:
        port: the one in use once it is started.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        host: str,
        port: int,
        grace: timedelta = timedelta(seconds=30),
        trusted_proxies: tuple[Network, ...] = (),
    ) -> None:
        """
        Args:
            port: 0 for any free one.
            grace: how long requests in flight may take at the end; those that take longer are cancelled.
            trusted_proxies: whose `X-Forwarded-For` is believed.
        """
        self.host = host
        self.port = port
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=int(KEEP_ALIVE.total_seconds()),
                timeout_graceful_shutdown=max(1, int(grace.total_seconds())),
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=[str(network) for network in trusted_proxies],
            )
        )

    async def start(self) -> None:
        """Listen; the first request is served once this returns.

        Raises:
            OSError: the address cannot be had.
        """
        listener = await _bind(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve([listener]), name=f"http {self.host}:{self.port}")
        begun = asyncio.create_task(self._server.begun.wait())
        await asyncio.wait({self._task, begun}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if self._task.done():
            listener.close()
            await self._task

    async def stop(self) -> None:
        """Say that we are not ready any more, take no new connection, and let what is in flight finish."""
        if self._task is None:
            return
        self._app.state.checks.stopping = True
        self._server.should_exit = True
        await self._task
        self._task = None


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with an end to waiting: it gives a client for ever to begin a request, and any number of bytes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = 0
        self._patience: asyncio.TimerHandle | None = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_patience()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._patience is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        # Not before: what came in one piece with the rest of its request is the guard's to judge.
        if self._patience is not None and self._head_bytes > HEAD_LIMIT:
            self._give_up()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._patience is None:  # a further request on the connection
            self._head_bytes = 0
            self._await_head()

    def on_headers_complete(self) -> None:
        self._end_patience()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._patience = self.loop.call_later(HEAD_DEADLINE.total_seconds(), self._give_up)

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._end_patience()
        if not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers, and with word of its start."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            # It would end the loop that we are a guest of.
            raise RuntimeError("the application did not come up") from None
        self.begun.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _bind(host: str, port: int) -> socket.socket:
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
