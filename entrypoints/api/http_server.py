"""The HTTP server: uvicorn on our own socket, started and stopped by the code that owns the process.

At its door is decided who comes in: no more connections than there are file descriptors to spare, no more requests at
once than can be worked on. A refusal there costs a twenty-fifth of a registration.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from entrypoints.api.admission import PLACE, Admission, AdmissionSlot, Bound
from entrypoints.api.client_address import forms_of
from entrypoints.api.connections import Connections, sparing
from entrypoints.api.malformed import MalformedRequests
from entrypoints.api.refusals import NOT_HTTP, OVERLOADED, is_a_registration
from entrypoints.api.request_parser import RequestParser
from entrypoints.api.request_target import is_plain, origin_form
from infrastructure.reach import look_up
from infrastructure.settings.values import Network
from infrastructure.telemetry.metrics import Metrics

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
                partial(_Protocol, admission, held, MalformedRequests(metrics)),
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


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with an end to waiting (it gives a client for ever to start a request, and any number of bytes) and
    with the decision who is let in."""

    def __init__(
        self, admission: Admission, held: Connections, malformed: MalformedRequests, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.parser: RequestParser = RequestParser(self)  # type: ignore[assignment]  # all that is called of it
        self.host = ""
        self._admission = admission
        self._registrations = admission.registrations
        self._held = held
        self._malformed = malformed
        self._head_bytes = 0
        self._patience: asyncio.TimerHandle | None = None
        self._turned_away: Bound | None = None
        self._in_message = False
        self._idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self.host = self.client[0] if self.client else ""
        if not self._held.enter(self, self.host):
            self._admission.refused_connection()
            self._refuse(keep=False)
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_patience()
        self._held.leave(self, self.host)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._registrations.full and self._is_at_rest() and is_a_registration(data):
            # The usual client at the usual moment: not even parsed, at half the cost.
            self._registrations.refused()
            self._refuse(keep=True)
            return
        if self._patience is not None:
            self._head_bytes += len(data)
        self._parse(data)
        if self._patience is None and self.timeout_keep_alive_task is None and not self._is_at_work():
            self._await_head()  # an empty line between two requests: it ended the one wait and started no other
        # Not before: a head that came together with the rest of its request is left to the guard.
        if self._patience is not None and self._head_bytes > HEAD_LIMIT:
            self.give_up()

    def _parse(self, data: bytes) -> None:
        """As uvicorn's `data_received`, which logs a line, or two, for whatever a stranger sends."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._malformed.refused()
            self.transport.write(NOT_HTTP.response(self.server_state.default_headers, keep=False))
            self.transport.close()
        except httptools.HttpParserUpgrade:
            pass  # CONNECT, which has been let in or turned away as any other request

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()  # a refusal of the request before has set it
        super().on_message_begin()
        self._in_message = True
        if self._patience is None:  # a further request on the connection
            self._head_bytes = 0
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value.rstrip(b" \t"))  # no part of it (RFC 9110, 5.5), and the parser leaves it there

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if not is_plain(self.url):
            self.url = origin_form(self.url, self.parser.get_method(), self.headers)
        bound = self._bound()
        if bound.full and (self.cycle is None or self.cycle.response_complete):
            # Read to its end, with a head's patience, so that the client hears it and can keep the connection.
            self._turned_away = bound
            if self.expect_100_continue:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._end_patience()
        self.scope[PLACE] = AdmissionSlot(bound)  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._turned_away is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_message = False
        if self._turned_away is not None:
            self._turned_away.refused()
            self._turned_away = None
            self._end_patience()
            self._refuse(keep=self.parser.should_keep_alive())
            return
        super().on_message_complete()
        # A request that was sent before the response to the previous one has no place, as it has not been started: a
        # connection has one at a time.
        if not self.pipeline:
            self.cycle.scope[PLACE].take()  # type: ignore[typeddict-item]

    def head_without_upgrade(self) -> bytes:
        """What was read last, a whole head, but for its `Upgrade`."""
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = (b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        return b"".join((line, *headers, b"\r\n"))

    def timeout_keep_alive_handler(self) -> None:
        idle_until = self._idle_since + self.timeout_keep_alive
        if self.loop.time() < idle_until:  # a refusal came after what armed this timer
            self.timeout_keep_alive_task = self.loop.call_at(idle_until, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _is_at_rest(self) -> bool:
        """Between two requests, the first of which was read to its end and got its response."""
        return self.timeout_keep_alive_task is not None and not self._in_message

    def _is_at_work(self) -> bool:
        return self._in_message or (self.cycle is not None and not self.cycle.response_complete)

    def _bound(self) -> Bound:
        url = httptools.parse_url(self.url)
        path = unquote_to_bytes(url.path) if b"%" in url.path else url.path
        return self._admission.bound_of(self.parser.get_method(), path, url.query)

    def _refuse(self, *, keep: bool) -> None:
        if self.flow.write_paused:  # somebody who asks on and on, and does not read
            self.transport.abort()
            return
        self.transport.write(OVERLOADED.response(self.server_state.default_headers, keep=keep))
        if not keep:
            self.transport.close()
        self._idle_since = self.loop.time()
        if keep and self.timeout_keep_alive_task is None:
            idle = self.timeout_keep_alive
            self.timeout_keep_alive_task = self.loop.call_later(idle, self.timeout_keep_alive_handler)

    def _await_head(self) -> None:
        self._patience = self.loop.call_later(HEAD_DEADLINE.total_seconds(), self.give_up)

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def idle_since(self) -> float | None:
        """See `entrypoints.api.connections.Held`. One that is sending has not asked yet."""
        is_served = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        return None if is_served else self._idle_since

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def give_up(self) -> None:
        """End it, whatever it waits for."""
        self._end_patience()
        if not self.transport.is_closing():
            self.transport.close()


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
