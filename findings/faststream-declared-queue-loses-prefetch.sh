#!/usr/bin/env bash
# FastStream 0.7.8, aio-pika 10.2.1, aiormq 7.2.4, RabbitMQ 3.10.8. Needs Python 3.11 or later and Debian's package
# rabbitmq-server (a private node is started; the installed service is left alone).
#
# A subscriber with a channel of its own, `channel=Channel(prefetch_count=2)`, consumes on the channel on which its queue
# was *first declared*: FastStream remembers a declared queue together with that channel, and looks it up by the
# queue's properties alone. Declaring the queue before broker.start() is enough to have the subscriber consume
# on the broker's default channel, where nothing limits it: one process takes the whole queue.
#
# Seen (20 messages wait, the handler does not end):
#   queue left to the subscriber: 2 messages in its hands
#   queue declared before the start: 20 messages in its hands
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/rabbitmq.sh"
install 'faststream[rabbit]==0.7.8' aio-pika==10.2.1 aiormq==7.2.4
start_rabbitmq
python "$amqp" <<'PYTHON'
import asyncio
import sys

from faststream.rabbit import Channel, RabbitBroker, RabbitQueue


async def taken(name, *, declared):
    broker = RabbitBroker(sys.argv[1], logger=None)
    queue = RabbitQueue(name)
    in_hand, proceed = [], asyncio.Event()

    @broker.subscriber(queue, channel=Channel(prefetch_count=2))
    async def handle(body: str) -> None:
        in_hand.append(body)
        await proceed.wait()

    await broker.connect()
    if declared:
        await broker.declare_queue(queue)
    await broker.start()
    for number in range(20):
        await broker.publish(str(number), queue)
    await asyncio.sleep(2)
    count = len(in_hand)
    proceed.set()
    await broker.stop()
    return count


async def main():
    left = await taken("left", declared=False)
    print(f"queue left to the subscriber: {left} messages in its hands")
    declared = await taken("declared", declared=True)
    print(f"queue declared before the start: {declared} messages in its hands")
    assert (left, declared) == (2, 20)


asyncio.run(main())
PYTHON
echo "still so"
