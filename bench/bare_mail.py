"""What mail through RabbitMQ is compared with: FastStream alone, and SMTP alone, each in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import uvloop
from aiosmtplib import SMTP
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage

from application.ports import MailRequest, WantedMail
from domain.mail_outcome import MailKind
from infrastructure.mail.composing import Composer
from infrastructure.mail.look import Look
from infrastructure.mail.rendering import TemplateLetters
from infrastructure.mail.smtp.pool import CONNECTIONS
from infrastructure.rabbitmq.mail_message import encode
from infrastructure.rabbitmq.mail_worker import PREFETCH
from infrastructure.rabbitmq.topology import MAIL_EXCHANGE, MAIL_REQUESTED, Topology, declare
from infrastructure.settings.sender import mailbox

PUBLISHING = 128


async def faststream(url: str, mails: int) -> float:
    """Messages a second through the same queue, published with confirms and consumed with acknowledgements."""
    broker = RabbitBroker(url, default_channel=Channel(on_return_raises=True), apply_types=False, logger=None)
    topology = Topology.of(queue_ttl=timedelta(hours=1))
    done = asyncio.Event()
    taken = 0

    async def take(message: RabbitMessage) -> None:
        nonlocal taken
        await message.ack()
        taken += 1
        if taken == mails:
            done.set()

    subscriber = broker.subscriber(
        topology.mail,
        MAIL_EXCHANGE,
        channel=Channel(prefetch_count=PREFETCH),
        ack_policy=AckPolicy.MANUAL,
        decoder=_undecoded,
        no_reply=True,
    )
    subscriber(take)
    await broker.connect()
    await declare(broker, topology)
    await broker.start()
    gate = asyncio.Semaphore(PUBLISHING)

    async def publish() -> None:
        async with gate:
            now = datetime.now(UTC)
            body = encode(MailRequest(WantedMail(uuid4(), 1, MailKind.CODE, now), 1, uuid4(), None))
            await broker.publish(
                body, exchange=MAIL_EXCHANGE, routing_key=MAIL_REQUESTED, persist=True, message_id=uuid4().hex
            )

    begun = time.perf_counter()
    await asyncio.gather(*(publish() for _ in range(mails)))
    await done.wait()
    took = time.perf_counter() - begun
    await broker.stop()
    return mails / took


async def _undecoded(message: RabbitMessage) -> RabbitMessage:
    return message


async def smtp(port: int, mails: int) -> float:
    """Mails a second over as many connections as a worker has, each rendered as ours are."""
    letters = TemplateLetters(
        ttl=timedelta(minutes=10), look=Look("http://localhost"), sender="Registrar <no-reply@registrar.localhost>"
    )
    composer = Composer("Registrar <no-reply@registrar.localhost>")
    numbers = iter(range(mails))

    async def work() -> None:
        client = SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False)
        await client.connect()
        for number in numbers:
            to = mailbox(f"bare-{number}@bench.example")
            letter = letters.code(to=to, locale="en", code="123456", message_id=f"{number}.1", registration_id=uuid4())
            await client.sendmail("no-reply@registrar.localhost", [to], composer.compose(letter, to, datetime.now(UTC)))
        await client.quit()

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return mails / (time.perf_counter() - begun)


def main(job: dict[str, Any]) -> float:
    what = job.pop("what")
    return uvloop.run(faststream(**job) if what == "faststream" else smtp(**job))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
