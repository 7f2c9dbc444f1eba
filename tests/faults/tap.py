"""A tap on the broker: a copy of everything that is published there, to be searched for what must not be in it.

The copies lie in queues of their own, which nobody consumes from, and outlive kills of the node.
"""

from __future__ import annotations

import json
from typing import Any, Final

from infrastructure.rabbitmq.topology import DEAD_EXCHANGE, EVENTS_EXCHANGE, FAILED_QUEUE, MAIL_EXCHANGE, MAIL_QUEUE
from tests.support.rabbitmq import PrivateRabbit

_TAP: Final = "tests.tap"
_KEPT: Final = "tests.tap.kept"
_ALL: Final = 10**6


class Tap:
    """On the default virtual host of a node; put it in before anything is published."""

    def __init__(self, rabbit: PrivateRabbit) -> None:
        self._rabbit = rabbit

    def put_in(self) -> None:
        # What is published expires within a minute wherever it lies; what dies of that comes out without an expiry.
        dies_at_once = {"x-message-ttl": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": _KEPT}
        for queue, arguments in ((_KEPT, {}), (_TAP, dies_at_once)):
            self._rabbit.ask("PUT", f"queues/%2F/{queue}", {"durable": True, "arguments": arguments})
        for exchange in (MAIL_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE):
            self._rabbit.ask("PUT", f"exchanges/%2F/{exchange.name}", {"type": "topic", "durable": True})
            self._rabbit.ask("POST", f"bindings/%2F/e/{exchange.name}/q/{_TAP}", {"routing_key": "#"})

    def texts(self) -> dict[str, str]:
        """All that was published, and all that lies in our own queues: bodies, headers and properties, by place."""
        places = {"published messages": _KEPT, MAIL_QUEUE: MAIL_QUEUE, FAILED_QUEUE: FAILED_QUEUE}
        return {f"the broker's {place}": _lines(self._messages(queue)) for place, queue in places.items()}

    def _messages(self, queue: str) -> list[dict[str, Any]]:
        wish = {"count": _ALL, "ackmode": "ack_requeue_true", "encoding": "auto"}
        messages: list[dict[str, Any]] = self._rabbit.ask("POST", f"queues/%2F/{queue}/get", wish)
        return messages


def _lines(messages: list[dict[str, Any]]) -> str:
    return "\n".join(f"{message['payload']} {json.dumps(message['properties'])}" for message in messages)
