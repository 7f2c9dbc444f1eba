#!/usr/bin/env bash
# FastStream 0.7.8, aio-pika 10.2.1, aiormq 7.2.4, RabbitMQ 3.10.8. Needs Python 3.11 or later and Debian's package
# rabbitmq-server (a private node is started; the installed service is left alone).
#
# `timeout` of publish() is documented as the time within which RabbitMQ has to confirm. aio-pika keeps to it.
# FastStream takes the argument, at publish() of the broker and at a publisher, and never passes it on: a broker that
# stops answering (an alarm, a frozen disk) blocks the caller without limit. Any timeout passes as "long enough".
#
# A timeout of a nanosecond shows it without a broken broker: no confirm is that fast.
#
# Seen:
#   aio-pika: TimeoutError
#   FastStream, broker.publish: confirmed
#   FastStream, publisher.publish: confirmed
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/rabbitmq.sh"
install 'faststream[rabbit]==0.7.8' aio-pika==10.2.1 aiormq==7.2.4
start_rabbitmq
python "$amqp" <<'PYTHON'
import asyncio
import sys

import aio_pika
from faststream.rabbit import RabbitBroker

TIMEOUT = 1e-9


async def outcome(title, publishing):
    try:
        result = await publishing
    except TimeoutError:
        told = "TimeoutError"
    else:
        told = "confirmed" if type(result).__name__ == "Ack" else repr(result)
    print(f"{title}: {told}")
    return told


async def main():
    connection = await aio_pika.connect(sys.argv[1])
    channel = await connection.channel()
    await channel.declare_queue("mail")
    plain = channel.default_exchange.publish(aio_pika.Message(b"example"), "mail", timeout=TIMEOUT)
    assert await outcome("aio-pika", plain) == "TimeoutError"

    broker = RabbitBroker(sys.argv[1], logger=None)
    publisher = broker.publisher("mail", timeout=TIMEOUT)
    await broker.start()
    assert await outcome("FastStream, broker.publish", broker.publish("example", "mail", timeout=TIMEOUT)) == "confirmed"
    assert await outcome("FastStream, publisher.publish", publisher.publish("example")) == "confirmed"
    await broker.stop()
    await connection.close()


asyncio.run(main())
PYTHON
echo "still so"
