"""Secrets are changed by restarts one by one, while people register and operators look, and nobody notices."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.faults.fleet import TOKEN, Fleet, Node
from tests.faults.invariants import check
from tests.faults.journal import Journal
from tests.faults.people import Crowd, Inbox
from tests.faults.scene import Scene
from tests.faults.test_upgrade import A_SECOND, Traffic, goes_on
from tests.support.facts import eventually
from tests.support.postgres import SURVIVES_KILLS, server
from tests.support.rabbitmq import PrivateRabbit, free_ports
from tests.support.smtp_stub import SmtpStub

NEW_TOKEN = "t0ken-that-comes-after-it-f0r-all-of-them"
OWNER = "registrar_owner"


@dataclass
class Server:
    """A PostgreSQL that wants passwords.

    Attributes:
        dsn: of its administrator.
    """

    dsn: str
    port: int

    def do(self, *statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def login(self, name: str) -> str:
        """A new role that logs in, and then is the owner of our tables; its URL."""
        self.do(
            f"CREATE ROLE {name} LOGIN PASSWORD 'of-{name}' IN ROLE {OWNER}", f"ALTER ROLE {name} SET role = {OWNER}"
        )
        return f"postgresql://{name}:of-{name}@127.0.0.1:{self.port}/service"


@pytest.fixture
def database() -> Iterator[Server]:
    [port] = free_ports(1)
    with server({**SURVIVES_KILLS, "listen_addresses": "127.0.0.1", "port": str(port)}) as postgres:
        found = Server(postgres.dsn, port)
        found.do(f"CREATE ROLE {OWNER}", f"CREATE DATABASE service OWNER {OWNER}")
        yield found


@dataclass
class Operators:
    """They look again whenever people have done something, at every process that serves, with the token that they have.

    Attributes:
        people: what they do.
        statuses: of all answers so far.
    """

    traffic: Traffic
    people: Journal
    token: str = TOKEN
    statuses: list[int] = field(default_factory=list)

    async def look(self) -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            while True:
                for node in list(self.traffic.serving):
                    self.statuses.append(await self.ask(http, node))
                await self._somebody_does_something()

    async def _somebody_does_something(self) -> None:
        operations = self.people.operations
        done = len(operations)
        await eventually(lambda: len(operations) > done, every=0.2)

    async def ask(self, http: httpx.AsyncClient, node: Node) -> int:
        found = await http.get(f"{node.url}/v1/admin/mail", headers={"Authorization": f"Bearer {self.token}"})
        return found.status_code

    async def answered(self) -> None:
        """By every process, from now on."""
        wanted = len(self.statuses) + 2 * len(self.traffic.serving) + 1
        await eventually(lambda: len(self.statuses) >= wanted)


async def rolled(traffic: Traffic, nodes: Sequence[Node], **settings: str) -> None:
    """Restart the nodes one after the other with these settings; who serves gets no request while it ends."""
    for node in nodes:
        if serves := node in traffic.serving:
            traffic.serving.remove(node)
        assert await node.stop() == 0
        node.environment.pop("REGISTRAR_NEXT_ADMIN_TOKEN", None)
        node.environment |= {f"REGISTRAR_{name.upper()}": value for name, value in settings.items()}
        await node.start()
        if serves:
            traffic.serving.append(node)


@pytest.mark.slow
@pytest.mark.fault("X4")
@pytest.mark.timeout(600)
async def test_passwords_of_database_and_broker_and_the_operators_token_change_while_people_register(
    database: Server,
    rabbit: PrivateRabbit,
    broker_url: str,
    sink: SmtpStub,
    tmp_path: Path,
    reached_directory: Path,
) -> None:
    service = database.dsn.replace("/registrar?", "/service?")
    fleet = Fleet(service, sink.port, directory=tmp_path, reached=reached_directory, broker_url=broker_url)
    async with Scene.on(fleet, sink) as scene:
        await _changed_while_people_register(scene, database, rabbit, broker_url)

        async def delivered() -> bool:
            return not check(await scene.evidence(refold=False), only=("I4",))

        await eventually(delivered, within=150, every=1)  # what was in a worker's hand is sent once more after a while
        await scene.must_hold(refold=True)


async def _changed_while_people_register(
    scene: Scene, database: Server, rabbit: PrivateRabbit, broker_url: str
) -> None:
    everything = (".*", ".*", ".*")
    old = {"database_url": database.login("old"), "broker_url": rabbit.user(broker_url, everything)}
    new = {"database_url": database.login("new"), "broker_url": rabbit.user(broker_url, everything)}
    fleet, traffic = scene.fleet, Traffic(scene)
    first = await fleet.process(**old)
    nodes = [first, *await asyncio.gather(fleet.serve(**old), fleet.serve(**old), fleet.work(**old))]
    traffic.serving = [node for node in nodes if node.kind == "serve"]
    crowd = Crowd(traffic.client, Inbox(scene.sink), random.Random(4), a_second=A_SECOND)  # noqa: S311 - repeatable
    operators = Operators(traffic, scene.journal)
    people = asyncio.create_task(crowd.run())
    looking = asyncio.create_task(operators.look())
    try:
        await goes_on(scene)

        # Both are accepted while one process after the other is given the new ones.
        await rolled(traffic, nodes, **new, next_admin_token=NEW_TOKEN)
        await goes_on(scene)

        # Nobody needs the old ones any more.
        database.do(
            "ALTER ROLE old NOLOGIN", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'old'"
        )
        rabbit.ask("DELETE", f"users/{old['broker_url'].split('//')[1].partition(':')[0]}")
        operators.token = NEW_TOKEN
        await operators.answered()
        await rolled(traffic, nodes, **new, admin_token=NEW_TOKEN)
        await goes_on(scene)
        await operators.answered()
    finally:
        looking.cancel()
        crowd.go_home()
        await people
        await traffic.client.close()

    assert set(operators.statuses) == {200}
    operators.token = TOKEN
    async with httpx.AsyncClient() as http:
        assert [await operators.ask(http, node) for node in traffic.serving] == [401, 401]
    errors = [operation for operation in scene.journal if (operation.status or 0) >= 500]
    assert [operation for operation in errors if (operation.waits, operation.status) != (True, 503)] == []
