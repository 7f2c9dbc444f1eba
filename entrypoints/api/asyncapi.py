"""The AsyncAPI document of the integration events: `python -m entrypoints.api.asyncapi FILE` writes it.

The mail queue is not in it: its messages are between our own processes, and may change with any version.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from faststream.rabbit import RabbitBroker
from faststream.specification.asyncapi import AsyncAPI

from application.integration_events import CONTENT_TYPE, CONTRACT_VERSION, INTEGRATION_EVENTS
from infrastructure.rabbitmq.topology import EVENTS_EXCHANGE

DESCRIPTION: Final = """\
What happens to registrations, for other services: CloudEvents 1.0 in JSON, structured mode, without personal data.

Declare a queue of your own and bind it to the topic exchange with the keys you want, before the events you want: what
nobody is subscribed to is gone. Events are persistent and come at least once; a copy has the `id` of the first, so
pass over what you have seen. Those of one registration come in their order.

A queue that refuses messages when it is full holds the events up for everybody: let it drop or dead-letter its oldest.
Pass over attributes and fields that you do not know. What else changes, changes as a type with the next version."""


def document() -> str:
    """The document as it is committed: the same bytes for the same code."""
    broker = RabbitBroker(specification_url="amqp://localhost:5672/")
    for event in INTEGRATION_EVENTS:
        broker.publisher(
            routing_key=event.ROUTING_KEY,
            exchange=EVENTS_EXCHANGE,
            mandatory=False,
            persist=True,
            title=event.ROUTING_KEY,
            description=event.__doc__,
            schema=event,
        )
    specification = AsyncAPI(broker, title="Registrar", version=CONTRACT_VERSION, description=DESCRIPTION)
    found: dict[str, Any] = json.loads(specification.to_specification().to_json())
    found["defaultContentType"] = CONTENT_TYPE  # FastStream knows one for all brokers
    # Sorted: FastStream keeps publishers in no order.
    return json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
