"""`registrar broker`: what RabbitMQ holds for us."""

from __future__ import annotations

from aio_pika.exceptions import AMQPError

from application.ports import Unavailable
from entrypoints.bootstrap import CannotStart
from entrypoints.cli.output import print_json, print_table
from infrastructure.rabbitmq.inspection import connected
from infrastructure.rabbitmq.session import REFUSAL_HINT, REFUSALS
from infrastructure.rabbitmq.topology import FAILED_QUEUE, MAIL_QUEUE, Topology, TopologyMismatch
from infrastructure.settings.settings import Settings


async def declare(settings: Settings, *, anew: bool, as_json: bool) -> int:
    """Declare the topology and prove it by a message; with `anew`, delete the queues before.

    Raises:
        CannotStart: no broker is set, it refuses us, or holds queues with other properties.
        Unavailable: it is away.
    """
    if settings.broker_url is None:
        raise CannotStart("REGISTRAR_BROKER_URL is not set; set it to something like amqp://user:password@host:5672/.")
    topology = Topology.of(queue_ttl=settings.queue_ttl)
    delete = (MAIL_QUEUE, FAILED_QUEUE) if anew else ()
    try:
        async with connected(settings.broker_url.get_secret_value(), topology, delete=delete) as session:
            counts = await session.counts()
    except TopologyMismatch as error:
        raise CannotStart(str(error)) from None
    except REFUSALS:
        raise CannotStart(f"RabbitMQ refuses us: {REFUSAL_HINT}.") from None
    except (AMQPError, OSError, TimeoutError) as error:
        raise Unavailable(f"RabbitMQ cannot be reached ({type(error).__name__})") from None
    if as_json:
        print_json({"queues": counts})
    else:
        print_table(("queue", "messages", "consumers"), [(name, *count.values()) for name, count in counts.items()])
    return 0
