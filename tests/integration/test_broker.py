"""A process's connection to RabbitMQ."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from urllib.parse import urlsplit

from faststream.rabbit import RabbitMessage

from infrastructure.broker import FAILED_QUEUE, MAIL_QUEUE, Broker, Consumer, Topology
from tests.rabbitmq import PrivateRabbit
from tests.words import eventually


async def test_each_consumer_has_no_more_messages_in_hand_than_it_asks_for(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    async def handle(message: RabbitMessage) -> None:
        await message.ack()

    broker = Broker(
        broker_url,
        name="test",
        topology=Topology.of(queue_ttl=timedelta(minutes=5)),
        consumers=(Consumer(MAIL_QUEUE, handle, prefetch=3), Consumer(FAILED_QUEUE, handle, prefetch=2)),
    )
    running = asyncio.create_task(broker.run())
    try:
        await asyncio.wait_for(broker.until_up(), 20)

        def prefetched() -> bool:
            consumers = rabbit.ask("GET", f"consumers{urlsplit(broker_url).path}")
            prefetch = {one["queue"]["name"]: one["prefetch_count"] for one in consumers}
            assert (prefetch.get(MAIL_QUEUE), prefetch.get(FAILED_QUEUE)) == (3, 2)
            return True

        await eventually(prefetched, within=20)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
