"""A collector of traces: an OTLP/HTTP server that decodes what it is sent, and misbehaves as it is told."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.facts import eventually


@dataclass(frozen=True)
class Seen:
    """A span as the collector got it, with the ids in hexadecimal digits.

    Attributes:
        service: of the process that made it.
        links: trace id and span id of each.
    """

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str | int]
    links: tuple[tuple[str, str], ...]
    is_error: bool
    began: int
    ended: int


@dataclass
class Collector:
    """Keeps all it is sent.

    Attributes:
        bodies: of all calls, raw.
        status: of its responses.
        rejects: how many spans of each call it says to have rejected.
        hangs: it answers nothing until `ends` is set.
    """

    url: str = ""
    spans: list[Seen] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    status: int = 200
    rejects: int = 0
    hangs: bool = False
    ends: threading.Event = field(default_factory=threading.Event)

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(one.value.string_value for one in resource.resource.attributes if one.key == "service.name")
            for scope in resource.scope_spans:
                self.spans += [_seen(service, span) for span in scope.spans]

    def traced(self, trace_id: str) -> list[Seen]:
        """A trace's spans, the earliest first."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.began)

    async def until(self, name: str) -> None:
        """Wait for a span of this name."""
        await eventually(lambda: name in {span.name for span in self.spans}, within=30)


def _seen(service: str, span: Span) -> Seen:
    return Seen(
        service=service,
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes={
            one.key: one.value.string_value if one.value.HasField("string_value") else one.value.int_value
            for one in span.attributes
        },
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        is_error=span.status.code == 2,
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
    )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port of 127.0.0.1."""
    collector = Collector()

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if collector.hangs:
                collector.ends.wait()
                return
            if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
                self.send_error(404)
                return
            if collector.status == 200:
                collector.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            answer = ExportTraceServiceResponse(
                partial_success=ExportTracePartialSuccess(rejected_spans=collector.rejects)
            ).SerializeToString()
            self.send_response(collector.status)
            self.send_header("location", "https://collector.example.com/v1/traces")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collect)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield collector
    finally:
        collector.ends.set()
        server.shutdown()
        server.server_close()
