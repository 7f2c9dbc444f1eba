"""Hear what becomes of registrations: a queue of one's own at the exchange `registrar.events`.

    python examples/subscribe.py amqp://user:password@127.0.0.1:5672/ my-service

Delivery is at least once and in order per registration: what was seen before is passed over by its `id`, and a
message is acknowledged only after its effect is safe. `docs/asyncapi.json` describes every event.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import aio_pika


async def events(url: str, queue_name: str) -> AsyncIterator[dict[str, Any]]:
    """CloudEvents, each acknowledged when the next one is asked for; the connection is restored by itself."""
    async with await aio_pika.connect_robust(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        exchange = await channel.declare_exchange("registrar.events", aio_pika.ExchangeType.TOPIC, durable=True)
        # Durable: events wait here while nobody listens. Never `reject-publish`: a full one would hold up everybody.
        queue = await channel.declare_queue(queue_name, durable=True)
        await queue.bind(exchange, "registration.#")
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process(requeue=True):
                    yield json.loads(message.body)


async def main(url: str, queue_name: str) -> None:
    seen: set[str] = set()  # a real subscriber keeps them in the database, in the transaction of their effect
    async for event in events(url, queue_name):
        if event["id"] not in seen:
            seen.add(event["id"])
            print(event["type"], event["subject"], flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
