"""What other services hear of registrations, over a real RabbitMQ."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from structlog.testing import capture_logs
from tenacity import wait_fixed

from application.commands import RegisterUser
from application.ports import Context, entries_of
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers.integration_events import IntegrationEvents
from infrastructure.followers.leadership import lead
from infrastructure.postgres.connection import connect
from infrastructure.postgres.notifications import Notifications
from infrastructure.rabbitmq.connection import Broker
from infrastructure.rabbitmq.event_publisher import EventPublisher
from infrastructure.rabbitmq.topology import Topology
from infrastructure.settings.settings import Settings
from tests.faults.canaries import occurs
from tests.support.facts import (
    CLIENT,
    REGISTRATION,
    account_activated,
    email_dispatched,
    email_verified,
    eventually,
    otp_issued,
    otp_revoked,
    personal_data_erased,
    registered,
    registration_cancelled,
    stream,
)
from tests.support.rabbitmq import PrivateRabbit
from tests.support.service import open_service

EXCHANGE = "registrar.events"


# --- Words ----------------------------------------------------------------------------------------


@asynccontextmanager
async def publishing(dsn: str, store: EventStore, url: str) -> AsyncIterator[None]:
    notifications = Notifications(dsn)
    broker = Broker(url, name="test", topology=Topology.of(queue_ttl=timedelta(minutes=5)), pauses=wait_fixed(0.2))
    events = IntegrationEvents(tail=LogTail(store), notifications=notifications, publisher=EventPublisher(broker))
    tasks = [asyncio.create_task(work) for work in (notifications.run(), broker.run(), lead(events, dsn))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Subscriber:
    """Another service, with a queue of its own and everything that came into it."""

    def __init__(self, url: str, *, queue: str = "another-service") -> None:
        self._url = url
        self._queue = queue
        self.got: list[AbstractIncomingMessage] = []

    async def subscribe(self, *, keys: str = "registration.#", arguments: dict[str, int | str] | None = None) -> None:
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
            queue = await channel.declare_queue(self._queue, durable=True, arguments=arguments)  # type: ignore[arg-type]
            await queue.bind(exchange, keys)

    async def take(self, limit: int = 10_000) -> None:
        """Take what has come, at most so many."""
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(self._queue)
            for _ in range(limit):
                message = await queue.get(no_ack=True, fail=False)
                if message is None:
                    return
                self.got.append(message)

    async def has(self, count: int) -> bool:
        """Have so many different events come, copies not counted?"""
        with suppress(*aio_pika.exceptions.CONNECTION_EXCEPTIONS):
            await self.take()
        return len(set(self.ids)) >= count

    @property
    def ids(self) -> list[str]:
        return [message.message_id or "" for message in self.got]

    @property
    def bodies(self) -> list[dict[str, object]]:
        return [json.loads(message.body) for message in self.got]

    def of_each(self) -> dict[str, list[str]]:
        """The routing keys of each registration's events in the order of their first arrival."""
        found: dict[str, list[str]] = defaultdict(list)
        for message, body in zip(self.got, self.bodies, strict=True):
            key = (message.routing_key or "").removeprefix("registration.")
            if key not in found[str(body["subject"])]:
                found[str(body["subject"])].append(key)
        return found


async def many_lives(store: EventStore, first: int, count: int) -> list[UUID]:
    """Registrations that were all activated; three events of each are told."""
    ids = [UUID(int=first + number) for number in range(count)]
    life = (registered(), otp_issued(), email_verified(), account_activated())
    await asyncio.gather(*(store.append(entries_of(stream(one, *life), CLIENT)) for one in ids))
    return ids


async def position(dsn: str) -> int:
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        row = await (
            await connection.execute("SELECT position FROM followers WHERE name = %s", (IntegrationEvents.name,))
        ).fetchone()
        return row[0] if row is not None else 0


# --- What comes -----------------------------------------------------------------------------------


async def test_a_registrations_life_is_told_in_order(dsn: str, store: EventStore, broker_url: str) -> None:
    subscriber = Subscriber(broker_url)
    await subscriber.subscribe()
    life = (registered(), otp_issued(), email_dispatched(), email_verified(), account_activated())
    erasure = (otp_revoked(), registration_cancelled("erased"), personal_data_erased())
    await store.append(entries_of(stream(REGISTRATION, *life, *erasure), CLIENT))

    async with publishing(dsn, store, broker_url):
        await eventually(lambda: subscriber.has(5))

    assert [message.routing_key for message in subscriber.got] == [
        f"registration.{what}" for what in ("accepted", "verified", "activated", "cancelled", "erased")
    ]
    assert [body["data"] for body in subscriber.bodies] == [
        {"registration_id": str(REGISTRATION), "position": 1},
        {"registration_id": str(REGISTRATION), "position": 4},
        {"registration_id": str(REGISTRATION), "position": 5},
        {"registration_id": str(REGISTRATION), "position": 7, "reason": "withdrawn"},
        {"registration_id": str(REGISTRATION), "position": 8},
    ]


async def test_an_event_is_persistent_and_its_attributes_stand_beside_it_too(
    dsn: str, store: EventStore, broker_url: str
) -> None:
    subscriber = Subscriber(broker_url)
    await subscriber.subscribe()
    await store.append(entries_of(stream(REGISTRATION, registered()), CLIENT))

    async with publishing(dsn, store, broker_url):
        await eventually(lambda: subscriber.has(1))

    (message,), (body,) = subscriber.got, subscriber.bodies
    assert message.content_type == "application/cloudevents+json"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert (message.message_id, message.type) == (body["id"], body["type"])
    assert message.correlation_id == body["correlationid"] == str(CLIENT.correlation_id)


