#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2. Needs Python 3.11 or later.
#
# start_as_current_span() promises to record what is raised in its block and to mark the span as failed. It does so for
# an Exception. A call under asyncio.timeout() that takes too long is ended by a CancelledError, which is none: where the
# span is inside the timeout, as for each call of a database or broker, it ends without a status and without an event,
# while the caller gets a TimeoutError. Samplers and searches for failed spans, which look for what took too long first of
# all, pass over just these.
#
# Expected: the span of a call that was ended by its timeout has the status ERROR.
# Seen:
#   refused: ERROR, events ['exception']
#   timed out: UNSET, events []
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install opentelemetry-api==1.45.2 opentelemetry-sdk==1.45.2
python <<'PYTHON'
import asyncio

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
tracing = TracerProvider(shutdown_on_exit=False)
tracing.add_span_processor(SimpleSpanProcessor(exporter))
tracer = tracing.get_tracer("finding")


async def refused():
    raise ConnectionRefusedError


async def hanging():
    await asyncio.Event().wait()


async def call(name, what, expected):
    try:
        async with asyncio.timeout(0.05):
            with tracer.start_as_current_span(name):
                await what()
    except expected:
        pass
    else:
        raise SystemExit(f"{name}: no {expected.__name__}")


asyncio.run(call("refused", refused, ConnectionRefusedError))
asyncio.run(call("timed out", hanging, TimeoutError))
seen = [(span.name, span.status.status_code.name, [event.name for event in span.events])
        for span in exporter.get_finished_spans()]
for name, status, events in seen:
    print(f"{name}: {status}, events {events}")
assert seen == [("refused", "ERROR", ["exception"]), ("timed out", "UNSET", [])]
PYTHON
echo "still so"
