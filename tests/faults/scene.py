"""A fleet with its mail server and clients, and everything that is recorded of it: what a test of faults plays on.

async def test_…(scene: Scene) -> None:
    api, worker = await scene.fleet.serve(), await scene.fleet.process()
    client = scene.client_of(api)
    registered = await client.register("ada@example.com")
    …                                                        # a fault, and its healing
    await scene.prove(client, registered)                    # the code from the mail, until it is an account
    await scene.must_hold()                                  # the checker, over all of it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from entrypoints.api.app import create_app
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.settings.settings import Settings
from tests.faults.evidence import Evidence, collect, latest_code
from tests.faults.fleet import Fleet, Node
from tests.faults.invariants import check
from tests.faults.journal import Client, Faults, Journal, Operation
from tests.support.broker import declared
from tests.support.facts import eventually
from tests.support.http import client_of
from tests.support.log import query
from tests.support.service import Service, open_service
from tests.support.smtp_stub import SmtpStub


@dataclass(slots=True)
class Scene:
    """Use `Scene.on`, or the fixture `scene`."""

    fleet: Fleet
    sink: SmtpStub
    journal: Journal = field(default_factory=Journal)
    passwords: list[str] = field(default_factory=list)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _clients: dict[str, Client] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def on(cls, fleet: Fleet, sink: SmtpStub) -> AsyncIterator[Scene]:
        scene = cls(fleet, sink)
        async with fleet, scene._stack:
            yield scene

    @property
    def faults(self) -> Faults:
        return self.fleet.faults

    @property
    def copies(self) -> Counter[bytes]:
        """Mails that the mail server took, per recipient."""
        return Counter(mail.recipients[0] for mail in self.sink.mails)

    def client_of(self, *nodes: Node, timeout: float = 30.0) -> Client:
        """A client of these nodes, one after the other: a request that fails goes to the next one when repeated.

        Args:
            timeout: the nodes' `REQUEST_TIMEOUT`.
        """
        name = f"{[node.name for node in nodes]} {timeout}"
        if name not in self._clients:
            turn = iter(range(2**62))

            def url() -> str:
                return nodes[next(turn) % len(nodes)].url

            client = self._clients[name] = Client(self.journal, url, timeout=timeout)
            self._stack.push_async_callback(client.close)
        return self._clients[name]

    async def client_within(self, *, broker_up: bool = False, resend_cooldown: str = "60") -> Client:
        """A client of an API in this very process, where it is not the API that fails: spares a process.

        Args:
            broker_up: what we have in RabbitMQ is declared first; an API only looks at it.
            resend_cooldown: of this API alone; it is also the least time between two mails to a mailbox.
        """
        service = await self._stack.enter_async_context(self.within(resend_cooldown=resend_cooldown))
        if broker_up:
            await declared(service)
        http = await self._stack.enter_async_context(client_of(create_app(service.api)))
        return Client(self.journal, lambda: str(http.base_url).rstrip("/"), http=http)

    @asynccontextmanager
    async def within(
        self, *, follows: bool = False, works: bool = False, clock: DatabaseClock | None = None, **settings: str
    ) -> AsyncIterator[Service]:
        """A node in this very process, where it is not the process that fails: spares seconds of its start.

        Args:
            clock: of this node alone; a fleet's nodes have the database's.
            settings: of this node alone, on top of the fleet's.
        """
        upper = {f"REGISTRAR_{name.upper()}": value for name, value in settings.items()}
        chosen = Settings.from_environment(self.fleet.settings() | upper)
        async with open_service(chosen, follows=follows, works=works, clock=clock) as service:
            yield service

    async def accepted(self, client: Client, address: str, *, key: str | None = None, **more: str) -> Operation:
        """A registration that was answered with 202."""
        if (password := more.get("password")) is not None:
            self.passwords.append(password)
        operation = await client.register(address, key=key, **more)
        assert operation.outcome == "ok", operation
        return operation

    async def code_of(self, address: str, *, other_than: str | None = None, within: float = 60) -> str:
        """The code in the newest mail to an address, once it is there."""

        def arrived() -> str | None:
            code = latest_code(self.sink.mails, address)
            return code if code != other_than else None

        code: str = await eventually(arrived, within=within)
        return code

    async def verify(self, client: Client, registered: Operation, *, within: float = 60) -> Operation:
        """Verify a registration with the code from its mail, however often that has to be tried."""
        assert registered.registration_id is not None
        assert registered.address is not None
        code = await self.code_of(registered.address, within=within)
        registration_id = registered.registration_id

        async def verified() -> Operation | None:
            operation = await client.verify(registration_id, code)
            assert operation.outcome != "fail", operation
            return operation if operation.outcome == "ok" else None

        found: Operation = await eventually(verified, within=within)
        return found

    async def prove(self, client: Client, *registrations: Operation, within: float = 60) -> None:
        """Verify them all, and wait until they are accounts."""
        for registered in registrations:
            await self.verify(client, registered, within=within)
        for registered in registrations:
            await self.becomes(client, registered.registration_id, status="ACTIVE", within=within)

    async def becomes(
        self, client: Client, registration_id: UUID | None, *, within: float = 60, **expected: str
    ) -> None:
        """Wait until the API shows the registration so."""
        assert registration_id is not None
        sought = registration_id

        async def shown() -> bool:
            operation = await client.look(sought)
            state = operation.answer or {}
            return {name: state.get(name) for name in expected} == expected

        await eventually(shown, within=within)

    async def recorded(self, topic: str, registration_id: UUID | None = None) -> int:
        """How many events of a topic are in the log, of one registration or of all."""
        rows = await query(
            self.fleet.dsn,
            "SELECT count(*) FROM events WHERE topic = %s AND (%s::uuid IS NULL OR originator_id = %s)",
            topic,
            registration_id,
            registration_id,
        )
        count: int = rows[0][0]
        return count

    async def evidence(self, *, healed: bool = True, refold: bool = True) -> Evidence:
        """Everything that was recorded, once every follower has caught up (not waited for if not `healed`)."""
        if healed:
            await self.fleet.until_caught_up()
        return await collect(
            self.fleet.dsn,
            journal=self.journal,
            mails=self.sink.mails,
            faults=self.faults.windows,
            health=self.fleet.health,
            resources=self.fleet.resources,
            texts=await self.fleet.texts(),
            passwords=self.passwords,
            senders=self.fleet.senders,
            healed=healed,
            refold=refold,
        )

    async def must_hold(self, *, only: Collection[str] = (), healed: bool = True, refold: bool = False) -> Evidence:
        """Let the checker judge; answers what it judged.

        Args:
            refold: judge read models, too (I8); takes about two seconds.
        """
        evidence = await self.evidence(healed=healed, refold=refold)
        violations = check(evidence, only=only)
        assert not violations, "\n".join(map(str, violations))
        return evidence
