#!/usr/bin/env bash
# aio-pika 10.2.1, aiormq 7.2.4, opentelemetry-sdk 1.45.2, structlog 26.1.0, RabbitMQ 3.10.8. Needs Python 3.11 or later
# and Debian's package rabbitmq-server (a private node is started; the installed service is left alone).
#
# Every message that aio-pika delivers runs with the context variables of the task that *opened the channel*, not of the
# one that consumes, and not with none. Where a channel is opened by the first request that needs it, all messages of
# the process are logged with that request's correlation id for as long as the channel lives, and a span that is started
# for a message without a traceparent becomes a child of that request's span, which ended long ago: one trace grows for
# days. In a script or a test, where everything is opened outside of any request, nothing of it shows.
#
# Expected: a message without a context of its own has none.
# Seen (the channel was opened in request 1, consumed in request 2, the messages published in requests 3 and 4):
#   message 3: logged with request 1, in the trace of request 1
#   message 4: logged with request 1, in the trace of request 1
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/rabbitmq.sh"
install aio-pika==10.2.1 aiormq==7.2.4 opentelemetry-api==1.45.2 opentelemetry-sdk==1.45.2 structlog==26.1.0
start_rabbitmq
python "$amqp" <<'PYTHON'
import asyncio
import sys

import aio_pika
from opentelemetry.sdk.trace import TracerProvider
from structlog.contextvars import bound_contextvars, get_contextvars

tracer = TracerProvider(shutdown_on_exit=False).get_tracer("finding")
requests = {}  # their numbers, by trace


async def serve(number, work):
    """A request as a web framework serves it: a task, a span and a correlation id of its own."""

    async def handle():
        with tracer.start_as_current_span("request") as span, bound_contextvars(request=number):
            requests[span.get_span_context().trace_id] = number
            return await work

    return await asyncio.create_task(handle())


async def main():
    seen = []
    both = asyncio.Event()

    async def deliver(message):
        async with message.process():
            with tracer.start_as_current_span("deliver") as span:
                logged, trace = get_contextvars().get("request"), requests.get(span.get_span_context().trace_id)
            print(f"message {message.body.decode()}: logged with request {logged}, in the trace of request {trace}")
            seen.append((logged, trace))
            if len(seen) == 2:
                both.set()

    async with await aio_pika.connect_robust(sys.argv[1]) as connection:
        channel = await serve(1, connection.channel())
        queue = await channel.declare_queue(exclusive=True)
        await serve(2, queue.consume(deliver))
        for number in (3, 4):
            message = aio_pika.Message(str(number).encode())
            await serve(number, channel.default_exchange.publish(message, queue.name))
        await asyncio.wait_for(both.wait(), 30)
    assert seen == [(1, 1), (1, 1)]


asyncio.run(main())
PYTHON
echo "still so"
