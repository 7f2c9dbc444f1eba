"""The tap on the broker shows what was published: otherwise the search for canaries there would find nothing, ever."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from infrastructure.rabbitmq.inspection import connected
from infrastructure.rabbitmq.topology import Topology
from tests.faults.tap import Tap
from tests.support.facts import eventually
from tests.support.rabbitmq import PrivateRabbit


async def test_whatever_is_published_is_seen_though_it_expires(rabbit: PrivateRabbit) -> None:
    tap = Tap(rabbit)
    tap.put_in()
    async with connected(rabbit.url(), Topology.of(queue_ttl=timedelta(minutes=5))):
        pass  # declares our own queues, which are shown, too
    message = {
        "routing_key": "mail.requested",
        "payload": "of ada@example.com",
        "payload_encoding": "string",
        "properties": {"expiration": "1", "headers": {"for": "eve@example.com"}},
    }

    rabbit.ask("POST", "exchanges/%2F/registrar/publish", message)

    async def seen() -> bool:
        texts = await asyncio.to_thread(tap.texts)
        return all(word in texts["the broker's published messages"] for word in ("ada@", "eve@"))

    await eventually(seen, every=0.1)
