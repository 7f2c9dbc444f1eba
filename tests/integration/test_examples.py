"""Every program in `examples/` does what it says, as a stranger would run it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from aio_pika.exceptions import ChannelNotFoundEntity

from application.ports import entries_of
from infrastructure.event_store.store import EventStore
from tests.faults.fleet import Fleet
from tests.support.broker import channel_to
from tests.support.facts import CLIENT, REGISTRATION, account_activated, email_verified, eventually, registered, stream
from tests.support.http import MASTER_KEY, open_api
from tests.support.log import query
from tests.support.tcp_proxy import TO_CLIENT, TcpProxy

EXAMPLES = Path(__file__).parents[2] / "examples"
PASSWORD = "violets are blue today"


@asynccontextmanager
async def example(name: str, *arguments: str, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program, running; ended at the end of the block if it has not ended by itself."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRAR_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        EXAMPLES / name,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=inherited | {f"REGISTRAR_{name}": value for name, value in settings.items()},
        cwd=EXAMPLES.parent,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def run(name: str, *arguments: str, typed: str = "", **settings: str) -> tuple[int | None, str]:
    """Run the program to its end: its exit code, and what it printed."""
    async with asyncio.timeout(60), example(name, *arguments, **settings) as process:
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


async def test_a_login_service_takes_the_accounts_own_password_only(dsn: str) -> None:
    async with open_api(dsn) as api:
        registration_id = await api.active("ada@example.com", password=PASSWORD)
        await eventually(lambda: query(dsn, "SELECT 1 FROM read_accounts.accounts"))

    tries = [
        await run("login.py", email, typed=typed, DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)
        for email, typed in (
            ("ADA@example.com", PASSWORD),
            ("ada@example.com", "roses are red today"),
            ("bob@example.com", PASSWORD),
            ("ada@example.com", "short"),
        )
    ]

    assert tries == [(0, registration_id), *[(1, "wrong address or password")] * 3]


async def test_a_login_service_writes_nothing_where_no_service_has_run(dsn: str) -> None:
    tried = await run("login.py", "ada@example.com", typed=PASSWORD, DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)

    assert tried == (1, "")
    assert await query(dsn, "SELECT name FROM service_secrets") == []
