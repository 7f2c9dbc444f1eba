#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2, opentelemetry-exporter-otlp-proto-http 1.45.2. Needs Python 3.11 or later.
#
# The SDK counts its own exports where OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=true. The semantic conventions want an
# error.type in otel.sdk.exporter.span.exported for spans that were not exported, those included that a collector rejects
# in the body of a 200, and none for the others: so what is lost can be counted. The exporter over HTTP sets it only where
# there was no answer at all. Spans that the collector refuses (400, 401, 413, 503) are counted like those that it took,
# although the export is a FAILURE. And any answer below 400 is a SUCCESS, but no redirect is followed: behind an ingress
# that sends http to https all spans are lost, and neither the log nor the metric has a word of it.
#
# Expected: error.type wherever the collector did not take the span, and a redirect followed or reported.
# Seen (one span each):
#   200, taken: SUCCESS, error.type None, 0 lines logged
#   200, rejected in the body: SUCCESS, error.type None, 0 lines logged
#   308, to /200: SUCCESS, error.type None, 0 lines logged
#   400: FAILURE, error.type None, 1 lines logged
#   401: FAILURE, error.type None, 1 lines logged
#   413: FAILURE, error.type None, 1 lines logged
#   503: FAILURE, error.type None, 1 lines logged
#   connection refused: FAILURE, error.type ConnectionError, 1 lines logged
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install opentelemetry-api==1.45.2 opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2 \
    requests==2.34.2
export OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=true
python <<'PYTHON'
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

REJECTED = ExportTraceServiceResponse()
REJECTED.partial_success.rejected_spans = 1
asked, logged, results = [], [], []


class Collector(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_POST(self):
        asked.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        body = REJECTED.SerializeToString() if self.path == "/200/rejected" else b""
        self.send_response(int(self.path.split("/")[1]))
        if self.path == "/308":
            self.send_header("Location", "/200")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Noting(OTLPSpanExporter):
    def export(self, spans):
        results.append(super().export(spans))
        return results[-1]


class Lines(logging.Handler):
    def emit(self, record):
        logged.append(record)


def kind_of_error(reader):
    """The error.type with which the one span was counted."""
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name == "otel.sdk.exporter.span.exported":
                    (point,) = metric.data.data_points
                    assert point.value == 1
                    return point.attributes.get("error.type")
    raise AssertionError("nothing was counted")


def export(what, url):
    logged.clear()
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    tracing = TracerProvider(shutdown_on_exit=False, meter_provider=meters)
    # Less than the wait before a second try, so the first one is the last.
    exporter = Noting(endpoint=url, timeout=0.5, meter_provider=meters)
    tracing.add_span_processor(SimpleSpanProcessor(exporter, meter_provider=meters))
    tracing.get_tracer("finding").start_span("one").end()
    seen = (results.pop().name, kind_of_error(reader), len(logged))
    print(f"{what}: {seen[0]}, error.type {seen[1]}, {seen[2]} lines logged")
    return seen


logging.getLogger("opentelemetry").addHandler(Lines())
server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
unnoticed, uncounted = ("SUCCESS", None, 0), ("FAILURE", None, 1)
assert export("200, taken", f"{url}/200") == unnoticed
assert export("200, rejected in the body", f"{url}/200/rejected") == unnoticed
asked.clear()
assert export("308, to /200", f"{url}/308") == unnoticed
assert asked == ["/308"]  # and not /200
for status in (400, 401, 413, 503):
    assert export(str(status), f"{url}/{status}") == uncounted
server.shutdown()
server.server_close()
assert export("connection refused", f"{url}/200") == ("FAILURE", "ConnectionError", 1)
PYTHON
echo "still so"
