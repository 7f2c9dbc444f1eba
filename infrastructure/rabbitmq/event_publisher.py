"""The integration events' way to RabbitMQ."""

from __future__ import annotations

from application.integration_events import CONTENT_TYPE, IntegrationEvent, encode
from infrastructure.rabbitmq.connection import Broker
from infrastructure.rabbitmq.spans import attributes_of
from infrastructure.rabbitmq.topology import EVENTS_EXCHANGE
from infrastructure.telemetry.trace_context import headers_of_trace
from infrastructure.telemetry.tracing import Kind, Tracing


class EventPublisher:
    """Publishes integration events; see `infrastructure.followers.integration_events.PublishesEvents`."""

    def __init__(self, broker: Broker, tracing: Tracing | None = None) -> None:
        self._broker = broker
        self._tracing = tracing

    async def until_up(self) -> None:
        await self._broker.until_up()

    async def publish(self, event: IntegrationEvent) -> None:
        if self._tracing is None:
            await self._publish(event, event.traceparent)
            return
        destination = f"{EVENTS_EXCHANGE.name}:{event.ROUTING_KEY}"
        attributes = attributes_of("publish", destination, event.ROUTING_KEY) | {
            "messaging.message.conversation_id": str(event.correlationid),
            "registrar.registration_id": str(event.subject),
            "registrar.position": event.data.position,
        }
        with self._tracing.span(
            f"publish {destination}", parent=event.traceparent, kind=Kind.PRODUCER, attributes=attributes
        ) as span:
            await self._publish(event, span.trace)

    async def _publish(self, event: IntegrationEvent, trace: str | None) -> None:
        await self._broker.publish(
            encode(event),
            exchange=EVENTS_EXCHANGE,
            routing_key=event.ROUTING_KEY,
            message_id=event.id,
            correlation_id=str(event.correlationid),
            message_type=event.type,
            timestamp=event.time,
            headers=headers_of_trace(trace),
            content_type=CONTENT_TYPE,
        )
