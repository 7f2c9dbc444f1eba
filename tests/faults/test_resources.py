"""H: what a machine has too little of."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from entrypoints.api.connections import RESERVED
from tests.faults.programs import serve
from tests.support.facts import eventually
from tests.support.http import ADA, NO_TLS
from tests.support.rabbitmq import free_ports

DESCRIPTORS = 64
CLIENTS = 200


class Idle(asyncio.Protocol):
    """A client that connects and says nothing."""

    def __init__(self) -> None:
        self.open = False
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.open = True

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False


@asynccontextmanager
async def idle_clients(*ports: int) -> AsyncIterator[list[Idle]]:
    """So many of them at each port."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        clients = []
        for port in (port for port in ports for _ in range(CLIENTS)):
            transport, client = await loop.create_connection(Idle, "127.0.0.1", port)
            stack.callback(transport.abort)
            clients.append(client)
        yield clients


@pytest.mark.slow
@pytest.mark.fault("H1")
async def test_more_connections_than_file_descriptors_cost_their_clients_and_nobody_else(dsn: str) -> None:
    how = {"descriptors": DESCRIPTORS, "durations": {"entrypoints.api.http_server.HEAD_DEADLINE": 3}}
    async with serve(dsn, how=how) as program, program.client() as http:
        assert (await http.post("/v1/registrations", json=ADA)).status_code == 202
        cpu = program.resources.cpu_times()
        begun = time.monotonic()
        async with idle_clients(program.port) as clients:
            # then: those beyond the limit are told to come again, the others keep their connection for a while
            await eventually(lambda: sum(client.open for client in clients) < DESCRIPTORS, within=60)
            refused = [client for client in clients if client.received]
            assert len(refused) > CLIENTS - DESCRIPTORS
            for client in refused:
                assert client.received.startswith(b"HTTP/1.1 503 ")
                assert re.search(rb"\r\nretry-after: [123]\r\n", client.received)
            assert program.resources.num_fds() < DESCRIPTORS

            # and: who was there before is served, with what the database needs to be reached
            assert (await http.post("/v1/registrations", json=ADA | {"email": "b@example.com"})).status_code == 202
            assert (await http.get("/health/ready")).status_code == 200

            # and: in the end it is the idle ones that go; nobody spun meanwhile
            await eventually(lambda: not any(client.open for client in clients), within=60)
            spent = program.resources.cpu_times()
            assert spent.user + spent.system - cpu.user - cpu.system < (time.monotonic() - begun) / 2

        # and: it is as before
        assert program.runs
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{program.port}", verify=NO_TLS) as other:
            assert (await other.post("/v1/registrations", json=ADA | {"email": "c@example.com"})).status_code == 202
            assert 'registrar_shed_total{reason="connections"}' in (await other.get("/metrics")).text
        assert len(program.written.splitlines()) < 20


@pytest.mark.slow
@pytest.mark.fault("H1")
async def test_two_listeners_together_leave_the_same_descriptors_alone_as_one(dsn: str) -> None:
    how, admin_port = {"descriptors": DESCRIPTORS}, free_ports(1)[0]
    async with (
        serve(dsn, how=how, admin_listen=f"127.0.0.1:{admin_port}") as program,
        program.client() as http,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin_port}", verify=NO_TLS) as admin,
    ):
        assert (await admin.get("/metrics")).status_code == 200
        assert (await http.post("/v1/registrations", json=ADA)).status_code == 202
        async with idle_clients(program.port, admin_port) as clients:
            # then: all but those that one listener would have taken are told to come again, wherever they came
            at_most = DESCRIPTORS - RESERVED
            await eventually(
                lambda: (
                    sum(client.received.startswith(b"HTTP/1.1 503 ") for client in clients) >= len(clients) - at_most
                )
            )

            # and: who was there before is served on either
            assert (await http.post("/v1/registrations", json=ADA | {"email": "b@example.com"})).status_code == 202
            assert (await admin.get("/health/ready")).status_code == 200
