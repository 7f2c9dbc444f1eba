"""The HTTP server: uvicorn on our own socket, started and stopped by the code that owns the process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from entrypoints.api.admission import Admission
from entrypoints.api.client_address import forms_of
from entrypoints.api.connections import Connections, sparing
from entrypoints.api.http_protocol import HttpProtocol
from entrypoints.api.malformed import MalformedRequests
from infrastructure.reach import look_up
from infrastructure.settings.values import Network
from infrastructure.telemetry.metrics import Metrics

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
        on_stopping: Callable[[], None] = lambda: None,
        on_ended: Callable[[asyncio.Task[None]], None] = lambda _: None,
        grace: timedelta = timedelta(seconds=30),
        stop_delay: timedelta = timedelta(0),
        trusted_proxies: tuple[Network, ...] = (),
        metrics: Metrics | None = None,
        connections: int | None = None,
        prefix: str = "",
    ) -> None:
        """
        Args:
            port: 0 for any free one.
            on_stopping: called first of all when it is to stop: from then on the application should say so.
            on_ended: called with the task that served if that has ended though nobody stopped it.
            grace: how long requests in flight may take at the end; those that take longer are cancelled.
            stop_delay: how long we say that we are not ready and serve on, so that a load balancer hears of it
                before it is refused a connection.
            trusted_proxies: whose `X-Forwarded-For` is believed.
            metrics: where what is refused at the door is counted.
            connections: that clients may have open; None: as many as the process can spare, this being its only server.
            prefix: of paths, see `Admission`.
        """
        metrics = metrics or Metrics()
        admission = Admission(metrics, prefix=prefix)
        held = Connections(connections, network_of=sparing(trusted_proxies))
        self.host = host
        self.port = port
        self._on_stopping = on_stopping
        self._on_ended = on_ended
        self._stops = False
        self._stop_delay = stop_delay.total_seconds()
        self._task: asyncio.Task[None] | None = None
        self._server = _Server(
            _config(
                app,
                partial(HttpProtocol, admission, held, MalformedRequests(metrics)),
                grace=grace,
                trusted_proxies=trusted_proxies,
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
        self._task.add_done_callback(self._note_end)

    async def stop(self) -> None:
        """Say that we are not ready any more, take no new connection, and let what is in flight finish."""
        if self._task is None or self._task.done():
            return
        self._stops = True
        self._on_stopping()
        try:
            # After a second request to stop, nothing is waited for.
            await asyncio.wait({self._task}, timeout=self._stop_delay)
        finally:
            self._server.end()
        await self._task
        self._task = None

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not self._stops:
            self._on_ended(task)


def _config(
    app: FastAPI, protocol: Callable[..., HttpToolsProtocol], *, grace: timedelta, trusted_proxies: tuple[Network, ...]
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]  # it is only called
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(KEEP_ALIVE.total_seconds()),
        timeout_graceful_shutdown=max(1, int(grace.total_seconds())),
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=[str(form) for network in trusted_proxies for form in forms_of(network)],
    )


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers, and with word of its start."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()
        self._told_to_end = asyncio.Event()

    def end(self) -> None:
        """Have `serve` stop."""
        self.should_exit = True
        self._told_to_end.set()

    async def main_loop(self) -> None:
        """uvicorn's looks ten times a second whether it is to stop. This one is told, and wakes for the date header."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._told_to_end.wait()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        except Exception:
            if self.started:
                await self.shutdown(sockets)  # it would leave all connections and the application as they are
            raise

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            # It would end the event loop, which is not ours.
            raise RuntimeError("the application did not come up") from None
        self.begun.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _bind(host: str, port: int) -> socket.socket:
    found = await look_up(host, port, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV)
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
