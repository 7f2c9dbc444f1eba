"""A tap on the broker: a copy of everything that is published there, to be searched for what must not be in it.

The copies lie in queues of their own, which nobody consumes from, and outlive kills of the node.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from infrastructure.rabbitmq.topology import DEAD_EXCHANGE, EVENTS_EXCHANGE, FAILED_QUEUE, MAIL_EXCHANGE, MAIL_QUEUE
from tests.support.rabbitmq import PrivateRabbit

_TAP: Final = "tests.tap"
_KEPT: Final = "tests.tap.kept"
_ALL: Final = 10**6
_AT_ONCE: Final = 2_000
"""The node makes one answer of it, in memory, and ours is waited for no longer than for any other."""


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
        """All that was published, and all that lies in our own queues: bodies, headers and properties, by place.

        The copies are taken out; what lies in our own queues stays there.
        """
        texts = {f"the broker's {queue}": _lines(self._look(queue)) for queue in (MAIL_QUEUE, FAILED_QUEUE)}
        return {"the broker's published messages": "\n".join(self._taken_out()), **texts}

    def _look(self, queue: str) -> list[dict[str, Any]]:
        return self._get(queue, count=_ALL, ackmode="ack_requeue_true")

    def _taken_out(self) -> Iterator[str]:
        while messages := self._get(_KEPT, count=_AT_ONCE, ackmode="ack_requeue_false"):
            yield _lines(messages)

    def _get(self, queue: str, **wish: int | str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self._rabbit.ask(
            "POST", f"queues/%2F/{queue}/get", {**wish, "encoding": "auto"}
        )
        return messages


def _lines(messages: list[dict[str, Any]]) -> str:
    return "\n".join(f"{message['payload']} {json.dumps(message['properties'])}" for message in messages)
