"""H: what a machine has too little of."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from entrypoints.api.connections import RESERVED
from tests.faults.programs import Program, process, serve
from tests.support.facts import eventually
from tests.support.http import ADA, NO_TLS
from tests.support.log import query
from tests.support.rabbitmq import free_ports
from tests.support.smtp_stub import SmtpStub

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
    how = {"descriptors": DESCRIPTORS, "durations": {"entrypoints.api.http_protocol.HEAD_DEADLINE": 3}}
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


# --- Memory (H2) ----------------------------------------------------------------------------------

MIB = 1024 * 1024


@contextmanager
def room_for(program: Program, size: int) -> Iterator[None]:
    """The program may have so many bytes more than it has now."""
    status = Path(f"/proc/{program.popen.pid}/status").read_text()
    has = int(re.findall(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)[0]) * 1024
    program.resources.rlimit(psutil.RLIMIT_DATA, (has + size, psutil.RLIM_INFINITY))
    try:
        yield
    finally:
        program.resources.rlimit(psutil.RLIMIT_DATA, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))


def hungry(number: int) -> dict[str, Any]:
    """A request that needs memory: for the hash of a password, or for a body of 16 KiB."""
    person = {"email": f"person{number}@example.com", "name": "Ada"}
    if number % 2:
        return person | {"password": (f"{number}-correct-horse-" * 16)[:128]}
    return person | {"name": "x" * 16_000}


async def outcomes_of(http: httpx.AsyncClient, requests: int) -> Counter[int]:
    """Of so many hungry requests at once: their statuses, 0 for those without an answer."""

    async def status(number: int) -> int:
        try:
            return (await http.post("/v1/registrations", json=hungry(number))).status_code
        except httpx.TransportError:
            return 0

    return Counter(await asyncio.gather(*(status(number) for number in range(requests))))


async def registered_in(dsn: str) -> int:
    ((number,),) = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'registration.user_registered'")
    return int(number)


@pytest.mark.slow
@pytest.mark.fault("H2")
async def test_a_flood_in_little_memory_is_answered_and_costs_nobody_anything(dsn: str) -> None:
    async with serve(dsn) as program, program.client() as http:
        assert (await http.post("/v1/registrations", json=ADA)).status_code == 202
        with room_for(program, 64 * MIB):
            statuses = await outcomes_of(http, 300)

            assert statuses.keys() <= {202, 422, 503}, statuses
            assert statuses[202] > 0
            assert (await http.get("/health/ready")).status_code == 200
        assert await registered_in(dsn) == 1 + statuses[202]
        assert "MemoryError" not in program.written


@pytest.mark.slow
@pytest.mark.fault("H2")
async def test_what_was_acknowledged_while_memory_had_no_room_is_recorded_and_all_is_well_with_more(dsn: str) -> None:
    async with serve(dsn) as program, program.client() as http:
        assert (await http.post("/v1/registrations", json=ADA)).status_code == 202
        with room_for(program, 0):
            statuses = await outcomes_of(http, 300)
        assert statuses.keys() - {202, 422, 503}, "there was room"

        async def well() -> bool:
            answer: httpx.Response = await http.post("/v1/registrations", json=hungry(1001))
            return answer.status_code == 202

        await eventually(well, within=60)
        assert 2 + statuses[202] <= await registered_in(dsn) <= 2 + statuses[202] + statuses[0] + statuses[500]


# --- CPU (H3) -------------------------------------------------------------------------------------

LOOPS = 4


def _scheduled(program: Program) -> tuple[int, int]:
    """Nanoseconds for which its event loop has run, and for which it has waited for a core to run on."""
    ran, waited, _ = Path(f"/proc/{program.popen.pid}/schedstat").read_text().split()
    return int(ran), int(waited)


@asynccontextmanager
async def starved(*programs: Program) -> AsyncIterator[None]:
    """The programs share one core with loops that never rest: each waits for it for longer than it has it."""
    core = {min(os.sched_getaffinity(0))}
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(LOOPS)]  # noqa: ASYNC220
    try:
        for pid in (loop.pid for loop in loops):
            os.sched_setaffinity(pid, core)
        for thread in (thread for program in programs for thread in program.resources.threads()):
            os.sched_setaffinity(thread.id, core)
        before = [_scheduled(program) for program in programs]
        yield
        for program, (ran, waited) in zip(programs, before, strict=True):
            has_run, has_waited = _scheduled(program)
            assert has_waited - waited > has_run - ran > 0
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.mark.slow
@pytest.mark.fault("H3")
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not tell who waits for a core")
async def test_with_a_sixth_of_a_core_everybody_is_answered_and_health_does_not_flap(dsn: str) -> None:
    async with (
        SmtpStub() as sink,
        serve(dsn) as api,
        process(dsn, sink.port) as follower,
        api.client() as http,
        api.client() as looking,
    ):
        seen: Counter[int] = Counter()
        done = asyncio.Event()

        async def look() -> None:
            while not done.is_set():
                for path in ("/health/live", "/health/ready"):
                    seen[(await looking.get(path)).status_code] += 1

        async def register(first: int) -> Counter[int]:
            statuses: Counter[int] = Counter()
            for number in range(first, 400, 40):
                body = {"email": f"person{number}@example{number}.com", "name": "Ada"}
                answer = await http.post("/v1/registrations", json=body)
                assert answer.status_code == 202 or int(answer.headers["retry-after"]) >= 1
                statuses[answer.status_code] += 1
            return statuses

        async with starved(api, follower), asyncio.TaskGroup() as group:
            group.create_task(look())
            found = await asyncio.gather(*(register(first) for first in range(40)))
            done.set()
        statuses = sum(found, Counter[int]())
        assert statuses.keys() <= {202, 503}, statuses
        assert statuses[202] > 0
        assert seen.keys() == {200}, seen
        await eventually(lambda: len(sink.mails) >= statuses[202], within=60)
        assert len(sink.mails) == statuses[202]
