"""The product beside a server: what both of them show."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, Final
from unittest.mock import patch

import psycopg
from psycopg import sql

from entrypoints.bootstrap import delivery
from entrypoints.bootstrap.database import create_schema
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.mail.smtp.pool import Limits
from infrastructure.postgres.connection import connect
from infrastructure.telemetry.logs import configure_logging
from tests.ground.running import Letter, RunningServer
from tests.support.facts import eventually
from tests.support.http import ADMIN, Api, open_api
from tests.support.log import query
from tests.support.postgres import database_of

SENDER: Final = "registrar@sender.example"
HOME: Final = "ground.example"
_numbers = count(1)


async def fresh_database(postgres: EmbeddedPostgres) -> str:
    """URL of a database with all tables and nothing in them."""
    name = f"ground_{next(_numbers)}"
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    dsn = database_of(postgres, name)
    async with await connect(dsn, name="template", statement_timeout=timedelta(seconds=10)) as connection:
        await create_schema(connection)
    return dsn


async def comes_true(condition: Callable[[], Awaitable[Any] | Any], *, within: float) -> bool:
    """Has it held within so many seconds?"""
    with suppress(AssertionError):
        await eventually(condition, within=within, every=0.1)
        return True
    return False


@dataclass(slots=True)
class Scene:
    """One scenario: a server, a database of its own, and what the product wrote to its log."""

    server: RunningServer
    postgres: EmbeddedPostgres
    dsn: str
    log: io.StringIO

    @classmethod
    async def set(cls, server: RunningServer, postgres: EmbeddedPostgres) -> Scene:
        log = io.StringIO()
        configure_logging("json", stream=log)
        return cls(server, postgres, await fresh_database(postgres), log)

    async def anew(self) -> Scene:
        """Another database beside the same server."""
        return await Scene.set(self.server, self.postgres)

    @asynccontextmanager
    async def product(
        self, *, follows: bool = True, sender: str = SENDER, connections: int | None = None
    ) -> AsyncIterator[Api]:
        """
        Args:
            connections: to the server, from the beginning and at most.
        """
        mail_from = f"Registrar <{sender}>"
        limits = Limits
        if connections is not None:
            limits = partial(Limits, connections=connections, first_connections=connections)  # type: ignore[assignment]
        with patch.object(delivery, "Limits", limits):
            async with open_api(self.dsn, follows=follows, smtp_urls=self.server.url, mail_from=mail_from) as api:
                yield api

    async def statuses(self) -> Counter[str]:
        """How many registrations have which status, by the events that say so."""
        rows = await query(
            self.dsn,
            "SELECT count(*) FILTER (WHERE topic = 'registration.user_registered'),"
            " count(*) FILTER (WHERE topic = 'registration.email_dispatched'),"
            " count(*) FILTER (WHERE topic = 'registration.registration_cancelled') FROM events",
        )
        return Counter(dict(zip(("registered", "sent", "undone"), rows[0], strict=True)))

    async def until_sent(self, number: int, *, within: float) -> bool:
        async def sent() -> bool:
            return (await self.statuses())["sent"] >= number

        return await comes_true(sent, within=within)

    async def until_arrived(self, people: Sequence[str], *, within: float) -> bool:
        def all_there() -> bool:
            return len({letter.to for letter in self.letters_to(people)}) >= len(people)

        return await comes_true(all_there, within=within)

    def letters_to(self, people: Iterable[str]) -> list[Letter]:
        """By the mailbox alone: Sendmail rewrites the domain of a recipient of its own."""
        wanted = {_mailbox(person) for person in people}
        return [letter for letter in self.server.letters() if _mailbox(letter.to) in wanted]

    def quotes(self, people: Iterable[str]) -> bool:
        """Does the log name one of them?"""
        written = self.log.getvalue()
        return any(person in written for person in people)

    def alarms(self) -> list[dict[str, Any]]:
        """Its error lines about mail."""
        lines = [json.loads(line) for line in self.log.getvalue().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("level") == "error" and line["event"].startswith("mail.")]


def _mailbox(address: str) -> str:
    return address.partition("@")[0]


async def register(api: Api, people: Sequence[str], *, at_once: int = 16) -> dict[str, str]:
    """The ids of their registrations."""
    turn = asyncio.Semaphore(at_once)

    async def one(person: str) -> str:
        async with turn:
            answer = await api.register(person)
        assert answer.status_code == 202, answer.text
        registration_id: str = answer.json()["registration_id"]
        return registration_id

    return dict(zip(people, await asyncio.gather(*map(one, people)), strict=True))


async def circuits_opened(api: Api) -> int:
    """How often a circuit was opened."""
    text = (await api.http.get("/metrics", headers=ADMIN)).text
    lines = [line for line in text.splitlines() if line.startswith("registrar_circuit_transitions_total")]
    return int(sum(float(line.split()[-1]) for line in lines if 'state="opened"' in line))


async def replies(api: Api) -> str:
    """What became of the tries: "accepted 20, greylisted 3"."""
    text = (await api.http.get("/metrics", headers=ADMIN)).text
    outcomes: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("registrar_mail_total"):
            outcomes[line.split('outcome="')[1].split('"')[0]] += int(float(line.split()[-1]))
    return ", ".join(f"{outcome} {number}" for outcome, number in sorted(outcomes.items()) if number)


async def mail_health(api: Api) -> str:
    status: str = (await api.http.get("/health/mail")).json()["status"]
    return status
