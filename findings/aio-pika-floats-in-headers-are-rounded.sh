#!/usr/bin/env bash
# aio-pika 10.2.1 with pamqp 4.0.1, pika 1.4.4, py-amqp 5.4.2 (kombu 5.7.0), RabbitMQ 3.10.8. Needs Python 3.11 or later
# and Debian's package rabbitmq-server (a private node is started; the installed service is left alone).
#
# A float in a message's headers, such as the time.time() at which it was sent or will be too old, is written by aio-pika,
# and so by FastStream, with 32 bits, though AMQP has a double and kombu uses it. A time in seconds is left with steps of
# 128: a message seems to have been sent up to a minute ago, or will be, and who measures or expires by it is wrong by as
# much. Nothing is raised below 3.4e38. pika, for its part, cuts any float that it reads to a whole number: a share of 0.75
# is 0 (issue 599 of pika/pika; released versions still do).
#
# Expected: the float that was given, as between two programs with kombu.
# Seen:
#   kombu to kombu: sent_at 1795982983.25, share 0.75
#   aio-pika to aio-pika: sent_at 1795982976.0, share 0.75
#   aio-pika to kombu: sent_at 1795982976.0, share 0.75
#   kombu to pika: sent_at 1795982983, share 0
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
source "$(dirname "$0")/support/rabbitmq.sh"
install aio-pika==10.2.1 pamqp==4.0.1 pika==1.4.4 kombu==5.7.0 amqp==5.4.2
start_rabbitmq
python "$amqp" <<'PYTHON'
import asyncio
import sys

import aio_pika
import kombu
import pika

HEADERS = {"sent_at": 1795982983.25, "share": 0.75}
URL, QUEUE = sys.argv[1], "finding"


class AioPika:
    name = "aio-pika"

    def send(self):
        async def sending():
            async with await aio_pika.connect(URL) as connection:
                channel = await connection.channel()
                await channel.default_exchange.publish(aio_pika.Message(b"", headers=HEADERS), QUEUE)

        asyncio.run(sending())

    def receive(self):
        async def receiving():
            async with await aio_pika.connect(URL) as connection:
                queue = await (await connection.channel()).get_queue(QUEUE)
                return (await queue.get(no_ack=True)).headers

        return asyncio.run(receiving())


class Kombu:
    name = "kombu"

    def send(self):
        with kombu.Connection(URL) as connection, connection.Producer() as producer:
            producer.publish(b"", routing_key=QUEUE, headers=HEADERS)

    def receive(self):
        with kombu.Connection(URL) as connection:
            return connection.default_channel.basic_get(QUEUE, no_ack=True).headers


class Pika:
    name = "pika"

    def receive(self):
        connection = pika.BlockingConnection(pika.URLParameters(URL))
        try:
            return connection.channel().basic_get(QUEUE, auto_ack=True)[1].headers
        finally:
            connection.close()


def across(sender, receiver):
    sender.send()
    headers = receiver.receive()
    times, share = headers["sent_at"], headers["share"]
    print(f"{sender.name} to {receiver.name}: sent_at {times!s}, share {share!s}")
    return times, share


with kombu.Connection(URL) as connection:
    kombu.Queue(QUEUE, durable=True)(connection.default_channel).declare()
assert across(Kombu(), Kombu()) == (1795982983.25, 0.75)
assert across(AioPika(), AioPika()) == (1795982976.0, 0.75)
assert across(AioPika(), Kombu()) == (1795982976.0, 0.75)
assert across(Kombu(), Pika()) == (1795982983, 0)
PYTHON
echo "still so"
