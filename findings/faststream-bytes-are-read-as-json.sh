#!/usr/bin/env bash
# FastStream 0.7.8, aio-pika 10.2.1, pydantic 2.14.4, RabbitMQ 3.10.8. Needs Python 3.11 or later and Debian's package
# rabbitmq-server (a private node is started; the installed service is left alone).
#
# FastStream publishes bytes as they are, without a content type: "empty with bytes content", its documentation says. What
# has no content type it tries to read as JSON, whatever type the handler asks for, and takes it as bytes only if that
# fails. So a handler of bytes gets what it was sent as long as that is not JSON by chance. A code of four digits is a
# number: "not bytes", and the message is rejected, which without a dead-letter exchange means gone, after an error in the
# log; one that begins with 0 arrives. A text in quotes arrives without them, and nothing is logged. With the content type
# "application/octet-stream" given to publish(), the bytes arrive as they are.
#
# Expected: the bytes that were published.
# Seen:
#   published b'anna': the handler got b'anna'
#   published b'0815': the handler got b'0815'
#   published b'4711': the handler got nothing, messages left in the queue: 0
#   published b'"anna"': the handler got b'anna'
#   published b'4711' as application/octet-stream: the handler got b'4711'
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/rabbitmq.sh"
install 'faststream[rabbit]==0.7.8' aio-pika==10.2.1 pydantic==2.14.4
start_rabbitmq
python "$amqp" <<'PYTHON'
import asyncio
import sys

import aio_pika
from faststream.rabbit import RabbitBroker

END = b"the end"


async def received(body, content_type=None):
    """What the handler has when the message behind this one has come; and what is left in the queue."""
    broker = RabbitBroker(sys.argv[1], logger=None)
    got, done = [], asyncio.Event()

    @broker.subscriber("finding")
    async def handle(body: bytes) -> None:
        if body == END:
            done.set()
        else:
            got.append(body)

    async with broker, asyncio.timeout(30):
        await broker.start()
        await broker.publish(body, "finding", content_type=content_type)
        await broker.publish(END, "finding")
        await done.wait()
    async with await aio_pika.connect(sys.argv[1]) as connection:
        queue = await (await connection.channel()).declare_queue("finding", passive=True)
        return (got[0] if got else None), queue.declaration_result.message_count


async def shown(body, content_type=None):
    got, left = await received(body, content_type)
    title = f"published {body!r}{f' as {content_type}' if content_type else ''}"
    print(f"{title}: the handler got {got or f'nothing, messages left in the queue: {left}'}")
    assert left == 0
    return got


async def main():
    assert await shown(b"anna") == b"anna"
    assert await shown(b"0815") == b"0815"
    assert await shown(b"4711") is None
    assert await shown(b'"anna"') == b"anna"
    assert await shown(b"4711", "application/octet-stream") == b"4711"


asyncio.run(main())
PYTHON
echo "still so"
