"""`Broker` and its topology against a real RabbitMQ: what is declared, what is confirmed, and who gets what."""

from __future__ import annotations

import asyncio
import gc
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import pytest
from aio_pika import ExchangeType, Message
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AMQPError
from aiormq.exceptions import ChannelAccessRefused
from faststream.rabbit import RabbitExchange
from pamqp import commands, frame, heartbeat
from structlog.testing import capture_logs
from tenacity import RetryCallState, wait_fixed

from application.ports import BrokerAway, Unavailable
from entrypoints.bootstrap import CannotStart
from entrypoints.cli import broker as cli_broker
from entrypoints.cli import doctor as cli_doctor
from entrypoints.cli.checks.finding import Finding
from infrastructure.rabbitmq import session as rabbitmq_session
from infrastructure.rabbitmq.connection import Broker, Unroutable
from infrastructure.rabbitmq.consumer import Consumer
from infrastructure.rabbitmq.inspection import connected, counts_of
from infrastructure.rabbitmq.session import CHECK_INTERVAL, LOOP_QUEUES, REFUSALS, Session
from infrastructure.rabbitmq.subscription import Message as Taken
from infrastructure.rabbitmq.topology import (
    CANARY,
    EVENTS_EXCHANGE,
    EXCHANGES,
    FAILED_QUEUE,
    MAIL_EXCHANGE,
    MAIL_QUEUE,
    MAIL_REQUESTED,
    Topology,
    TopologyMismatch,
)
from infrastructure.settings.settings import Settings
from tests.support.broker import broker_through, channel_to, put, spy_on, vhost_of, waiting
from tests.support.facts import eventually
from tests.support.rabbitmq import PrivateRabbit
from tests.support.tcp_proxy import TO_CLIENT

TOPOLOGY = Topology.of(queue_ttl=timedelta(minutes=5))


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's confirms may take longer than we would wait for them; the tests are not about that."""
    monkeypatch.setattr("infrastructure.rabbitmq.connection.PUBLISH_TIMEOUT", timedelta(seconds=60))


@asynccontextmanager
async def running(
    url: str,
    *consumers: Consumer,
    topology: Topology | None = TOPOLOGY,
    check_interval: timedelta = CHECK_INTERVAL,
) -> AsyncIterator[Broker]:
    """A broker that is up."""
    broker = Broker(
        url,
        name="test",
        topology=topology,
        consumers=consumers,
        finish_within=timedelta(seconds=5),
        pauses=wait_fixed(0.1),
        check_interval=check_interval,
    )
    work = asyncio.create_task(broker.run())
    try:
        async with asyncio.timeout(60):
            await broker.until_up()
        yield broker
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def publish(
    broker: Broker,
    body: bytes = b"{}",
    *,
    exchange: RabbitExchange = MAIL_EXCHANGE,
    routing_key: str = MAIL_REQUESTED,
    **more: Any,
) -> None:
    properties: dict[str, Any] = {
        "message_id": str(uuid4()),
        "correlation_id": str(uuid4()),
        "message_type": "test",
        "timestamp": datetime.now(UTC),
        "headers": {},
    }
    await broker.publish(body, exchange=exchange, routing_key=routing_key, **properties | more)


class Reader:
    """Takes messages and acknowledges them, canaries left out of what it has read."""

    def __init__(self, queue: str = MAIL_QUEUE) -> None:
        self.bodies: list[bytes] = []
        self.consumer = Consumer(queue, self._handle, prefetch=10)

    async def _handle(self, message: Taken) -> None:
        if message.type != CANARY:
            self.bodies.append(message.body)
        message.acknowledge()


def settings(url: str, **more: str) -> Settings:
    return Settings.from_environment(
        {"REGISTRAR_BROKER_URL": url, **{f"REGISTRAR_{name.upper()}": value for name, value in more.items()}}
    )


# --- Topology -------------------------------------------------------------------------------------


async def test_the_topology_is_the_contracts(rabbit: PrivateRabbit, broker_url: str) -> None:
    async with connected(broker_url, TOPOLOGY):
        vhost = vhost_of(broker_url)
        mail, failed = (rabbit.ask("GET", f"queues/{vhost}/{name}") for name in (MAIL_QUEUE, FAILED_QUEUE))
        assert mail["arguments"] | {"x-max-length": ...} == {
            "x-queue-type": "quorum",
            "x-message-ttl": 300_000,
            "x-delivery-limit": 3,
            "x-dead-letter-exchange": "registrar.dlx",
            "x-dead-letter-routing-key": "mail.failed",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-max-length": ...,
        }
        assert failed["arguments"]["x-queue-type"] == "quorum"
        assert (mail["durable"], failed["durable"]) == (True, True)
        for name in ("registrar", "registrar.dlx", "registrar.events"):
            exchange = rabbit.ask("GET", f"exchanges/{vhost}/{name}")
            assert (exchange["type"], exchange["durable"]) == ("topic", True)


