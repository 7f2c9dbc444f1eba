#!/usr/bin/env bash
# aio-pika 10.2.1, aiormq 7.2.4, RabbitMQ 3.10.8. Needs Python 3.11 or later and Debian's package rabbitmq-server (a
# private node is started; the installed service is left alone).
#
# `mandatory=True` with publisher confirms and `on_return_raises=True` is the way to be told that no queue took a
# message. RabbitMQ returns such a message without its delivery tag, and aiormq finds the publish that it belongs to by
# message_id. If two publishes with the same message_id are under way on a channel (one message to two exchanges or
# queues, or a repeat beside the first try), it knows the later one only: the return of the first message fails the
# second publish, and the first one is *confirmed*. What was lost is reported as safe, and what arrived as lost.
#
# Expected: the publish to the queue that is missing raises PublishError, the other is confirmed.
# Seen:
#   ids of their own: missing: PublishError, there: Ack
#   the same id: missing: Ack, there: PublishError (messages in the queue: 1)
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/rabbitmq.sh"
install aio-pika==10.2.1 aiormq==7.2.4
start_rabbitmq
python "$amqp" <<'PYTHON'
import asyncio
import sys

import aio_pika


async def publish(channel, queue, message_id):
    try:
        confirm = await channel.default_exchange.publish(
            aio_pika.Message(b"", message_id=message_id), routing_key=queue, mandatory=True
        )
    except aio_pika.exceptions.PublishError as error:
        return type(error).__name__
    return type(confirm).__name__


async def main():
    async with await aio_pika.connect(sys.argv[1]) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        queue = await channel.declare_queue("there", exclusive=True)

        async def both(*ids):
            return await asyncio.gather(
                *(publish(channel, name, one) for name, one in zip(("missing", "there"), ids, strict=True))
            )

        own = await both("1", "2")
        print(f"ids of their own: missing: {own[0]}, there: {own[1]}")
        await queue.purge()
        same = await both("3", "3")
        arrived = (await channel.declare_queue("there", passive=True)).declaration_result.message_count
        print(f"the same id: missing: {same[0]}, there: {same[1]} (messages in the queue: {arrived})")
        assert (own, same, arrived) == (["PublishError", "Ack"], ["Ack", "PublishError"], 1)


asyncio.run(main())
PYTHON
echo "still so"
