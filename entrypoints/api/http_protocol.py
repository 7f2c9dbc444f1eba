"""One connection of the HTTP server: uvicorn's protocol, and the decision who comes in.

No more connections than there are file descriptors to spare, no more requests at once than can be worked on. A refusal
here costs a twenty-fifth of a registration.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from entrypoints.api.admission import PLACE, REGISTER, Admission, AdmissionSlot, Bound
from entrypoints.api.connections import Connections
from entrypoints.api.malformed import MalformedRequests
from entrypoints.api.refusals import NOT_HTTP, OVERLOADED, is_a_registration
from entrypoints.api.request_parser import RequestParser
from entrypoints.api.request_target import is_plain, origin_form

HEAD_DEADLINE = timedelta(seconds=10)
"""What a client has to send a request's headers in, from its connect or from their first byte; then it is cut off."""

HEAD_LIMIT = 64 * 1024
"""Bytes of headers that are taken in before a connection is cut off; more than 8 KiB are refused anyway."""


class HttpProtocol(HttpToolsProtocol):
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
        self._in_head = False
        self._rests = False
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
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
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
        if self._patience is None and (self._in_head or not (self._rests or self._is_at_work())):
            self._await_head()  # the rest of one; or, after an empty line between two requests, any
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
        self._in_message = self._in_head = True
        if self._patience is None:  # a further request on the connection
            self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        # As uvicorn's, without spaces at the value's end: no part of it (RFC 9110, 5.5), and the parser leaves them.
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        is_usual = self.url == REGISTER and self.parser.get_method() == b"POST"
        if not is_usual and not is_plain(self.url):
            self.url = origin_form(self.url, self.parser.get_method(), self.headers)
        bound = self._registrations if is_usual else self._bound()
        if bound.full and (self.cycle is None or self.cycle.response_complete):
            # Read to its end, with a head's patience, so that the client hears it and can keep the connection.
            self._turned_away = bound
            if self.expect_100_continue:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._in_head = False
        self._end_patience()
        self.scope[PLACE] = AdmissionSlot(bound)  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._turned_away is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_message = self._in_head = False
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

    # One timer serves all waits for a further request: to set another one each time is a hundredth of a registration.

    def _rest(self) -> None:
        self._rests = True
        if self.timeout_keep_alive_task is None:
            self._look_again_at(self._idle_since + self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        self._rests = False

    def _look_again_at(self, when: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_at(when, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        now = self.loop.time()
        idle_until = (self._idle_since if self._rests else now) + self.timeout_keep_alive
        if now < idle_until:
            self._look_again_at(idle_until)
        else:
            super().timeout_keep_alive_handler()

    def _is_at_rest(self) -> bool:
        """Between two requests, the first of which was read to its end and got its response."""
        return self._rests and not self._in_message

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
        if keep:
            self._rest()

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
        """As uvicorn's, but for its timer."""
        self._idle_since = self.loop.time()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._unset_keepalive_if_required()
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._rest()

    def give_up(self) -> None:
        """End it, whatever it waits for."""
        self._end_patience()
        if not self.transport.is_closing():
            self.transport.close()