async def test_declaring_again_changes_nothing_and_loses_nothing(broker_url: str) -> None:
    async with connected(broker_url, TOPOLOGY):
        await put(broker_url, b"kept")
    async with connected(broker_url, TOPOLOGY):
        pass
    reader = Reader()
    async with running(broker_url, reader.consumer):
        await eventually(lambda: reader.bodies == [b"kept"])


async def test_a_queue_with_other_arguments_is_an_error_that_says_how_to_migrate_and_that_way_works(
    broker_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connected(broker_url, TOPOLOGY):
        pass

    with pytest.raises(TopologyMismatch, match="declare --anew"):
        async with connected(broker_url, Topology.of(queue_ttl=timedelta(minutes=6))):
            pass
    with pytest.raises(CannotStart, match="declare --anew"):
        await cli_broker.declare(settings(broker_url, queue_ttl="360"), anew=False, as_json=True)

    assert await cli_broker.declare(settings(broker_url, queue_ttl="360"), anew=True, as_json=True) == 0
    assert await cli_broker.declare(settings(broker_url, queue_ttl="360"), anew=False, as_json=True) == 0
    assert FAILED_QUEUE in capsys.readouterr().out


async def test_where_an_exchange_has_other_properties_nothing_is_deleted_and_the_error_names_it(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    async with connected(broker_url, TOPOLOGY):
        await put(broker_url, b"kept")
    exchange = f"exchanges/{vhost_of(broker_url)}/{EVENTS_EXCHANGE.name}"
    rabbit.ask("DELETE", exchange)
    rabbit.ask("PUT", exchange, {"type": "fanout", "durable": True})

    with pytest.raises(CannotStart, match=f"exchange {EVENTS_EXCHANGE.name}"):
        await cli_broker.declare(settings(broker_url), anew=True, as_json=True)

    assert await waiting(broker_url) >= 1
    rabbit.ask("DELETE", exchange)
    reader = Reader()
    async with running(broker_url, reader.consumer):
        await eventually(lambda: b"kept" in reader.bodies)


async def test_a_broker_whose_queues_are_of_others_is_away_and_comes_up_once_they_are_declared_anew(
    broker_url: str,
) -> None:
    async with connected(broker_url, Topology.of(queue_ttl=timedelta(minutes=6))):
        pass
    broker = Broker(broker_url, name="test", topology=TOPOLOGY, pauses=wait_fixed(0.1))
    work = asyncio.create_task(broker.run())
    await eventually(lambda: broker.trouble == "topology")

    async with connected(broker_url, TOPOLOGY, delete=(MAIL_QUEUE, FAILED_QUEUE)):
        pass

    async with asyncio.timeout(60):
        await broker.until_up()
    assert broker.trouble is None
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_a_stop_while_a_connection_is_being_made_leaves_nothing_behind_that_cannot_be_cancelled(
    broker_url: str,
) -> None:
    before = asyncio.all_tasks()
    async with broker_through(broker_url) as (proxy, url):
        proxy.hold(TO_CLIENT)
        work = asyncio.create_task(Broker(url, name="test", topology=TOPOLOGY).run())
        await eventually(lambda: proxy.effects[f"hold {TO_CLIENT}"])

        work.cancel()
        await asyncio.wait({work}, timeout=30)

        assert work.cancelled()
    await eventually(lambda: asyncio.all_tasks() == before)


@pytest.mark.parametrize(
    "greeting", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["none", "an end", "another's"]
)
async def test_what_could_not_connect_is_closed_at_once_without_a_collection_of_garbage(
    greeting: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[str] = []
    came = 0
    connected: set[asyncio.StreamWriter] = set()

    def collecting(phase: str, _: dict[str, int]) -> None:
        collected.append(phase)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        connected.add(writer)
        if greeting is not None:
            writer.write(greeting)
            writer.write_eof()
        with suppress(OSError):
            await reader.read()
        writer.close()
        connected.discard(writer)

    monkeypatch.setattr(rabbitmq_session, "CONNECT_TIMEOUT", timedelta(milliseconds=300))
    before = asyncio.all_tasks()
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        broker = Broker(f"amqp://127.0.0.1:{port}", name="test", topology=TOPOLOGY, pauses=wait_fixed(0.05))
        gc.collect()
        gc.disable()
        gc.callbacks.append(collecting)
        try:
            work = asyncio.create_task(broker.run())
            await eventually(lambda: came >= 5)
            assert len(connected) <= 1  # that of the try under way
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await eventually(lambda: not connected)
        finally:
            gc.callbacks.remove(collecting)
            gc.enable()

    assert collected == []
    await eventually(lambda: asyncio.all_tasks() == before)


# --- Rights ---------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
ALL = "^registrar|^amq.default$"


def printed() -> list[list[str]]:
    """What docs/operating.md and then deploy/ tell to run: arguments of `rabbitmqctl`."""
    said = (ROOT / name for name in ("docs/operating.md", "deploy/registrar@.service"))
    lines = [
        line for file in said for line in re.findall(r"^(?:sudo|#  ) rabbitmqctl (.*)$", file.read_text(), re.MULTILINE)
    ]
    return [shlex.split(line) for line in lines]


def recommended(user: str) -> tuple[str, str, str]:
    """What deploy/ says that a user needs: rights to configure, write and read."""
    *_, rights = (line[-3:] for line in printed() if line[:-3] == ["set_permissions", "-p", "registrar", user])
    return rights[0], rights[1], rights[2]


@pytest.mark.slow
async def test_who_runs_what_is_printed_has_users_that_can_do_their_part(rabbit: PrivateRabbit) -> None:
    for line in printed():
        rabbit.control(*line)
    reader = Reader()
    mq = f"127.0.0.1:{rabbit.port}"
    try:
        async with (
            running(url_printed("docs/operating.md", mq), reader.consumer) as working,
            running(url_printed("deploy/registrar@.service", mq), topology=None) as looking,
        ):
            await publish(working, b"mail")

            await eventually(lambda: reader.bodies == [b"mail"])
            assert looking.is_up
    finally:
        rabbit.control("delete_vhost", "registrar")
        for user in ("registrar", "serve"):
            rabbit.control("delete_user", user)


def url_printed(name: str, mq: str) -> str:
    """The broker's URL of a file, with the address put in."""
    [url] = re.findall(r"REGISTRAR_BROKER_URL='?(amqp://[^'\s]*)", (ROOT / name).read_text())
    user, _, virtual_host = url.partition("@mq.example.org/")
    return f"{quote(user, safe=':/')}@{mq}/{virtual_host}"


async def test_the_rights_that_are_recommended_for_those_who_send_mails_are_enough(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    reader = Reader()
    async with running(rabbit.user(broker_url, recommended("registrar")), reader.consumer) as broker:
        await publish(broker, b"mail")
        await publish(broker, exchange=EVENTS_EXCHANGE, routing_key="registration.accepted")

        await eventually(lambda: reader.bodies == [b"mail"])
        assert (await broker.look())["queues"].keys() == {MAIL_QUEUE, FAILED_QUEUE}


FORBIDDEN_AT_QUEUES: tuple[Callable[[AbstractChannel, AbstractQueue], Awaitable[object]], ...] = (
    lambda _, queue: queue.get(),
    lambda _, queue: queue.consume(ignore),
    lambda _, queue: queue.purge(),
    lambda _, queue: queue.delete(if_unused=False, if_empty=False),
    lambda _, queue: queue.bind("amq.topic", "any"),
    lambda channel, queue: channel.declare_queue(queue.name, durable=True),
)
FORBIDDEN_AT_EXCHANGES: tuple[Callable[[AbstractChannel, AbstractExchange], Awaitable[object]], ...] = (
    lambda _, exchange: exchange.publish(Message(b"forged"), routing_key=MAIL_REQUESTED),
    lambda _, exchange: exchange.delete(),
    lambda channel, exchange: channel.declare_exchange(exchange.name, ExchangeType.TOPIC, durable=True),
    lambda channel, exchange: overhear(channel, exchange.name),
)


async def ignore(message: AbstractIncomingMessage) -> None:
    """Leaves it in hand."""


async def overhear(channel: AbstractChannel, exchange: str) -> None:
    own = await channel.declare_queue(f"{LOOP_QUEUES}{uuid4().hex}", exclusive=True)
    await own.bind(exchange, "#")


async def test_with_the_rights_that_are_recommended_the_api_looks_and_can_add_to_queues_but_take_and_change_nothing(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    url = rabbit.user(broker_url, recommended("serve"))
    async with connected(broker_url, TOPOLOGY):
        await put(broker_url, b"kept")
    async with running(url, topology=None) as broker:
        assert broker.is_up
        assert (await broker.look())["queues"][MAIL_QUEUE]["messages"] >= 1

    for name, forbidden in product((MAIL_QUEUE, FAILED_QUEUE), FORBIDDEN_AT_QUEUES):
        async with channel_to(url) as channel:
            with pytest.raises(ChannelAccessRefused):
                await forbidden(channel, await channel.get_queue(name, ensure=False))
    for exchange, forbidden_there in product(EXCHANGES, FORBIDDEN_AT_EXCHANGES):
        async with channel_to(url) as channel:
            with pytest.raises(ChannelAccessRefused):
                await forbidden_there(channel, await channel.get_exchange(exchange.name, ensure=False))
    async with channel_to(url) as channel:
        for name in (MAIL_QUEUE, FAILED_QUEUE):
            await channel.default_exchange.publish(Message(b"forged"), routing_key=name)

    waited, dead = Reader(MAIL_QUEUE), Reader(FAILED_QUEUE)
    async with running(broker_url, waited.consumer, dead.consumer):
        await eventually(lambda: (waited.bodies, dead.bodies) == ([b"kept", b"forged"], [b"forged"]))


async def test_who_only_looks_declares_nothing_and_tells_what_is_missing_until_somebody_declares_it(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    def queues() -> set[str]:
        return {queue["name"] for queue in rabbit.ask("GET", f"queues/{vhost_of(broker_url)}")}

    before = asyncio.all_tasks()
    async with running(broker_url, topology=None) as broker:
        [own] = queues()
        assert own.startswith(LOOP_QUEUES)
        assert (broker.is_up, broker.trouble) == (False, "topology")
        with pytest.raises(BrokerAway):
            await broker.look()

        async with connected(broker_url, TOPOLOGY):
            pass
        assert (await broker.look())["queues"][MAIL_QUEUE]["consumers"] == 0
        assert (broker.is_up, broker.trouble) == (True, None)

        rabbit.ask("DELETE", f"queues/{vhost_of(broker_url)}/{MAIL_QUEUE}")
        await eventually(lambda: broker.trouble == "topology", within=60)  # without being asked
        assert own in queues()  # on the same connection
    await eventually(lambda: queues() == {FAILED_QUEUE})
    await eventually(lambda: asyncio.all_tasks() == before)


REFUSED_AT = {
    "a user that there is not": lambda rabbit, url: url.replace("guest:guest", "nobody:guest"),
    "a wrong password": lambda rabbit, url: url.replace("guest:guest", "guest:wrong"),
    "a virtual host that there is not": lambda rabbit, url: rabbit.url("nowhere"),
    "a virtual host that there is not, named after a limit": lambda rabbit, url: rabbit.url("connection limits"),
    "a virtual host of others": lambda rabbit, url: rabbit.user(url, None),
    "no right to configure": lambda rabbit, url: rabbit.user(url, ("^registrar.loop", ALL, ALL)),
    "no right to write": lambda rabbit, url: rabbit.user(url, (ALL, "^amq.default$", ALL)),
    "no right to publish": lambda rabbit, url: rabbit.user(url, (ALL, "^amq.default$|^registrar.(mail|dlx)", ALL)),
    "no right to read": lambda rabbit, url: rabbit.user(url, (ALL, ALL, "^registrar.loop")),
    "no right to anything": lambda rabbit, url: rabbit.user(url, ("^$", "^$", "^$")),
}


@pytest.mark.parametrize("refused", REFUSED_AT.values(), ids=REFUSED_AT)
async def test_who_is_refused_is_told_so_once_and_what_to_do_about_it(
    rabbit: PrivateRabbit, broker_url: str, refused: Callable[[PrivateRabbit, str], str]
) -> None:
    url, tries = refused(rabbit, broker_url), list[int]()

    def note_try(state: RetryCallState) -> float:
        tries.append(state.attempt_number)
        return 0.05

    broker = Broker(url, name="test", topology=TOPOLOGY, pauses=note_try)
    with capture_logs() as logged:
        work = asyncio.create_task(broker.run())
        await eventually(lambda: len(tries) >= 3, within=60)
        assert broker.trouble == "unauthorized"
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    [said] = [entry for entry in logged if entry["log_level"] == "error"]
    assert said["event"] == "broker.unauthorized"
    assert "REGISTRAR_BROKER_URL" in said["hint"]
    with pytest.raises(CannotStart, match="REGISTRAR_BROKER_URL"):
        await cli_broker.declare(settings(url), anew=False, as_json=True)


async def says_at_open(reply: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A broker that takes the credentials, and then says this where it should open the virtual host."""
    await reader.readexactly(8)
    writer.write(frame.marshal(commands.Connection.Start(server_properties={}), 0))
    for answer in (frame.marshal(commands.Connection.Tune(), 0), b"", reply):
        _, _, size = frame.frame_parts(await reader.readexactly(7))
        await reader.readexactly((size or 0) + 1)
        writer.write(answer)
    writer.close()


GOING_DOWN = "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"


@pytest.mark.parametrize(
    "reply",
    [
        frame.marshal(commands.Connection.Close(320, GOING_DOWN, 0, 0), 0),
        frame.marshal(commands.Connection.Close(541, "INTERNAL_ERROR", 0, 0), 0),
        frame.marshal(heartbeat.Heartbeat(), 0),
        b"\x07\x00\x00\x00\x00\x00\x01\x00\xce",
        b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00",
        b"",
    ],
    ids=["shutdown", "internal error", "heartbeat", "no frame", "half a frame", "nothing"],
)
async def test_a_connection_that_dies_while_it_is_made_is_no_refusal(reply: bytes) -> None:
    async with await asyncio.start_server(partial(says_at_open, reply), "127.0.0.1", 0) as dying:
        url = f"amqp://guest:guest@127.0.0.1:{dying.sockets[0].getsockname()[1]}/"
        for attempt in (counts_of(url), cli_broker.declare(settings(url), anew=False, as_json=True)):
            with pytest.raises((AMQPError, Unavailable)) as error:
                await attempt
            assert not isinstance(error.value, REFUSALS)


@pytest.mark.parametrize("full", ["virtual host", "user"])
async def test_no_room_for_another_connection_is_no_refusal(rabbit: PrivateRabbit, broker_url: str, full: str) -> None:
    url = rabbit.user(broker_url, (ALL, ALL, ALL))
    limited = f"vhost-limits/{vhost_of(url)}" if full == "virtual host" else f"user-limits/{urlsplit(url).username}"
    rabbit.ask("PUT", f"{limited}/max-connections", {"value": 0})
    with pytest.raises(AMQPError) as error:
        await counts_of(url)
    assert not isinstance(error.value, REFUSALS)


async def test_who_may_not_consume_is_refused_and_comes_up_once_the_right_is_given(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    async with connected(broker_url, TOPOLOGY):
        pass
    url = rabbit.user(broker_url, (ALL, ALL, "^registrar$|^registrar.(dlx|events|loop)"))
    reader = Reader()
    consuming = Broker(url, name="test", topology=TOPOLOGY, consumers=(reader.consumer,), pauses=wait_fixed(0.1))
    work = asyncio.create_task(consuming.run())
    await eventually(lambda: consuming.trouble == "unauthorized")

    user = urlsplit(url).username
    everything = {"configure": ALL, "write": ALL, "read": ALL}
    rabbit.ask("PUT", f"permissions/{vhost_of(broker_url)}/{user}", everything)

    async with asyncio.timeout(60):
        await consuming.until_up()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


# --- The doctor -----------------------------------------------------------------------------------


async def examined(monkeypatch: pytest.MonkeyPatch, directory: Path, url: str) -> Finding:
    """What the doctor says of RabbitMQ."""
    monkeypatch.setenv("REGISTRAR_BROKER_URL", url)
    [finding] = [one async for one in cli_doctor.examine(directory) if one.check == "rabbitmq"]
    return finding


async def test_the_doctor_finds_nothing_there_and_makes_nothing(
    rabbit: PrivateRabbit, broker_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finding = await examined(monkeypatch, tmp_path, broker_url)

    assert (finding.state, "broker declare" in (finding.advice or "")) == ("warn", True)
    assert rabbit.ask("GET", f"queues/{vhost_of(broker_url)}") == []
    exchanges = {one["name"] for one in rabbit.ask("GET", f"exchanges/{vhost_of(broker_url)}")}
    assert not exchanges & {exchange.name for exchange in EXCHANGES}


async def test_the_doctor_looks_for_workers_where_all_is_as_declared(
    rabbit: PrivateRabbit, broker_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with connected(broker_url, TOPOLOGY):
        pass
    finding = await examined(monkeypatch, tmp_path, broker_url)
    assert (finding.state, "registrar work" in (finding.advice or "")) == ("warn", True)
    async with running(broker_url, Reader(MAIL_QUEUE).consumer, Reader(FAILED_QUEUE).consumer):
        assert (await examined(monkeypatch, tmp_path, broker_url)).state == "ok"


async def test_the_doctor_tells_a_user_that_may_only_look_whom_that_is_enough_for(
    rabbit: PrivateRabbit, broker_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with running(broker_url, Reader(MAIL_QUEUE).consumer, Reader(FAILED_QUEUE).consumer):
        for user, warned in (("serve", ["may only look"]), ("registrar", [])):
            monkeypatch.setenv("REGISTRAR_BROKER_URL", rabbit.user(broker_url, recommended(user)))
            found = [one async for one in cli_doctor.examine(tmp_path) if one.check.startswith("rabbitmq")]

            assert [one.says for one in found if one.state == "warn"] == warned
            assert "ok" in {one.state for one in found}


async def test_the_doctor_finds_queues_with_other_properties_though_others_are_missing(
    rabbit: PrivateRabbit, broker_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with connected(broker_url, Topology.of(queue_ttl=timedelta(minutes=6))):
        pass
    rabbit.ask("DELETE", f"queues/{vhost_of(broker_url)}/{FAILED_QUEUE}")

    finding = await examined(monkeypatch, tmp_path, broker_url)

    assert (finding.state, "declare --anew" in finding.says) == ("fail", True)


async def test_the_doctor_finds_an_exchange_with_other_properties(
    rabbit: PrivateRabbit, broker_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exchange = f"exchanges/{vhost_of(broker_url)}/{EVENTS_EXCHANGE.name}"
    rabbit.ask("PUT", exchange, {"type": "fanout", "durable": True})

    finding = await examined(monkeypatch, tmp_path, broker_url)

    assert (finding.state, EVENTS_EXCHANGE.name in finding.says) == ("fail", True)


@pytest.mark.parametrize(
    ("refused", "says"),
    list(zip(REFUSED_AT.values(), ["user or password"] * 2 + ["virtual host"] * 2, strict=False)),
    ids=list(REFUSED_AT)[:4],
)
async def test_the_doctor_knows_a_refusal_from_an_outage(
    rabbit: PrivateRabbit,
    broker_url: str,
    refused: Callable[[PrivateRabbit, str], str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    finding = await examined(monkeypatch, tmp_path, refused(rabbit, broker_url))

    assert finding.state == "fail"
    assert finding.says.startswith("it refuses")
    assert says in finding.says


# --- Publishing -----------------------------------------------------------------------------------


async def test_what_is_published_is_persistent_and_carries_what_it_was_given(broker_url: str) -> None:
    async with running(broker_url) as broker, spy_on(broker_url) as seen:
        await publish(broker, b"{}", message_id="an id", headers={"traceparent": "trace"}, expiration=timedelta(60))

        await eventually(lambda: seen)
        [message] = seen
        assert (message.message_id, message.type, message.app_id) == ("an id", "test", "registrar")
        assert message.headers["traceparent"] == "trace"
        assert message.delivery_mode == 2
        assert await waiting(broker_url) >= 1


async def test_a_mail_that_no_queue_takes_is_an_error_and_an_event_without_subscribers_is_none(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    async with running(broker_url) as broker:
        await publish(broker, exchange=EVENTS_EXCHANGE, routing_key="registration.accepted")
        with pytest.raises(Unroutable):
            await publish(broker, routing_key="nobody.wants.this")

        # then: as the topology may be incomplete, it begins anew
        async with asyncio.timeout(60):
            await broker.until_up()
        await publish(broker)


async def test_a_full_queue_refuses_and_stays_connected(rabbit: PrivateRabbit, broker_url: str) -> None:
    async with running(broker_url) as broker:
        policy = {"pattern": ".*", "definition": {"max-length": 1}, "apply-to": "queues"}
        rabbit.ask("PUT", f"policies/{vhost_of(broker_url)}/little-room", policy)

        async def refused() -> bool:
            try:
                await publish(broker)
            except BrokerAway:
                raise
            except Unavailable:
                return True
            return False

        await eventually(refused)
        assert broker.is_up


async def test_a_connection_lost_under_a_publish_is_no_cancellation(broker_url: str) -> None:
    async with broker_through(broker_url) as (proxy, url), running(url) as broker:
        proxy.hold(TO_CLIENT)
        publishing = asyncio.create_task(publish(broker))
        await eventually(lambda: proxy.effects[f"hold {TO_CLIENT}"])

        proxy.reset()

        with pytest.raises(BrokerAway):
            await publishing
        proxy.heal()


async def test_a_publish_that_is_cancelled_is_cancelled_and_the_broker_stays_up(broker_url: str) -> None:
    async with broker_through(broker_url) as (proxy, url), running(url) as broker:
        proxy.hold(TO_CLIENT)
        publishing = asyncio.create_task(publish(broker))
        await eventually(lambda: proxy.effects[f"hold {TO_CLIENT}"])

        publishing.cancel()

        await asyncio.wait({publishing})
        assert publishing.cancelled()
        assert broker.is_up
        proxy.heal()
        await publish(broker)


async def test_a_publish_without_a_confirm_ends_at_its_deadline(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.rabbitmq.connection.PUBLISH_TIMEOUT", timedelta(milliseconds=200))
    async with broker_through(broker_url) as (proxy, url), running(url) as broker:
        proxy.hold(TO_CLIENT)

        with pytest.raises(BrokerAway):
            await publish(broker)

        assert not broker.is_up
        with pytest.raises(BrokerAway):
            await publish(broker)
        proxy.heal()


async def test_many_publishers_that_find_the_connection_lost_let_the_others_run(broker_url: str) -> None:
    async with broker_through(broker_url) as (proxy, url), running(url) as broker:

        async def insist() -> None:
            while True:
                try:
                    await publish(broker)
                except BrokerAway:
                    await broker.until_up()
                else:
                    return

        proxy.hold(TO_CLIENT)
        publishing = [asyncio.create_task(insist()) for _ in range(10)]
        await eventually(lambda: proxy.effects[f"hold {TO_CLIENT}"])
        proxy.reset()
        proxy.heal()

        async with asyncio.timeout(60):
            await asyncio.gather(*publishing)


# --- Consuming ------------------------------------------------------------------------------------


async def test_a_consumer_has_no_more_messages_in_hand_than_it_was_told(broker_url: str) -> None:
    in_hand, go_on = list[bytes](), asyncio.Event()

    async def handle(message: Taken) -> None:
        if message.type != CANARY:
            in_hand.append(message.body)
            await go_on.wait()
        message.acknowledge()

    consumer = Consumer(MAIL_QUEUE, handle, prefetch=3)
    async with running(broker_url, consumer) as broker:
        for number in range(10):
            await publish(broker, str(number).encode())

        async def rest_waits() -> bool:
            return await waiting(broker_url) == 7

        await eventually(rest_waits, every=0.1)
        for _ in range(3):
            await consumer.pause()
            await consumer.resume()
        assert consumer.is_paused  # until there is room
        assert len(in_hand) == 3
        go_on.set()
        await eventually(lambda: len(in_hand) == 10)


async def test_a_paused_consumer_takes_nothing_until_it_is_resumed(broker_url: str) -> None:
    reader = Reader()
    async with running(broker_url, reader.consumer) as broker:
        await reader.consumer.pause()
        await publish(broker, b"later")
        assert (await counts_of(broker_url))[MAIL_QUEUE] == {"messages": 1, "consumers": 0}

        await reader.consumer.resume()

        await eventually(lambda: reader.bodies == [b"later"])


async def test_a_pause_outlasts_the_connection_and_ends_when_it_is_told_to(broker_url: str) -> None:
    reader = Reader()
    async with broker_through(broker_url) as (proxy, url), running(url, reader.consumer) as broker:
        await reader.consumer.pause()
        proxy.reset()
        await eventually(lambda: not broker.is_up)
        async with asyncio.timeout(60):
            await broker.until_up()
        await publish(broker, b"later")
        assert (await counts_of(broker_url))[MAIL_QUEUE]["consumers"] == 0

        await reader.consumer.resume()

        await eventually(lambda: reader.bodies == [b"later"])


async def test_what_is_told_a_consumer_while_it_finishes_holds_for_the_next_connection(broker_url: str) -> None:
    reader = Reader()
    async with running(broker_url, reader.consumer):
        await reader.consumer.pause()
        finishing = asyncio.create_task(reader.consumer.finish(timedelta(seconds=5)))
        await reader.consumer.resume()
        await finishing
        assert (await counts_of(broker_url))[MAIL_QUEUE]["consumers"] == 0
    async with running(broker_url, reader.consumer) as broker:
        await publish(broker, b"next")
        await eventually(lambda: reader.bodies == [b"next"])


async def test_messages_in_hand_are_finished_before_the_connection_is_closed(broker_url: str) -> None:
    taken, go_on, done = asyncio.Event(), asyncio.Event(), list[bytes]()

    async def handle(message: Taken) -> None:
        if message.type != CANARY:
            taken.set()
            await go_on.wait()
            done.append(message.body)
        message.acknowledge()

    consumer = Consumer(MAIL_QUEUE, handle, prefetch=1)
    async with running(broker_url, consumer) as broker:
        await publish(broker, b"in hand")
        await publish(broker, b"behind it")
        await taken.wait()
        stopping = asyncio.create_task(_then(consumer.stopping, go_on))
    await stopping

    assert done == [b"in hand"]
    assert await waiting(broker_url) == 1


async def _then(one: asyncio.Event, other: asyncio.Event) -> None:
    await one.wait()
    other.set()


async def test_a_cancellation_that_the_library_swallows_ends_the_work_all_the_same(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, swallowed = asyncio.Event(), asyncio.Event()

    async def deaf(_: Session) -> dict[str, dict[str, int]]:
        looking.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        return {}

    monkeypatch.setattr(Session, "counts", deaf)
    async with running(broker_url, check_interval=timedelta(milliseconds=10)):
        await looking.wait()
    assert swallowed.is_set()


async def test_a_cancellation_that_is_swallowed_by_a_try_that_fails_ends_the_work_all_the_same(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, swallowed = asyncio.Event(), asyncio.Event()

    async def deaf(_: object) -> dict[str, dict[str, int]]:
        looking.set()
        with suppress(asyncio.CancelledError):
            await swallowed.wait()
        swallowed.set()
        raise ConnectionResetError

    monkeypatch.setattr(Session, "counts", deaf)
    work = asyncio.create_task(Broker(broker_url, name="test", topology=None, pauses=wait_fixed(0.01)).run())
    await looking.wait()

    work.cancel()

    await asyncio.wait({work}, timeout=30)
    assert swallowed.is_set()
    ended = work.cancelled()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert ended


async def test_a_look_tells_queues_consumers_and_a_message_through_the_loop(broker_url: str) -> None:
    readers: Sequence[Reader] = (Reader(MAIL_QUEUE), Reader(FAILED_QUEUE))
    async with running(broker_url, *(reader.consumer for reader in readers)) as broker:
        seen = await broker.look()
        assert {name: queue["consumers"] for name, queue in seen["queues"].items()} == {MAIL_QUEUE: 1, FAILED_QUEUE: 1}
        assert 0 < seen["loop_seconds"] < 3


# --- What nobody can decode -----------------------------------------------------------------------


@pytest.mark.slow
async def test_a_message_that_ends_every_connection_it_comes_to_is_dropped_in_the_end(
    rabbit: PrivateRabbit, broker_url: str
) -> None:
    taken: list[str] = []

    async def handle(message: Taken) -> None:
        taken.append(message.type or "")
        message.acknowledge()

    consumers = Consumer(MAIL_QUEUE, handle, prefetch=10), Consumer(FAILED_QUEUE, handle, prefetch=10)
    async with running(broker_url, *consumers) as broker:
        # A time that no calendar has: the library fails at it before any handler sees the message.
        poison = {"properties": {"timestamp": 10**17}, "routing_key": MAIL_REQUESTED}
        body = {"payload": "", "payload_encoding": "string"}
        rabbit.ask("POST", f"exchanges/{vhost_of(broker_url)}/{MAIL_EXCHANGE.name}/publish", poison | body)

        async def gone() -> bool:
            """Queues do not count what a consumer has been given."""
            counts = await counts_of(broker_url)
            given = await asyncio.to_thread(
                rabbit.evaluate,
                "lists:sum([Given || [{messages_unacknowledged, Given}, {vhost, Host}] <-"
                f' rabbit_channel:info_all([messages_unacknowledged, vhost]), Host =:= <<"{vhost_of(broker_url)}">>])',
            )
            return int(given) == 0 and not any(count["messages"] for count in counts.values())

        async def gets_through() -> bool:
            """On its way from queue to queue it is nowhere; and ends the connection that a message is published on."""
            try:
                await publish(broker)
            except BrokerAway:
                return False
            return True

        await eventually(lambda: not broker.is_up, within=60)
        await eventually(gone, within=90, every=0.5)
        await eventually(gets_through, within=60, every=0.5)
        await eventually(lambda: "test" in taken)
        await eventually(gone, within=60, every=0.5)


async def test_all_that_consumed_from_a_queue_that_was_made_anew_consume_again(broker_url: str) -> None:
    one, other = Reader(), Reader()
    async with running(broker_url, one.consumer), running(broker_url, other.consumer):

        async def both_consume() -> bool:
            counts = await counts_of(broker_url)
            return counts[MAIL_QUEUE]["consumers"] == 2

        await eventually(both_consume)
        async with connected(broker_url, TOPOLOGY, delete=(MAIL_QUEUE,)):
            pass

        await eventually(both_consume, within=60)
