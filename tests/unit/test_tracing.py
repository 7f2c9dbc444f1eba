"""What is told of spans that did not arrive."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infrastructure.telemetry.tracing import setup_tracing


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers whatever it is sent with this status; its base URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("location", "https://collector.example.com/v1/traces")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def told_of(status: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    with answering(status) as url:
        tracing = setup_tracing(url, "1")
        assert tracing is not None
        tracing.get_tracer("test").start_span("lost").end()
        tracing.shutdown()
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_spans_that_end_at_a_redirect_are_told_of(status: int, caplog: pytest.LogCaptureFixture) -> None:
    (line,) = told_of(status, caplog)
    assert f"redirected ({status}): OTLP_ENDPOINT is not the collector's own URL" in line


def test_spans_that_were_taken_are_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    assert told_of(200, caplog) == []
