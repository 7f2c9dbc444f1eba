"""Every program in `examples/` does what it says, as a stranger would run it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from uuid import UUID

import httpx
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from application.ports import entries_of
from entrypoints.api.http_server import Server
from infrastructure.event_store.store import EventStore
from tests.faults.fleet import Fleet
from tests.fuzz.running import running
from tests.support.broker import channel_to
from tests.support.facts import CLIENT, REGISTRATION, account_activated, email_verified, eventually, registered, stream
from tests.support.http import TOKEN, open_api
from tests.support.log import query
from tests.support.tcp_proxy import TO_CLIENT, TcpProxy

EXAMPLES = Path(__file__).parents[2] / "examples"
PASSWORD = "violets are blue today"


@asynccontextmanager
async def example(
    name: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program, running; ended at the end of the block if it has not ended by itself.

    Args:
        environment: variables of its own.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRAR_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        EXAMPLES / name,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=inherited | dict(environment),
        cwd=EXAMPLES.parent,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def run(
    name: str, *arguments: str, typed: str = "", environment: Mapping[str, str] = MappingProxyType({})
) -> tuple[int | None, str]:
    """Run the program to its end: its exit code, and what it printed."""
    async with asyncio.timeout(60), example(name, *arguments, environment=environment) as process:
        out, _ = await process.communicate(typed.encode())
        return process.returncode, out.decode().strip()


async def consumes(url: str, queue: str) -> bool:
    """Does anybody take messages from this queue?"""
    try:
        async with channel_to(url) as channel:
            declared = (await channel.declare_queue(queue, passive=True)).declaration_result
            return bool(declared.consumer_count)
    except ChannelNotFoundEntity:
        return False


async def test_a_client_repeats_what_was_not_answered_but_not_what_was_refused(
    dsn: str, tmp_path: Path, reached_directory: Path
) -> None:
    fleet = Fleet(dsn, 1, directory=tmp_path, reached=reached_directory)
    async with fleet:
        api = await fleet.serve()
        async with TcpProxy(("127.0.0.1", int(api.url.rpartition(":")[2]))) as proxy:
            proxy.cut(TO_CLIENT, b"202 Accepted", forward=False)

            code, printed = await run(
                "register.py", f"http://127.0.0.1:{proxy.port}", "ada@example.com", "Ada Lovelace"
            )

            assert proxy.is_effective
        refused = await run("register.py", api.url, "not an address", "Ada Lovelace")
    begun = await query(dsn, "SELECT originator_id FROM events WHERE topic = 'registration.user_registered'")
    assert (code, [(UUID(printed),)]) == (0, begun)
    assert refused == (1, "")


async def test_a_subscriber_hears_of_a_registration(dsn: str, store: EventStore, broker_url: str) -> None:
    life = stream(REGISTRATION, registered(), email_verified(), account_activated())
    await store.append(entries_of(life, CLIENT))
    async with example("subscribe.py", broker_url, "another-service") as subscriber:
        assert subscriber.stdout is not None
        await eventually(lambda: consumes(broker_url, "another-service"))
        async with open_api(dsn, broker_url=broker_url), asyncio.timeout(60):
            heard = [(await subscriber.stdout.readline()).decode().split() for _ in range(3)]
    assert heard == [
        [f"registrar.registration.{what}.v1", str(REGISTRATION)] for what in ("accepted", "verified", "activated")
    ]


async def test_a_login_service_lets_the_owner_in_and_asks_as_much_where_there_is_no_account(dsn: str) -> None:
    wrong = (1, "wrong address or password")
    async with open_api(dsn, limits="password-checks=2/1h burst 2") as api:
        registration_id = await api.active("ada@example.com", password=PASSWORD)
        await eventually(lambda: query(dsn, "SELECT 1 FROM read_accounts.accounts"))
        server = Server(api.app, host="127.0.0.1", port=0)
        await server.start()

        async def tries(email: str, *typed: str) -> list[tuple[int | None, str]]:
            told = {"REGISTRAR": f"http://127.0.0.1:{server.port}", "TOKEN": TOKEN}
            return [await run("login.py", email, typed=password, environment=told) for password in typed]

        known, unknown, nonsense = await asyncio.gather(
            tries("ADA@example.com", PASSWORD, "roses are red today", PASSWORD),
            tries("bob@example.com", PASSWORD, PASSWORD, PASSWORD),
            tries("nobody", "", PASSWORD),
        )
        await server.stop()

    assert known[:2] == [(0, registration_id), wrong]
    assert unknown[:2] == nonsense == [wrong, wrong]
    assert known[2] == unknown[2] == (2, "Too much was asked for; wait as long as Retry-After says.")
    away = await tries("ada@example.com", PASSWORD)
    assert away == [(2, "Registrar cannot be reached; try again in a moment.")]


@pytest.mark.slow
async def test_an_application_signs_up_hears_of_it_and_logs_in() -> None:
    port, secret = free_port(), f"whsec_{b64encode(os.urandom(32)).decode()}"
    to_us = {"WEBHOOKS": f"app=http://127.0.0.1:{port}/registrar", "WEBHOOK_NETWORKS": "127.0.0.0/8"}
    with running(**to_us, WEBHOOK_SECRETS=f"app={secret}") as service:
        settings = {"REGISTRAR": service.url, "TOKEN": service.token, "SECRET": secret}
        async with (
            example("web_application.py", str(port), environment=settings) as process,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as browser,
            httpx.AsyncClient(base_url=service.url, timeout=60) as registrar,
        ):
            assert process.stdout is not None
            assert (await process.stdout.readline()).startswith(b"listening")
            key = re.search(r"name=key value=(\S+?)>", (await browser.get("/")).text)
            assert key
            person = {"key": key[1], "email": "ada@example.com", "name": "Ada Lovelace"}
            refused = await browser.post("/sign-up", data=person | {"password": "short"})
            asked = [await browser.post("/sign-up", data=person | {"password": PASSWORD}) for _ in range(2)]
            (offered,) = {found for page in asked for found in re.findall(r"name=id value=(\S+?)>", page.text)}

            async def mailed() -> list[dict[str, str]]:
                found: list[dict[str, str]] = (await registrar.get("/mailbox/messages")).json()
                return found

            (mail,) = await eventually(mailed, within=60)
            code = re.search(r"^\s*(\d{6})\s*$", mail["text"], re.MULTILINE)
            assert code
            confirmed = await browser.post("/code", data={"id": offered, "code": code[1]})

            async def welcome() -> httpx.Response:
                return await browser.post("/log-in", data={"email": person["email"], "password": PASSWORD})

            async def known() -> bool:
                return (await welcome()).status_code == 200

            await eventually(known, within=60)
            wrong = await browser.post("/log-in", data={"email": person["email"], "password": "not this one"})
            nobody = await browser.post("/log-in", data={"email": "bob@example.com", "password": PASSWORD})
            forged = await browser.post("/registrar", content=b"{}", headers={"webhook-id": "x"})

    assert (refused.status_code, "password" in refused.text) == (422, True)
    assert [page.status_code for page in asked] == [200, 200]
    assert (confirmed.status_code, "Welcome" in confirmed.text) == (200, True)
    assert [page.status_code for page in (wrong, nobody, forged)] == [401, 401, 401]
    assert wrong.text == nobody.text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
