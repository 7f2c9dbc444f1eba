"""Hosts whose first addresses are dead: database, broker and mail server are reached all the same."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import uvloop
from psycopg.conninfo import conninfo_to_dict

from application.ports import Letter, Rendered
from infrastructure.mail.smtp.pool import Limits
from infrastructure.mail.smtp.servers import SmtpServers
from infrastructure.postgres.connection import closing, connect
from infrastructure.rabbitmq.inspection import connected, counts_of
from infrastructure.rabbitmq.topology import MAIL_QUEUE, Topology
from infrastructure.settings.values import MailServer
from tests.support.http import open_api
from tests.support.smtp_stub import SmtpStub

DEAD = "127.0.0.2"
LETTER = Letter("ada@example.com", Rendered("A", "b", "<p>b"), message_id="<1@registrar.example>", locale="en")


@contextmanager
def dead(port: int) -> Iterator[None]:
    """`DEAD` does not answer on this port: its queue is full, so what asks for a connection there is dropped."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((DEAD, port))
        listener.listen(0)
        with suppress(TimeoutError):
            while True:
                line = stack.enter_context(socket.socket())
                line.settimeout(0.2)
                line.connect((DEAD, port))
        yield


@contextmanager
def silent() -> Iterator[int]:
    """A port on which connections are accepted, and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_a_database_behind_silent_hosts_is_used(dsn: str) -> None:
    to = conninfo_to_dict(dsn)
    with silent() as one, silent() as other:
        url = (
            f"postgresql://{to['user']}@/{to['dbname']}"
            f"?host=127.0.0.1,127.0.0.1,{to['host']}&port={one},{other},{to['port']}"
        )
        async with open_api(url, follows=False) as api:
            assert (await api.register()).status_code == 202


async def test_a_name_whose_first_address_is_silent_leads_to_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent() as port, socket.create_server(("127.0.0.3", port)) as closed:
        closed.close()
        resolves_to(monkeypatch, "127.0.0.1", "127.0.0.3")
        with pytest.raises(psycopg.OperationalError) as caught:
            await connect(f"postgresql://db.test:{port}/x", name="test", statement_timeout=timedelta(seconds=5))
    assert "127.0.0.1: no answer in time" in str(caught.value)
    assert "127.0.0.3: connection failed" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_the_address_that_worked_is_tried_first(dsn: str) -> None:
    to = conninfo_to_dict(dsn)
    with silent() as one:
        url = f"postgresql://{to['user']}@/{to['dbname']}?host=127.0.0.1,{to['host']}&port={one},{to['port']}"
        first = await connect(url, name="test", statement_timeout=timedelta(seconds=5))
        async with closing(first), asyncio.timeout(1):  # less than the share of the silent one
            await (await connect(url, name="test", statement_timeout=timedelta(seconds=5))).close()


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    resolve = socket.getaddrinfo

    def found(host: str, *more: Any, **named: Any) -> list[Any]:
        hosts = addresses if str(host).endswith(".test") else [host]
        return [one for address in hosts for one in resolve(address, *more, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", found)


async def test_a_broker_whose_first_address_is_dead_is_reached(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = urlsplit(broker_url).port or 5672
    resolves_to(monkeypatch, DEAD, "127.0.0.1")
    url = broker_url.replace("127.0.0.1", "broker.test")
    with dead(port):
        async with connected(url, Topology.of(queue_ttl=timedelta(minutes=5))) as session:
            await session.round_trip()
            assert MAIL_QUEUE in await counts_of(url)


def test_a_broker_is_reached_by_the_loop_of_the_service(broker_url: str) -> None:
    async def reach() -> None:
        async with connected(broker_url, Topology.of(queue_ttl=timedelta(minutes=5))) as session:
            await session.round_trip()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(reach())


async def test_a_mail_server_whose_first_address_is_dead_is_reached(
    monkeypatch: pytest.MonkeyPatch, stub: SmtpStub, servers: SmtpServers
) -> None:
    resolves_to(monkeypatch, DEAD, "127.0.0.1")
    with dead(stub.port):
        await servers.send(LETTER)
    assert len(stub.mails) == 1


async def test_an_address_of_a_mail_server_that_takes_connections_and_says_nothing_is_tried_last(
    monkeypatch: pytest.MonkeyPatch, stub: SmtpStub, servers: SmtpServers
) -> None:
    resolves_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
    with (
        socket.create_server(("127.0.0.2", stub.port)),
        socket.create_server(("127.0.0.3", stub.port)) as last,
    ):
        await servers.send(LETTER)  # at its third try
        assert len(stub.mails) == 1
        last.setblocking(False)
        last.accept()[0].close()  # it was tried
        with pytest.raises(BlockingIOError):
            last.accept()


@pytest.fixture
async def stub() -> AsyncIterator[SmtpStub]:
    async with SmtpStub() as stub:
        yield stub


@pytest.fixture
async def servers(stub: SmtpStub) -> AsyncIterator[SmtpServers]:
    servers = SmtpServers(
        [MailServer("smtp", "smtp.test", stub.port, starttls="never")],
        sender="Registrar <no-reply@registrar.example>",
        limits=Limits(timeout=timedelta(seconds=2)),
        sleep=lambda _: asyncio.sleep(0),
    )
    yield servers
    await servers.close()
