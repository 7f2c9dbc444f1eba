"""A node of RabbitMQ that is stopped, killed, wiped or blocked, and queues that are dead: mails come late, none is
lost."""

from __future__ import annotations

import asyncio
import io
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from infrastructure.mail.smtp.pool import FIRST_CONNECTIONS
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.rabbitmq.inspection import connected
from infrastructure.rabbitmq.topology import FAILED_QUEUE, MAIL_QUEUE, Topology
from tests.faults.fleet import AT_ONCE, Fleet
from tests.faults.invariants import INVARIANTS
from tests.faults.journal import Client, Operation
from tests.faults.scene import Scene
from tests.support.broker import channel_to, put, until_empty, until_lost, until_up, vhost_of, waiting
from tests.support.facts import eventually
from tests.support.mail import until_recorded
from tests.support.rabbitmq import PrivateRabbit
from tests.support.smtp_stub import SmtpStub

WITHOUT_CLOCKS = sorted(INVARIANTS.keys() - {"I13"})
"""Where a node's clock is ahead on purpose."""

pytestmark = pytest.mark.slow


@pytest.fixture
async def scene_on_node(
    dsn: str, killable_rabbit: PrivateRabbit, sink: SmtpStub, tmp_path: Path, reached_directory: Path
) -> AsyncIterator[Scene]:
    """As `scene_over_broker`, on a virtual host of the node that may be killed."""
    url = killable_rabbit.vhost()
    fleet = Fleet(dsn, sink.port, directory=tmp_path, reached=reached_directory, broker_url=url, stop_delay=AT_ONCE)
    async with Scene.on(fleet, sink) as scene:
        yield scene


def configure(rabbit: PrivateRabbit, **settings: int) -> None:
    """Set what the node reads when a channel or a queue begins; its next start forgets it."""
    rabbit.evaluate(", ".join(f"ok = application:set_env(rabbit, {name}, {to})" for name, to in settings.items()))


def url_of(scene: Scene) -> str:
    return scene.fleet.settings()["REGISTRAR_BROKER_URL"]


class Later(DatabaseClock):
    """Three minutes from now: the saga's second look is due."""

    def __call__(self) -> datetime:
        return super().__call__() + timedelta(minutes=3)


@pytest.mark.fault("C1")
async def test_while_the_broker_is_stopped_registrations_are_taken_and_mailed_once_it_is_back(
    scene_on_node: Scene, killable_rabbit: PrivateRabbit
) -> None:
    scene = scene_on_node
    client = await scene.client_within()
    async with scene.within(follows=True, works=True) as service:
        await until_up(service)
        with scene.faults.during("broker stopped", "broker"):
            await asyncio.to_thread(killable_rabbit.kill, signal.SIGTERM)
            registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(20)]
            await until_lost(service)
            assert (await client.health("ready"))["status"] == "degraded"
            assert (await client.health("rabbitmq"))["status"] == "down"
            assert scene.sink.mails == []
            await asyncio.to_thread(killable_rabbit.start)

        await scene.prove(client, *registered, within=60)
        assert set(scene.copies.values()) == {1}
        await eventually_up(client)
        await scene.must_hold()


async def eventually_up(client: Client) -> None:
    async def up() -> bool:
        return [(await client.health(part))["status"] for part in ("ready", "rabbitmq")] == ["up", "up"]

    await eventually(up, within=60, every=0.2)


@pytest.mark.fault("C2")
async def test_a_broker_that_is_killed_under_load_costs_no_mail_and_doubles_none(
    scene_on_node: Scene, killable_rabbit: PrivateRabbit
) -> None:
    scene = scene_on_node
    client = await scene.client_within()
    registered: list[Operation] = []
    enough = asyncio.Event()

    async def crowd() -> None:
        while not enough.is_set():
            registered.append(await scene.accepted(client, f"person-{len(registered)}@example.com"))
            with suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), 0.05)  # twenty a second, beside all else that this process does

    async with scene.within(follows=True, works=True) as service:
        await until_up(service)
        load = asyncio.create_task(crowd())
        await eventually(lambda: len(scene.sink.mails) >= 20)
        with scene.faults.during("broker killed", "broker"):
            await asyncio.to_thread(killable_rabbit.kill)
            during = len(registered)
            await eventually(lambda: len(registered) >= during + 20)
            enough.set()
            await load
            await asyncio.to_thread(killable_rabbit.start)

        await eventually(lambda: len(scene.copies) >= len(registered), within=60)
        await scene.prove(client, *registered[::10])
        assert set(scene.copies.values()) == {1}
        await scene.must_hold()


