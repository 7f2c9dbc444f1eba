"""Hosts whose first addresses are dead: database, broker and mail server are reached all the same."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
import trustme
import uvloop
from fastapi import FastAPI
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from application.ports import Letter, Rendered
from entrypoints.api.http_server import Server
from infrastructure.alerts.webhook import Webhook
from infrastructure.mail.smtp.pool import Limits
from infrastructure.mail.smtp.servers import SmtpServers
from infrastructure.postgres import addresses
from infrastructure.postgres.circumstances import unreachable
from infrastructure.postgres.connection import closing, connect
from infrastructure.postgres.session import UnfitSession
from infrastructure.rabbitmq.inspection import connected, counts_of
from infrastructure.rabbitmq.topology import MAIL_QUEUE, Topology
from infrastructure.reach import reach
from infrastructure.settings.values import MailServer
from tests.support.facts import eventually
from tests.support.http import open_api
from tests.support.log import by_way_of, proxy_to, query
from tests.support.smtp_stub import SmtpStub
from tests.support.webhook_stub import WebhookStub

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
    assert f"127.0.0.1:{port}: no answer in time" in str(caught.value)
    assert f"127.0.0.3:{port}: connection failed" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_the_address_that_worked_is_tried_first(dsn: str) -> None:
    to = conninfo_to_dict(dsn)
    with silent() as one:
        url = f"postgresql://{to['user']}@/{to['dbname']}?host=127.0.0.1,{to['host']}&port={one},{to['port']}"
        first = await connect(url, name="test", statement_timeout=timedelta(seconds=5))
        async with closing(first), asyncio.timeout(1):  # less than the share of the silent one
            await (await connect(url, name="test", statement_timeout=timedelta(seconds=5))).close()


@pytest.fixture(params=["hostaddr", "its environment", "a service", "a service of its environment", "host alone"])
async def behind_a_silent_one(
    request: pytest.FixtureRequest, dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[str]:
    """A URL of the database at the second of two addresses, which are given in one of the ways that libpq knows."""
    to = conninfo_to_dict(dsn)
    what = f"user={to['user']} dbname={to['dbname']} sslmode=disable gssencmode=disable"
    async with proxy_to(dsn) as proxy:
        with ExitStack() as stack:
            stack.enter_context(socket.create_server((DEAD, proxy.port)))
            monkeypatch.setenv("PGPORT", str(proxy.port))
            monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
            (tmp_path / "services").write_text(f"[two]\nhost={DEAD},127.0.0.1\n")
            match request.param:
                case "hostaddr":
                    yield f"{what} hostaddr={DEAD},127.0.0.1"
                case "its environment":
                    monkeypatch.setenv("PGHOST", f"{DEAD},127.0.0.1")
                    yield what
                case "a service":
                    yield f"{what} service=two"
                case "a service of its environment":
                    monkeypatch.setenv("PGSERVICE", "two")
                    yield what
                case "host alone":
                    yield f"{what} host={DEAD},127.0.0.1"


async def test_a_silent_address_has_no_more_than_its_share_wherever_it_is_given(behind_a_silent_one: str) -> None:
    await (await connect(behind_a_silent_one, name="test", statement_timeout=timedelta(seconds=5))).close()


async def test_one_of_many_addresses_has_time_for_a_slow_server(dsn: str) -> None:
    async with proxy_to(dsn) as proxy:
        to = conninfo_to_dict(by_way_of(proxy, dsn))
        with silent() as port:
            hosts, ports = ",".join(["127.0.0.1"] * 6), ",".join([str(to["port"]), *[str(port)] * 5])
            proxy.delay(0.15)  # of a message: the first answer, and that to the settings, take 0.6 s

            async def reached() -> bool:
                url = make_conninfo(dsn, host=hosts, port=ports, sslmode="disable", gssencmode="disable")
                try:
                    await (await connect(url, name="test", statement_timeout=timedelta(seconds=5))).close()
                except psycopg.OperationalError:
                    return False
                return True

            await eventually(reached)
            assert proxy.is_effective


async def test_addresses_that_say_nothing_leave_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "CONNECT_TIMEOUT", timedelta(milliseconds=200))
    monkeypatch.setattr(addresses, "SHARE", timedelta(milliseconds=100))

    async def open_after(url: str) -> int:
        with pytest.raises(psycopg.OperationalError, match="no answer in time"):
            await connect(url, name="test", statement_timeout=timedelta(seconds=5))
        return int(psutil.Process().num_fds())

    gc.collect()
    gc.disable()
    try:
        with silent() as one, silent() as other:
            urls = (
                f"postgresql://u@127.0.0.1:{one}/x?sslmode=disable",
                f"postgresql://u@/x?host=127.0.0.1,127.0.0.1&port={one},{other}&sslmode=disable",
            )
            first = await open_after(urls[0])
            assert [await open_after(url) for url in urls * 5] == [first] * 10
    finally:
        gc.enable()


async def test_two_servers_of_one_address_are_told_apart_and_the_unfit_one_gives_the_advice(dsn: str) -> None:
    to = conninfo_to_dict(dsn)
    await query(dsn, f"ALTER DATABASE {to['dbname']} SET session_replication_role = replica")
    async with proxy_to(dsn) as proxy:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        url = make_conninfo(by_way_of(proxy, dsn), host="127.0.0.1,127.0.0.1", port=f"{proxy.port},{port}")
        with pytest.raises(UnfitSession) as caught:
            await connect(url, name="test", statement_timeout=timedelta(seconds=5))
    says, advice = unreachable(caught.value)
    assert f"127.0.0.1:{proxy.port}: session_replication_role is replica" in says
    assert f"127.0.0.1:{port}: connection failed" in says
    assert advice == "take it from the role (ALTER ROLE … RESET session_replication_role)"


NO_NAMES = ["db..example.com", f"{'a' * 64}.example.com"]


@pytest.mark.parametrize("host", NO_NAMES)
async def test_a_database_at_what_is_no_host_name_is_away(host: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="empty or too long"):
        await connect(f"postgresql://u@{host}/x", name="test", statement_timeout=timedelta(seconds=5))


@pytest.mark.parametrize("host", NO_NAMES)
async def test_a_mail_server_or_broker_at_what_is_no_host_name_is_away(host: str) -> None:
    with pytest.raises(OSError, match="empty or too long"):
        await reach(host, 25)


@pytest.mark.parametrize("host", NO_NAMES)
async def test_nobody_listens_at_what_is_no_host_name(host: str) -> None:
    server = Server(FastAPI(), host=host, port=0)
    with pytest.raises(OSError, match="empty or too long"):
        await server.start()


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


@pytest.mark.parametrize("encrypts", [False, True])
async def test_a_webhook_whose_first_address_is_dead_is_called(monkeypatch: pytest.MonkeyPatch, encrypts: bool) -> None:
    authority, of_the_stub = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("webhook.test").configure_cert(of_the_stub)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    resolves_to(monkeypatch, DEAD, "127.0.0.1")
    async with WebhookStub(tls=of_the_stub if encrypts else None) as stub:
        with dead(stub.port):
            await Webhook(stub.url.replace("127.0.0.1", "webhook.test"), tls=trust).post(b"{}", {})
        assert len(stub.calls) == 1


def test_a_webhook_is_called_by_the_loop_of_the_service() -> None:
    async def call() -> None:
        async with WebhookStub() as stub:
            await Webhook(stub.url).post(b"{}", {})
            assert len(stub.calls) == 1

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(call())


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
