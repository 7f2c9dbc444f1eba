"""What stands between the product and its database or its mail server: a pooler, a proxy."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from entrypoints.bootstrap import CannotStart
from infrastructure.embedded.postgres import EmbeddedPostgres
from tests.ground.running import ROOT, RunningServer
from tests.ground.scene import HOME, SENDER, comes_true, fresh_database, register
from tests.ground.table import Cell, guarded
from tests.support.commands import clean_environment
from tests.support.http import MASTER_KEY, Api, open_api
from tests.support.log import proxy_to, query
from tests.support.mail import code_in
from tests.support.smtp_stub import SmtpStub

TIMEOUTS: Final = ("statement_timeout",)
"""What ends a session's work that takes too long, wherever it came from."""


def through(port: int, dsn: str) -> str:
    """URL of a database by way of a port of this machine."""
    name = urlsplit(dsn).path
    return f"postgresql://registrar@127.0.0.1:{port}{name}?sslmode=disable&gssencmode=disable"


async def pgbouncer(postgres: EmbeddedPostgres) -> tuple[str, dict[str, Cell]]:
    """In session mode the product works, in transaction mode it does not start and says why."""
    to = conninfo_to_dict(postgres.dsn)
    async with RunningServer("pgbouncer", PGHOST=str(to["host"]), PGPORT=str(to["port"])) as running:

        async def ten_in(mode: str) -> Cell:
            dsn = await _in_mode(running, mode, postgres)
            async with open_api(dsn) as api:
                return Cell.of(await _without_timeouts(api), await _ten_verified(api))

        async def as_it_is_shipped() -> Cell:
            """Older than 1.20 it may refuse the parameter itself: then that has to be said."""
            try:
                return await ten_in("session_mode")
            except CannotStart as refusal:
                complaints = [] if "options" in str(refusal) else ["refused, nothing says why"]
                return Cell.of(complaints, f"does not start: {refusal}")

        async def refused() -> Cell:
            dsn = await _in_mode(running, "transaction_mode", postgres)
            code, said = await _serve(dsn)
            named = any(word in said.lower() for word in ("pooler", "pgbouncer", "transaction pooling", "pool mode"))
            complaints = [] if code == 2 and named and "Traceback" not in said else ["not refused by name"]
            return Cell.of(complaints, f"exit {code}: {said.strip().splitlines()[-1][:160] if said.strip() else ''}")

        return running.version, {
            "session mode": await guarded(as_it_is_shipped()),
            "session mode, options ignored": await guarded(ten_in("ignore_options")),
            "transaction mode": await guarded(refused()),
        }


async def haproxy(postgres: EmbeddedPostgres) -> tuple[str, dict[str, Cell]]:
    """In front of two ways to the database, and of two mail servers, of which the first ends in the middle."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        one = await first.enter_async_context(proxy_to(postgres.dsn))
        other = await stack.enter_async_context(proxy_to(postgres.dsn))
        running = RunningServer("haproxy", FIRST=str(one.port), SECOND=str(other.port))
        await stack.enter_async_context(running)
        await running.reset()
        await running.start()
        database = await guarded(_database_fails_over(running, postgres, first.aclose))
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        stubs = await first.enter_async_context(SmtpStub()), await stack.enter_async_context(SmtpStub())
        running = RunningServer("haproxy", FIRST=str(stubs[0].port), SECOND=str(stubs[1].port))
        await stack.enter_async_context(running)
        await running.reset()
        await running.start()
        mail = await guarded(_mail_fails_over(running, postgres, stubs, first.aclose))
    return running.version, {"PostgreSQL, failover": database, "mail servers, failover": mail}


BETWEEN: Final[Mapping[str, Callable[[EmbeddedPostgres], Awaitable[tuple[str, dict[str, Cell]]]]]] = {
    "pgbouncer": pgbouncer,
    "haproxy": haproxy,
}
"""By name: gives the version and what came of each scenario."""


async def _in_mode(running: RunningServer, mode: str, postgres: EmbeddedPostgres) -> str:
    """URL of a fresh database through the pooler."""
    await running.call(mode)
    await running.restart()
    return through(running.port, await fresh_database(postgres))


async def _without_timeouts(api: Api) -> list[str]:
    async def shown(connection: psycopg.AsyncConnection) -> dict[str, str]:
        return {name: (await (await connection.execute(f"SHOW {name}".encode())).fetchall())[0][0] for name in TIMEOUTS}

    return [f"{name} is 0" for name, value in (await api.service.pool.ask(shown)).items() if value == "0"]


async def _ten_verified(api: Api, names: str = "u") -> str:
    await asyncio.gather(*(api.active(f"{names}{number}@{HOME}") for number in range(10)))
    return "10 verified"


async def _serve(dsn: str) -> tuple[int, str]:
    """Exit code and output of `registrar serve`; -9 if it is still there after half a minute."""
    with tempfile.TemporaryDirectory() as directory:
        environment = clean_environment(DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY, DATA_DIR=directory)
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("registrar"), "serve", "--port", "0",
            cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        timer = asyncio.get_running_loop().call_later(30, process.kill)
        said, _ = await process.communicate()
        timer.cancel()
    return process.returncode or 0, said.decode()


async def _database_fails_over(
    running: RunningServer, postgres: EmbeddedPostgres, first_ends: Callable[[], Awaitable[None]]
) -> Cell:
    async with open_api(through(running.port, await fresh_database(postgres))) as api:
        before = await _ten_verified(api)
        await first_ends()

        async def takes_again() -> bool:
            return (await api.register(f"probe@{HOME}")).status_code == 202

        started = asyncio.get_running_loop().time()
        recovered = await comes_true(takes_again, within=60)
        took = asyncio.get_running_loop().time() - started
        complaints = [] if recovered else ["no registration within 60 s of the failover"]
        after = await _ten_verified(api, "after") if recovered else "none"
    return Cell.of(complaints, f"{before}, failover in {took:.1f} s, {after}")


async def _mail_fails_over(
    running: RunningServer,
    postgres: EmbeddedPostgres,
    stubs: tuple[SmtpStub, SmtpStub],
    first_ends: Callable[[], Awaitable[None]],
) -> Cell:
    dsn = await fresh_database(postgres)
    async with open_api(dsn, smtp_urls=running.url, mail_from=SENDER) as api:
        before = await register(api, [f"u{number}@{HOME}" for number in range(10)])
        complaints = await _verified(api, before, stubs)
        await first_ends()
        after = await register(api, [f"after{number}@{HOME}" for number in range(10)])
        complaints += await _verified(api, after, stubs)
    undone = await query(dsn, "SELECT count(*) FROM events WHERE topic = 'registration.registration_cancelled'")
    if undone[0][0]:
        complaints.append(f"{undone[0][0]} undone")
    return Cell.of(complaints, f"{len(stubs[0].mails)} + {len(stubs[1].mails)} mails")


async def _verified(api: Api, registered: Mapping[str, str], stubs: tuple[SmtpStub, SmtpStub]) -> list[str]:
    def codes() -> dict[str, str]:
        mails = [mail for stub in stubs for mail in stub.mails]
        return {to.decode(): code_in(mail) for mail in mails for to in mail.recipients if to.decode() in registered}

    if not await comes_true(lambda: len(codes()) == len(registered), within=180):
        return [f"{len(codes())} of {len(registered)} mails"]
    answers = [await api.verify(registered[to], code) for to, code in codes().items()]
    refused = sum(answer.status_code != 200 for answer in answers)
    return [f"{refused} codes refused"] if refused else []