@pytest.mark.fault("C2")
async def test_mails_that_a_worker_has_in_hand_when_the_broker_is_killed_are_seen_through_and_not_sent_again(
    scene_on_node: Scene, killable_rabbit: PrivateRabbit
) -> None:
    scene = scene_on_node
    client = await scene.client_within()
    async with scene.within(follows=True, works=True, send_timeout="60") as service:
        await until_up(service)
        scene.sink.at("eod", "wait")
        registered = [
            await scene.accepted(client, f"person-{number}@example.com") for number in range(FIRST_CONNECTIONS)
        ]
        await eventually(lambda: len(scene.sink.mails) == FIRST_CONNECTIONS)
        with scene.faults.during("broker killed", "broker"):
            await asyncio.to_thread(killable_rabbit.kill)
            await until_lost(service)
            scene.sink.go_on.set()
            await until_recorded(scene.fleet.dsn, "registration.email_dispatched", FIRST_CONNECTIONS)
            await asyncio.to_thread(killable_rabbit.start)

        await until_up(service)
        await until_empty(url_of(scene))
        await scene.prove(client, *registered)
        assert scene.copies == {f"person-{number}@example.com".encode(): 1 for number in range(FIRST_CONNECTIONS)}
        await scene.must_hold()


@pytest.mark.fault("C3")
async def test_a_broker_that_is_killed_right_after_its_queues_were_declared_serves_again(
    scene_on_node: Scene, killable_rabbit: PrivateRabbit
) -> None:
    scene = scene_on_node
    client = await scene.client_within(broker_up=True)
    with scene.faults.during("broker killed", "broker"):
        await asyncio.to_thread(killable_rabbit.kill)  # milliseconds after the declaration
        registered = await scene.accepted(client, "ada@example.com")
        await asyncio.to_thread(killable_rabbit.start)

    async with scene.within(follows=True, works=True):
        await scene.prove(client, registered, within=60)
        assert scene.copies == {b"ada@example.com": 1}
        await scene.must_hold()


@pytest.mark.parametrize("queue", [MAIL_QUEUE, FAILED_QUEUE])
@pytest.mark.fault("C3")
async def test_a_queue_that_takes_nothing_is_found_by_the_canary_and_made_anew(
    scene_on_node: Scene, killable_rabbit: PrivateRabbit, log: io.StringIO, queue: str
) -> None:
    scene = scene_on_node
    client = await scene.client_within(broker_up=True)
    with scene.faults.during("queue dead", "broker"):
        # Without its server it has no leader that could confirm: what such a kill leaves behind.
        server = f"{{'{vhost_of(url_of(scene))}_{queue}', node()}}"
        await asyncio.to_thread(killable_rabbit.evaluate, f"ok = ra:stop_server(quorum_queues, {server})")
        registered = await scene.accepted(client, "ada@example.com")
        async with scene.within(follows=True, works=True):
            await scene.prove(client, registered, within=60)
            assert "broker.queue_is_dead" in log.getvalue()
            assert scene.copies == {b"ada@example.com": 1}
            await scene.must_hold()


