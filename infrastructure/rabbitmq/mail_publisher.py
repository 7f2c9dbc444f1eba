"""The relay's hand-over to RabbitMQ."""

from __future__ import annotations

from datetime import timedelta

from application.crash_points import crash_point
from application.ports import MailRequest, MailServersAway
from infrastructure.mail.shared_circuits import SharedCircuits
from infrastructure.rabbitmq.connection import Broker
from infrastructure.rabbitmq.mail_message import MESSAGE_TYPE, encode, headers_of, message_id_of
from infrastructure.rabbitmq.topology import MAIL_EXCHANGE, MAIL_REQUESTED


class MailPublisher:
    """The relay's hand-over: returns once the broker has confirmed that it has the request.

    Args:
        message_ttl: how long a request may wait there (`MESSAGE_TTL`).
        circuits: tell whether any mail server can be called; while none can, mails wait in the log, where they neither
            expire nor become dead letters.
    """

    def __init__(self, broker: Broker, *, message_ttl: timedelta, circuits: SharedCircuits) -> None:
        self._broker = broker
        self._message_ttl = message_ttl
        self._circuits = circuits

    async def until_ready(self) -> None:
        """Return when it makes sense to try again."""
        await self._broker.until_up()
        if self._circuits.all_open:
            await self._circuits.looked()

    async def hand_over(self, request: MailRequest) -> None:
        """
        Raises:
            MailServersAway: the mail servers are away.
            Unavailable: the broker is away, or refuses it; whether it arrived may be unknown.
        """
        if not self._circuits.take_probe_permit():
            raise MailServersAway("no mail server may be called now")
        crash_point("relay.before_publish")
        await self._broker.publish(
            encode(request),
            exchange=MAIL_EXCHANGE,
            routing_key=MAIL_REQUESTED,
            message_id=message_id_of(request),
            correlation_id=str(request.correlation_id),
            message_type=MESSAGE_TYPE,
            timestamp=request.requested_at,
            headers=headers_of(request),
            expiration=self._message_ttl,
        )
        crash_point("relay.before_confirm")
