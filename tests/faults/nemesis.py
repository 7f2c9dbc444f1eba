"""The nemesis: does to a fleet what a schedule says, and proves of each fault that it took effect.

Two processes that serve and two that follow, each with a proxy of its own before a PostgreSQL that can be killed, and a
mail server that misbehaves; where mail goes over RabbitMQ, two that work beside them, and a broker that can be killed
behind a proxy that they share. Faults may overlap; those of one thing come one after the other. `chaos` runs it.

It sleeps between faults: the times of the schedule are what is tested, nothing is waited for by them.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, cast

import psutil  # type: ignore[import-untyped]
import psycopg

from infrastructure.embedded.postgres import EmbeddedPostgres
from tests.faults.fleet import FOLLOWS, Node, backends_of, kill_postmaster
from tests.faults.invariants import Violation
from tests.faults.scene import Scene
from tests.faults.schedule import BROKER, MAIL_PATH, FaultKind, Planned
from tests.faults.shell import Ran, Shell, ended
from tests.support.facts import eventually
from tests.support.log import locked, query
from tests.support.rabbitmq import PrivateRabbit
from tests.support.smtp_stub import SmtpStub, Stage
from tests.support.tcp_proxy import TO_CLIENT, TO_SERVER, Direction, TcpProxy

TILL_EFFECTIVE: Final = 45.0
"""How much longer than planned a fault may last until it hits something: an open circuit is closed after 30 s."""

REVIVED_WITHIN: Final = 180.0
PROGRESS_WITHIN: Final = 60.0


@dataclass(slots=True)
class Tally:
    """What became of a kind of fault."""

    planned: int = 0
    effective: int = 0


class Sink(SmtpStub):
    """Counts how often it misbehaved."""

    misbehaved = 0

    def _action(self, stage: str) -> str | None:
        action = super()._action(stage)
        self.misbehaved += action is not None
        return action


@dataclass(frozen=True, slots=True)
class BrokerOnTheWay:
    """RabbitMQ, and the proxy by way of which everybody goes there."""

    rabbit: PrivateRabbit
    proxy: TcpProxy

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.proxy.port}/%2F"


@dataclass(slots=True)
class Nemesis:
    """
    Attributes:
        sink: the fleet's mail server.
        proxies: before the database, by the node that goes by way of it.
        broker: None where mail is handed over inside the processes.
        say: told what is being done.
        faults: what became of what was planned, by kind.
        wrong: what must not be, whatever else happens: no progress though all is healed, a read model that differs.
    """

    scene: Scene
    sink: Sink
    postgres: EmbeddedPostgres
    proxies: dict[str, TcpProxy]
    say: Callable[[str], None]
    broker: BrokerOnTheWay | None = None
    faults: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    wrong: list[Violation] = field(default_factory=list)
    _turns: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def act_out(self, planned: Sequence[Planned]) -> None:
        """Do all that was planned, and leave everything healed."""
        under_way: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            for one in planned:
                await asyncio.sleep(one.after)
                if one.kind in {"quiet", "crash loop"}:
                    if under_way:
                        await asyncio.wait(under_way)
                    if one.kind == "quiet":
                        await self._be_quiet(one)
                    else:
                        await self._loop(one)
                    continue
                task = group.create_task(self._inject(one))
                under_way.add(task)
                task.add_done_callback(under_way.discard)

    async def _inject(self, planned: Planned) -> None:
        act = _ACTS[cast("FaultKind", planned.kind)]
        tally = self.faults[planned.kind]
        tally.planned += 1
        # Two faults of one thing come one after the other; its process and its connections are two things.
        layer = "connections" if "connections" in planned.kind or planned.kind == "commits slowed" else "process"
        async with self._turns[f"{layer} {planned.target}"]:
            self.say(f"{planned.kind} ({planned.target} {planned.lasts:g} s {planned.detail})")
            hit = await act(self, planned)
            tally.effective += hit

    def _node(self, name: str) -> Node:
        return next(node for node in self.scene.fleet.nodes if node.name == name)

    # --- Processes ------------------------------------------------------------------------------

    async def kill_node(self, planned: Planned) -> bool:
        node = self._node(planned.target)
        await node.kill()
        await asyncio.sleep(planned.lasts)
        await node.revive(within=REVIVED_WITHIN)
        return -signal.SIGKILL in node.exits

    async def pause_node(self, planned: Planned) -> bool:
        node = self._node(planned.target)
        process = psutil.Process(node.pid)
        node.pause()
        await eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        await asyncio.sleep(planned.lasts)
        node.go_on()
        return True

    # --- PostgreSQL -----------------------------------------------------------------------------

    async def kill_backend(self, planned: Planned) -> bool:
        """The server ends all the others, too, and starts anew."""
        chance = random.Random(f"{planned}")  # noqa: S311 - repeatable

        async def killed() -> list[psutil.Process]:
            """All that there were; none, if none has come back yet or ours has ended by itself."""
            pids = await asyncio.to_thread(backends_of, self.postgres.dsn)
            try:
                processes = [psutil.Process(pid) for pid in pids]
                if processes:
                    chance.choice(processes).kill()
            except psutil.NoSuchProcess:
                return []
            return processes

        with self._during("a backend is killed", "slow database"):
            processes = await eventually(killed, within=TILL_EFFECTIVE, every=0.2)
            _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 30)
            assert not alive, f"{len(alive)} backends outlive the one that was killed"
            await eventually(self._database_answers, within=60, every=0.1)
        return True

    async def kill_postmaster(self, planned: Planned) -> bool:
        pid = self.postgres.pid
        assert pid is not None
        with self._during("the database is starting", "slow database"):
            with self._during("the postmaster is killed", "database"):
                await asyncio.to_thread(kill_postmaster, pid)
                await asyncio.sleep(planned.lasts)
            await asyncio.to_thread(self.postgres.start)
        return self.postgres.pid != pid

    async def lock_head(self, planned: Planned) -> bool:
        """Somebody holds what every append needs."""

        async def waiting() -> bool:
            sessions = (
                "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'registrar%' AND wait_event_type = 'Lock'"
            )
            return bool(await query(self.postgres.dsn, sessions))

        with self._during("the head is locked", "slow database"):
            async with locked(self.postgres.dsn, "SET idle_in_transaction_session_timeout = 0") as connection:
                await connection.execute("SELECT FROM head FOR UPDATE")
                return await self._while_it_lasts(planned, waiting)

    async def _database_answers(self) -> bool:
        try:
            await query(self.postgres.dsn, "SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    # --- Connections ----------------------------------------------------------------------------

    async def reset_connections(self, planned: Planned) -> bool:
        proxy = self.proxies[planned.target]
        before = proxy.effects["reset"]

        def hit() -> bool:
            proxy.reset()
            return proxy.effects["reset"] > before

        with self._during(f"connections of {planned.target} are reset", "slow database", node=planned.target):
            return await self._while_it_lasts(planned, hit)  # its process may be dead for now

    async def refuse_connections(self, planned: Planned) -> bool:
        proxy = self.proxies[planned.target]
        before = proxy.effects["refuse"]
        with self._network_fault(proxy, planned, "database"):
            proxy.refuse()
            proxy.reset()
            return await self._while_it_lasts(planned, lambda: proxy.effects["refuse"] > before)

    async def hold_connections(self, planned: Planned) -> bool:
        proxy = self.proxies[planned.target]
        direction: Direction = TO_SERVER if planned.detail == TO_SERVER else TO_CLIENT
        before = proxy.effects[f"hold {direction}"]
        with self._network_fault(proxy, planned, "database"):
            proxy.hold(direction)
            return await self._while_it_lasts(planned, lambda: proxy.effects[f"hold {direction}"] > before)

    async def slow_commits(self, planned: Planned) -> bool:
        proxy = self.proxies[planned.target]
        before = proxy.effects["delay"]
        with self._network_fault(proxy, planned, "slow database"):
            proxy.delay(float(planned.detail))
            return await self._while_it_lasts(planned, lambda: proxy.effects["delay"] > before)

    # --- The broker -----------------------------------------------------------------------------

    async def kill_broker(self, planned: Planned) -> bool:
        rabbit = self._broker.rabbit
        pid = rabbit.pid
        with self._during("the broker is killed", BROKER):
            await asyncio.to_thread(rabbit.kill)
            await asyncio.sleep(planned.lasts)
            await asyncio.to_thread(rabbit.start)
        return pid is not None and rabbit.pid != pid

    async def pause_broker(self, planned: Planned) -> bool:
        rabbit = self._broker.rabbit
        assert rabbit.pid is not None
        process = psutil.Process(rabbit.pid)
        with self._during("the broker pauses", BROKER):
            rabbit.pause()
            try:
                await eventually(lambda: process.status() == psutil.STATUS_STOPPED)
                await asyncio.sleep(planned.lasts)
            finally:
                rabbit.resume()
        return True

    async def reset_broker_connections(self, planned: Planned) -> bool:
        proxy = self._broker.proxy
        before = proxy.effects["reset"]

        def hit() -> bool:
            proxy.reset()
            return proxy.effects["reset"] > before

        with self._during("connections to the broker are reset", BROKER):
            return await self._while_it_lasts(planned, hit)  # nobody may be connected for now

    async def hold_broker_connections(self, planned: Planned) -> bool:
        proxy = self._broker.proxy
        direction: Direction = TO_SERVER if planned.detail == TO_SERVER else TO_CLIENT
        before = proxy.effects[f"hold {direction}"]
        with self._network_fault(proxy, planned, BROKER):
            proxy.hold(direction)
            return await self._while_it_lasts(planned, lambda: proxy.effects[f"hold {direction}"] > before)

    @property
    def _broker(self) -> BrokerOnTheWay:
        assert self.broker is not None, "there is no broker in this run"
        return self.broker

    # --- The mail server ------------------------------------------------------------------------

    async def spoil_mail(self, planned: Planned) -> bool:
        by_default, action = _MAIL_FAULTS[planned.kind]
        stage = cast("Stage", planned.detail or by_default)
        before = self.sink.misbehaved
        with self._during(planned.kind, "mail"):
            self.sink.at(stage, action)
            if stage == "banner":  # who is connected would not notice
                self.sink.drop_connections()
            try:
                return await self._while_it_lasts(planned, lambda: self.sink.misbehaved > before)
            finally:
                self.sink.heal()

    # --- Read models (A18, A19, X6) -------------------------------------------------------------

    async def rebuild(self, planned: Planned) -> bool:
        """An operator rebuilds one; it may be killed or stopped, and is taken up by the next one."""
        return await self._insist("rebuild", planned)

    async def verify(self, planned: Planned) -> bool:
        return await self._insist("verify", planned)

    async def _insist(self, word: str, planned: Planned) -> bool:
        """Give the command again while it cannot be done."""
        deadline = time.monotonic() + TILL_EFFECTIVE
        while time.monotonic() < deadline:
            process = Shell.of(self.scene.fleet).begin(word, planned.target, "--json")
            if planned.detail:
                await asyncio.sleep(planned.lasts)
                process.send_signal(signal.Signals[planned.detail])
            if self._judged(planned, await asyncio.to_thread(ended, process)):
                return True
        return False

    def _judged(self, planned: Planned, ran: Ran) -> bool:
        """It may be that it could not be done (2); a difference, or more than a line about it, is wrong.

        A SIGINT that comes when the command is done and its process is ending kills it: Python has no handler any more.
        """
        allowed = {0, 2} | ({-signal.SIGKILL, -signal.SIGINT, 130} if planned.detail else set())
        if ran.code not in allowed or ran.err.count("\n") > 1:
            self.wrong.append(Violation("I8", f"{planned.kind} ({planned.target}): {ran}"))
        return ran.code != 2

    async def prove_read_models(self) -> None:
        """Everything is healed: every rebuild is taken up, or begun, and done; and every read model verifies."""
        shell = Shell.of(self.scene.fleet)
        for words in (("rebuild", "--all", "--json"), ("verify", "--json")):
            ran = await asyncio.to_thread(ended, shell.begin(*words))
            if ran.code != 0:
                self.wrong.append(Violation("I8", f"projections {words[0]}: {ran}"))
        self.say("all read models are rebuilt and verified")

    # --- All at once (A17) ----------------------------------------------------------------------

    async def _loop(self, planned: Planned) -> None:
        """Every component dies every few seconds, for half of the time; twice, and each time it gets somewhere then."""
        chance = random.Random(planned.detail)  # noqa: S311 - repeatable
        tally = self.faults["crash loop"]
        for _ in range(2):
            self.say(f"crash loop ({planned.lasts / 2:g} s)")
            tally.planned += 1
            end = time.monotonic() + planned.lasts / 2
            components = self._mortal(planned.target)
            chances = [random.Random(chance.random()) for _ in components]  # noqa: S311 - repeatable
            deaths = await asyncio.gather(
                *(self._die_again_and_again(one, own, end) for one, own in zip(components, chances, strict=True))
            )
            tally.effective += min(deaths) >= 1
            await self._must_progress("A17", mail=True)

    def _mortal(self, target: str) -> list[Planned]:
        """Who dies in a crash loop, each as a kill without its times."""
        nodes = self.scene.fleet.nodes
        dying = [node for node in nodes if node.kind != "serve"] if target == MAIL_PATH else nodes
        components = [Planned(0, "node killed", node.name) for node in dying]
        if target != MAIL_PATH:
            components.append(Planned(0, "postmaster killed", "postgres"))
        if self.broker is not None:
            components.append(Planned(0, "broker killed", BROKER))
        return components

    async def _die_again_and_again(self, component: Planned, chance: random.Random, end: float) -> int:
        """Answers how often it died."""
        # A broker takes seconds to start, and its clients as long to come back: its lives are to be of some use.
        shortest, longest = (3.0, 10.0) if component.target == BROKER else (0.5, 3.0)
        act = _ACTS[cast("FaultKind", component.kind)]
        deaths = 0
        while time.monotonic() < end or not deaths:
            after, lasts = chance.uniform(shortest, longest), chance.uniform(0.1, 1.0)
            await asyncio.sleep(after)
            deaths += await act(self, replace(component, lasts=lasts))
        return deaths

    async def _be_quiet(self, planned: Planned) -> None:
        self.say(f"quiet ({planned.lasts:g} s)")
        await asyncio.gather(asyncio.sleep(planned.lasts), self._must_progress("I4", mail=False))

    async def _must_progress(self, row: str, *, mail: bool) -> None:
        """Everything is up, and people come: the log grows, everybody follows, and mails go out."""
        begun, mails, head = time.monotonic(), len(self.sink.mails), await self._position("max(position) FROM head")
        try:
            await eventually(lambda: self._is_beyond(head), within=PROGRESS_WITHIN, every=0.2)
            if mail:
                await eventually(lambda: len(self.sink.mails) > mails, within=PROGRESS_WITHIN)
        except AssertionError:
            self.wrong.append(Violation(row, f"no progress within {PROGRESS_WITHIN:g} s of healing (position {head})"))
        self.say(f"all healed: progress after {time.monotonic() - begun:.1f} s")

    async def _is_beyond(self, head: int) -> bool:
        """The relay is left out: it rightly waits while no mail server may be called."""
        return await self._position(f"min(position) FROM followers WHERE name <> 'relay' AND {FOLLOWS}") > head

    async def _position(self, what: str) -> int:
        position: int = (await query(self.postgres.dsn, f"SELECT {what}"))[0][0]
        return position

    # --- Words ----------------------------------------------------------------------------------

    def _during(self, what: str, hits: str, *, node: str = "") -> AbstractContextManager[None]:
        return self.scene.faults.during(what, hits, node=node)

    @contextmanager
    def _network_fault(self, proxy: TcpProxy, planned: Planned, hits: str) -> Iterator[None]:
        """What is noted ends before the healing: until then it is certain."""
        node = "" if planned.target == BROKER else planned.target
        try:
            with self._during(f"{planned.kind} of {planned.target}", hits, node=node):
                yield
        finally:
            proxy.heal()

    async def _while_it_lasts(self, planned: Planned, effective: Callable[[], Awaitable[bool] | bool]) -> bool:
        """As long as was planned, and longer where it has not hit anything yet; answers whether it did in the end."""
        await asyncio.sleep(planned.lasts)
        try:
            await eventually(effective, within=TILL_EFFECTIVE, every=0.2)
        except AssertionError:
            return False
        return True


_ACTS: Final[dict[FaultKind, Callable[[Nemesis, Planned], Awaitable[bool]]]] = {
    "node killed": Nemesis.kill_node,
    "node paused": Nemesis.pause_node,
    "backend killed": Nemesis.kill_backend,
    "postmaster killed": Nemesis.kill_postmaster,
    "connections reset": Nemesis.reset_connections,
    "connections refused": Nemesis.refuse_connections,
    "connections held": Nemesis.hold_connections,
    "commits slowed": Nemesis.slow_commits,
    "head locked": Nemesis.lock_head,
    "mail away": Nemesis.spoil_mail,
    "mail refused": Nemesis.spoil_mail,
    "mail hangs": Nemesis.spoil_mail,
    "mail cut after the dot": Nemesis.spoil_mail,
    "mail greylisted": Nemesis.spoil_mail,
    "read model rebuilt": Nemesis.rebuild,
    "read model verified": Nemesis.verify,
    "broker killed": Nemesis.kill_broker,
    "broker paused": Nemesis.pause_broker,
    "broker connections reset": Nemesis.reset_broker_connections,
    "broker connections held": Nemesis.hold_broker_connections,
}

_MAIL_FAULTS: Final[dict[str, tuple[Stage, str]]] = {
    "mail away": ("banner", "421 4.3.2 shutting down"),
    "mail refused": ("rcpt", "550 5.1.1 unknown"),
    "mail hangs": ("eod", "hang"),  # at the stage that the schedule names
    "mail cut after the dot": ("eod", "drop"),
    "mail greylisted": ("rcpt", "451 4.7.1 greylisted"),
}