@pytest.mark.fault("C4")
async def test_a_broker_that_comes_back_empty_is_declared_anew_and_everything_pending_is_asked_for_again(
    dsn: str, killable_rabbit: PrivateRabbit, sink: SmtpStub, tmp_path: Path, reached_directory: Path
) -> None:
    # The only virtual host that a fresh node has.
    fleet = Fleet(dsn, sink.port, directory=tmp_path, reached=reached_directory, broker_url=killable_rabbit.url())
    async with Scene.on(fleet, sink) as scene:
        client = await scene.client_within(broker_up=True)
        async with scene.within(follows=True) as service:
            await until_up(service)
            registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(5)]

            async def published() -> bool:
                return await waiting(url_of(scene)) >= len(registered)

            await eventually(published, every=0.2)
            with scene.faults.during("broker wiped", "broker"):
                await asyncio.to_thread(killable_rabbit.kill)
                killable_rabbit.forget()
                await asyncio.to_thread(killable_rabbit.start)
                await until_up(service)
        assert await waiting(url_of(scene)) < len(registered)  # what was confirmed is gone

        async with scene.within(follows=True, works=True, clock=Later()):
            # then: the saga's second look, due after two minutes, asks again
            await scene.prove(client, *registered, within=60)
            assert set(scene.copies.values()) == {1}
            await scene.must_hold(only=WITHOUT_CLOCKS)


@pytest.mark.fault("C8")
async def test_a_broker_that_blocks_its_publishers_for_memory_delays_mails_and_says_so(
    scene_on_node: Scene, killable_rabbit: PrivateRabbit
) -> None:
    scene = scene_on_node
    watermark = "ok = vm_memory_monitor:set_vm_memory_high_watermark({})"
    client = await scene.client_within(broker_up=True)
    async with scene.within(follows=True, works=True) as service:
        await until_up(service)
        with scene.faults.during("broker out of memory", "broker"):
            try:
                await asyncio.to_thread(killable_rabbit.evaluate, watermark.format(0.0001))
                assert "memory" in await asyncio.to_thread(killable_rabbit.evaluate, "rabbit_alarm:get_alarms()")
                registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(5)]
                await until_lost(service)
                assert (await client.health("rabbitmq"))["status"] == "down"
                assert (await client.health("ready"))["status"] == "degraded"
            finally:
                await asyncio.to_thread(killable_rabbit.evaluate, watermark.format(0.6))

        await scene.prove(client, *registered, within=60)
        assert set(scene.copies.values()) == {1}
        await scene.must_hold()


@pytest.mark.fault("C15")
async def test_a_message_that_dies_while_there_is_no_queue_for_the_dead_is_kept_until_there_is(
    killable_rabbit: PrivateRabbit,
) -> None:
    # It looks again after 3 minutes otherwise.
    configure(killable_rabbit, dead_letter_worker_publisher_confirm_timeout=1000)
    url = killable_rabbit.vhost()
    topology = Topology.of(queue_ttl=timedelta(minutes=5))
    async with connected(url, topology):
        pass
    async with channel_to(url) as channel:
        await channel.queue_delete(FAILED_QUEUE)
        await put(url, b"rejected")
        queue = await channel.get_queue(MAIL_QUEUE, ensure=False)
        while (message := await queue.get(fail=False)) is not None:
            await message.reject()

    async with connected(url, topology):

        async def dead() -> bool:
            return await waiting(url, FAILED_QUEUE) >= 1

        await eventually(dead, within=60, every=0.2)


@pytest.mark.fault("C16")
async def test_a_message_that_is_held_for_too_long_comes_again_and_is_mailed_once(
    scene_on_node: Scene, killable_rabbit: PrivateRabbit
) -> None:
    scene = scene_on_node
    client = await scene.client_within(broker_up=True)
    configure(killable_rabbit, consumer_timeout=3000, channel_tick_interval=500)  # 30 minutes, looked at once a minute
    try:
        scene.sink.at("rcpt", "hang", times=1)
        async with scene.within(follows=True, works=True, send_timeout="30") as service:
            await until_up(service)
            registered = await scene.accepted(client, "ada@example.com")
            await eventually(lambda: scene.sink.faults["rcpt"] == 1)
            await eventually(lambda: "timed out" in killable_rabbit.log, within=60, every=0.2)
            scene.sink.drop_connections()

            await scene.prove(client, registered, within=60)
            await until_empty(url_of(scene))
            assert scene.copies == {b"ada@example.com": 1}
            await scene.must_hold()
    finally:
        configure(killable_rabbit, consumer_timeout=1_800_000)
