"""The whole service as a person runs it: `registrar up`, killed in the middle, started again."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from infrastructure.embedded.postgres import EmbeddedPostgres
from tests.faults.canaries import occurs, shown
from tests.support.facts import eventually

ROOT = Path(__file__).parents[2]
REGISTRATIONS = 200
PASSWORD = "canary-Passw0rd-7391"
NAME = "Canary Quetzalcoatl"


class Up:
    """`registrar up` as a process of its own, on a data directory and a port of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory.parent / "stderr.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGISTRAR_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    Path(sys.executable).with_name("registrar"),
                    "up",
                    "--port",
                    str(self.port),
                    "--data-dir",
                    self.directory,
                ],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def kill(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(60)


@pytest.fixture
def up() -> Iterator[Up]:
    parent = Path(tempfile.mkdtemp(prefix="registrar-e2e-"))
    parent.chmod(0o755)
    service = Up(parent / "data")
    try:
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill(signal.SIGTERM)
        if (service.directory / "postgres").exists():
            postgres = EmbeddedPostgres(service.directory)
            postgres.start()
            postgres.stop()
        shutil.rmtree(parent)


@pytest.fixture
async def client(up: Up) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=up.url, timeout=30) as client:
        yield client


async def ready(up: Up, client: httpx.AsyncClient) -> None:
    async def answers() -> bool:
        assert up.process is not None
        assert up.process.poll() is None, up.log.read_text()
        try:
            return (await client.get("/health/ready")).status_code == 200
        except httpx.TransportError:
            return False

    await eventually(answers, within=60)


async def mails(client: httpx.AsyncClient) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for message in (await client.get("/mailbox/messages")).json():
        found.setdefault(message["to"], []).append(message)
    return found


def code_in(message: dict[str, Any]) -> str:
    match = re.search(r"^\s*(\d{6})\s*$", message["text"], re.MULTILINE)
    assert match is not None
    return match[1]


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_what_was_accepted_before_a_sigkill_is_mailed_and_verifiable_after_it(
    up: Up, client: httpx.AsyncClient
) -> None:
    # given: 200 registrations on their way, half of them answered
    up.start()
    await ready(up, client)
    accepted: dict[str, str] = {}
    unknown: list[str] = []
    half = asyncio.Event()
    gate = asyncio.Semaphore(16)

    async def register(number: int) -> None:
        email = f"canary{number}@sigkill.example"
        body: dict[str, str] = {"email": email, "name": NAME}
        if number % 10 == 0:
            body["password"] = PASSWORD
        async with gate:
            try:
                answer = await client.post("/v1/registrations", json=body)
            except httpx.TransportError:
                unknown.append(email)
                return
        assert answer.status_code == 202, answer.text
        accepted[email] = answer.json()["registration_id"]
        if len(accepted) >= REGISTRATIONS // 2:
            half.set()

    running = asyncio.gather(*(register(number) for number in range(REGISTRATIONS)))
    await half.wait()

    # when: the process dies without a chance to say goodbye, and is started again
    assert up.kill(signal.SIGKILL) == -signal.SIGKILL
    await running
    assert unknown, "the kill must have come in the middle"
    up.start()
    await ready(up, client)

    # then: every 202 is mailed, with at most one copy more than without the crash
    async def all_mailed() -> bool:
        return accepted.keys() <= (await mails(client)).keys()

    await eventually(all_mailed, within=90)
    delivered = await mails(client)
    codes = {}
    for email in accepted:
        copies = delivered[email]
        assert len(copies) <= 2
        assert len({copy["headers"]["Message-ID"] for copy in copies}) == 1
        assert len({code_in(copy) for copy in copies}) == 1
        codes[email] = code_in(copies[0])

    # and: every code verifies, and every account becomes active
    for email, registration_id in accepted.items():
        answer = await client.post(f"/v1/registrations/{registration_id}/verification", json={"code": codes[email]})
        assert answer.status_code == 200, answer.text

    async def all_active() -> bool:
        states = [(await client.get(f"/v1/registrations/{id_}")).json()["status"] for id_ in accepted.values()]
        return set(states) == {"ACTIVE"}

    await eventually(all_active, within=60)

    # and: a second start finds everything where it was
    assert up.kill(signal.SIGTERM) == 0
    up.start()
    await ready(up, client)
    some = next(iter(accepted.values()))
    assert (await client.get(f"/v1/registrations/{some}")).json()["status"] == "ACTIVE"

    # and: nothing personal stands where it must not
    await scan_for_canaries(up, client, addresses=[*accepted, *unknown], codes=list(codes.values()))


async def scan_for_canaries(up: Up, client: httpx.AsyncClient, *, addresses: list[str], codes: list[str]) -> None:
    personal = [PASSWORD, NAME, *addresses[:20]]
    # The scan itself can fail: it finds what is planted.
    assert occurs(base64.b64encode(b"x" + PASSWORD.encode()).decode(), [PASSWORD]) == [PASSWORD]
    assert shown(["123456"], '{"code": "123456", "at": "10:00:00.654321"}') == ["123456"]

    postgres = EmbeddedPostgres(up.directory)
    postgres.start()
    try:
        with psycopg.connect(postgres.dsn) as connection:
            states = [
                bytes(row[0]).decode()
                for row in connection.execute("SELECT state FROM events ORDER BY notification_id")
            ]
            tables = connection.execute(
                "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = 'public' OR schemaname LIKE 'read\\_%'"
            ).fetchall()
            dump = "\n".join(
                str(row[0])
                for schema, table in tables
                for row in connection.execute(f'SELECT t::text FROM "{schema}"."{table}" AS t').fetchall()
            )
    finally:
        postgres.stop()
    assert len(states) > len(addresses)
    assert occurs(dump, personal) == []
    assert shown(codes, "\n".join(states)) == []
    assert shown(codes, dump) == []

    log = up.log.read_text()
    assert log
    assert occurs(log, personal) == []
    assert shown(codes, log) == []
    messages = json.dumps((await client.get("/mailbox/messages")).json())
    assert occurs(messages, [PASSWORD, NAME]) == []
    for path in (up.directory / "postgres.log",):
        assert occurs(path.read_text(errors="replace"), personal) == []
    metrics = (await client.get("/metrics")).text
    assert "registrar_registrations_total" in metrics
    assert occurs(metrics, personal) == []