@pytest.mark.slow
async def test_what_happened_before_there_was_a_broker_is_told_as_well(
    dsn: str, store: EventStore, broker_url: str
) -> None:
    subscriber = Subscriber(broker_url)
    await subscriber.subscribe()
    ids = await many_lives(store, 1, 300)

    async with publishing(dsn, store, broker_url):
        await eventually(lambda: subscriber.has(900))

    assert subscriber.of_each() == {str(one): ["accepted", "verified", "activated"] for one in ids}


async def test_a_subscriber_hears_only_what_it_asked_for(dsn: str, store: EventStore, broker_url: str) -> None:
    subscriber = Subscriber(broker_url)
    await subscriber.subscribe(keys="registration.activated")
    await many_lives(store, 1, 2)

    async with publishing(dsn, store, broker_url):
        await eventually(lambda: subscriber.has(2))

    assert {message.routing_key for message in subscriber.got} == {"registration.activated"}


async def test_nobody_has_to_listen(dsn: str, store: EventStore, broker_url: str) -> None:
    await many_lives(store, 1, 3)

    async with publishing(dsn, store, broker_url):
        await eventually(lambda: _is_at(dsn, 12))


async def _is_at(dsn: str, expected: int) -> bool:
    return await position(dsn) == expected


async def test_a_service_tells_of_a_registration_and_nothing_of_the_person(
    dsn: str, broker_url: str, tmp_path: Path
) -> None:
    subscriber = Subscriber(broker_url)
    await subscriber.subscribe()
    person = {"email": "Canary.Ada@example.org", "name": "Canary Lovelace", "password": "canary sings in cages"}
    settings = Settings.from_environment(
        {
            "REGISTRAR_DATABASE_URL": dsn,
            "REGISTRAR_BROKER_URL": broker_url,
            "REGISTRAR_MASTER_KEY": secrets.token_hex(32),
            "REGISTRAR_DATA_DIR": str(tmp_path),
        }
    )
    async with open_service(settings, follows=True) as service:
        context = Context("client", uuid4())
        answer = await service.handlers.handle(RegisterUser.model_validate(person), context)
        await eventually(lambda: subscriber.has(1))
        names = {one.name for one in (await service.api.queries.followers.progress()).items}

    (message,) = subscriber.got
    assert subscriber.bodies[0]["subject"] == str(answer.subject_id)
    assert occurs(message.body.decode() + repr(message.properties), person.values()) == []
    assert IntegrationEvents.name in names


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_broker_that_is_killed_in_between_loses_no_event(
    dsn: str, store: EventStore, killable_rabbit: PrivateRabbit
) -> None:
    url = killable_rabbit.vhost()
    subscriber = Subscriber(url)
    await subscriber.subscribe()
    async with publishing(dsn, store, url):
        before = await many_lives(store, 1, 200)
        await eventually(lambda: subscriber.has(1))

        await asyncio.to_thread(killable_rabbit.kill)
        meanwhile = await many_lives(store, 1001, 50)
        assert await position(dsn) < 1000
        await asyncio.to_thread(killable_rabbit.start)

        await eventually(lambda: subscriber.has(750), within=60)
        await eventually(lambda: _is_at(dsn, 1000))

    assert subscriber.of_each() == {str(one): ["accepted", "verified", "activated"] for one in (*before, *meanwhile)}


async def test_a_crash_before_the_position_is_saved_repeats_the_events_under_the_same_ids(
    dsn: str, store: EventStore, broker_url: str
) -> None:
    subscriber = Subscriber(broker_url)
    await subscriber.subscribe()
    await many_lives(store, 1, 1)

    async with (
        await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as holder,
        publishing(dsn, store, broker_url),
    ):
        await eventually(lambda: subscriber.has(3))
        await eventually(lambda: _is_at(dsn, 4))  # it follows: who begins to would wait for the lock
        subscriber.got.clear()
        async with holder.transaction():
            await holder.execute("SELECT FROM followers WHERE name = %s FOR UPDATE", (IntegrationEvents.name,))
            await many_lives(store, 2, 2)
            await eventually(lambda: subscriber.has(6))
            first = list(subscriber.ids)
            await eventually(lambda: _killed_while_saving(dsn))
        subscriber.got.clear()

        await eventually(lambda: subscriber.has(6))
        await eventually(lambda: _is_at(dsn, 12))

    assert sorted(first) == sorted(subscriber.ids)


async def _killed_while_saving(dsn: str) -> bool:
    """Is the leader's session ended, while it waits for the lock on its position? To save it; or, where that has timed
    out, to read it again."""
    async with await connect(dsn, name="killer", statement_timeout=timedelta(seconds=10)) as connection:
        cursor = await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND query ~ '^(UPDATE|SELECT position FROM) followers'"
            " AND datname = current_database()"
        )
        return cursor.rowcount == 1


async def test_a_full_queue_of_a_subscriber_holds_events_up_and_loses_none(
    dsn: str, store: EventStore, broker_url: str
) -> None:
    subscriber = Subscriber(broker_url)
    await subscriber.subscribe(arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await store.append(entries_of(stream(REGISTRATION, registered(), email_verified(), account_activated()), CLIENT))

    with capture_logs() as said:
        async with publishing(dsn, store, broker_url):
            await eventually(lambda: "integration_events.refused" in {entry["event"] for entry in said})
            assert await position(dsn) < 3

            await eventually(lambda: subscriber.has(3))
            await eventually(lambda: _is_at(dsn, 3))

    assert subscriber.of_each() == {str(REGISTRATION): ["accepted", "verified", "activated"]}
