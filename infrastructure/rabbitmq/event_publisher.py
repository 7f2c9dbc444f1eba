"""The integration events' way to RabbitMQ."""

from __future__ import annotations

from application.integration_events import CONTENT_TYPE, IntegrationEvent, encode
from infrastructure.rabbitmq.connection import Broker
from infrastructure.rabbitmq.topology import EVENTS_EXCHANGE


class EventPublisher:
    """Publishes integration events; see `infrastructure.followers.integration_events.PublishesEvents`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def until_up(self) -> None:
        await self._broker.until_up()

    async def publish(self, event: IntegrationEvent) -> None:
        await self._broker.publish(
            encode(event),
            exchange=EVENTS_EXCHANGE,
            routing_key=event.ROUTING_KEY,
            message_id=event.id,
            correlation_id=str(event.correlationid),
            message_type=event.type,
            timestamp=event.time,
            headers={} if event.traceparent is None else {"traceparent": event.traceparent},
            content_type=CONTENT_TYPE,
        )
