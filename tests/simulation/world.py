"""One run: a world made from a seed, lived through, healed, and judged."""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, cast
from unittest.mock import patch
from uuid import UUID

import psycopg

from application.answers import Answer
from application.handlers import Handlers
from application.mail_delivery import MailDelivery
from application.ports import Conflict, Context, MailRequest, MailServersAway, Unavailable
from domain.errors import Refused
from domain.policy import Policy
from domain.recorded import AnyEvent, Position
from infrastructure.followers import process_manager, relay
from infrastructure.followers.leadership import LeaderSession, NotLeader
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.relay import Relay
from infrastructure.followers.turns import Turns
from infrastructure.settings.limits import parse_limit
from projections.deadlines import DueLook
from tests.simulation.bounces import Bounces
from tests.simulation.database import (
    Database,
    Notifications,
    Session,
    SimulatedClaims,
    SimulatedStore,
)
from tests.simulation.faults import Faults, Network, Windows
from tests.simulation.mail import (
    ATTEMPT,
    Attempt,
    BrokerLine,
    Copy,
    Internet,
    SimulatedHasher,
    SimulatedLetters,
    SimulatedMailServers,
    SimulatedSecrets,
    expired,
)
from tests.simulation.oracle import Oracle, Violation, note_end
from tests.simulation.people import AnswerLost, People, Request
from tests.simulation.virtual_time import PROCESS, Livelock, Process, VirtualLoop
from tests.support.facts import T0
from tests.support.what_if import differences_in

MAX_STEPS = 100_000
RETRY_HORIZON = 6_000.0
"""Seconds after the healing within which every retry has come: an hour and its jitter, and a second look on top."""
LIFE = timedelta(hours=24).total_seconds()
CLIENT_PATIENCE = 10.0
COMMANDERS = 4
"""Requests that a worker behind a broker has under way."""


class Unpaced(Turns):
    """Every request has its turn at once, and nothing of that is noted in a database."""

    async def begin(self, connection: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Parts:
    """The real code; a test puts something broken in its place."""

    handlers: type[Handlers] = Handlers
    manager: type[ProcessManager] = ProcessManager
    relay: type[Relay] = Relay
    delivery: type[MailDelivery] = MailDelivery
    claims: type[SimulatedClaims] = SimulatedClaims
    secrets: type[SimulatedSecrets] = SimulatedSecrets


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a seed.

    Attributes:
        violation: what did not hold, or None.
        trace: every step that anybody could see from outside; empty unless asked for.
        events: how many were recorded.
        topics: of the events that were recorded.
        ends: how registrations ended, and how many each way.
        copies: the most copies of one mail.
        faults: how often each fault happened.
    """

    seed: int
    violation: Violation | None
    trace: tuple[str, ...]
    steps: int
    events: int
    topics: frozenset[str]
    ends: Counter[str]
    copies: int
    faults: dict[str, int]


def simulate(seed: int, parts: Parts | None = None, *, trace: bool = False) -> Run:
    """Live through the world of a seed: always the same, to the last step."""
    collecting = gc.isenabled()
    gc.disable()  # what is collected when must not depend on what ran before
    try:
        world = World(seed, parts or Parts(), trace=trace)
        with _quiet(world):
            return world.live()
    finally:
        if collecting:
            gc.enable()


_TOLD = frozenset({"command", "error", "refusal"})
"""Fields of log lines that are the same in every run."""


class _Log:
    """In place of the followers' logger."""

    def __init__(self, note: Callable[[str], None], bug: Callable[[BaseException], None]) -> None:
        self._note = note
        self._bug = bug

    def __getattr__(self, level: str) -> Callable[..., None]:
        return self._take

    def _take(self, event: str, **fields: object) -> None:
        if isinstance(error := fields.get("exc_info"), BaseException):
            self._bug(error)
        self._note(f"{event} {' '.join(str(fields[name]) for name in sorted(fields) if name in _TOLD)}")


@contextmanager
def _quiet(world: World) -> Iterator[None]:
    log = _Log(world.note, world.bug)
    with patch.object(process_manager, "log", log), patch.object(relay, "log", log):
        yield


@dataclass(slots=True)
class _Api:
    """An API process, as its clients see it."""

    process: Process
    handlers: Handlers
    clients: set[asyncio.Future[Answer]] = field(default_factory=set)


class World:
    """Everything there is, made from one random source; the order of the draws is part of a seed's meaning."""

    def __init__(self, seed: int, parts: Parts, *, trace: bool) -> None:
        self.seed = seed
        self.parts = parts
        self._trace: list[str] | None = [] if trace else None
        self._rng = rng = Random(seed)  # noqa: S311 - repeatable
        self.loop = loop = VirtualLoop(max_steps=MAX_STEPS)
        self._faults = faults = Faults(rng)
        self._policy = Policy()
        self._network = Network(loop, rng, faults)
        self._database = database = Database(loop, rng)
        self._away, self._locked = Windows(), Windows()
        self._internet = Internet()
        self.oracle = Oracle(database, policy=self._policy, fail=loop.failures.append)
        database.on_commit = self._on_commit
        database.on_moved = self._on_moved
        database.announce = self._announce
        self._internet.on_copy = self._on_copy
        self._listening: list[Notifications] = []
        self._broker = BrokerLine(self._network, rng, faults) if rng.random() < 0.3 else None
        self._processes: list[Process] = []
        self._leaders: dict[str, Process] = {}
        self._leading: dict[Process, asyncio.Task[Any]] = {}
        self._attempts: set[Attempt] = set()
        self._apis: dict[str, _Api | None] = {}
        self._crashes: dict[str, int] = {}
        self._fuse_length = 100
        self.people = People(
            service=self, network=self._network, rng=rng, oracle=self.oracle, mailboxes={}, note=self.note
        )
        self._bounces = Bounces(seed, call=self.call, network=self._network, faults=faults, oracle=self.oracle)

    # --- The plan -----------------------------------------------------------------------------

    def _plan(self) -> float:
        """Decide who comes when and what goes wrong; answers when everything is healed, in seconds."""
        rng, faults = self._rng, self._faults
        heal_at = rng.choice((400.0, 1800.0, 7200.0, 7200.0, 30_000.0, 100_000.0))
        for call in ("load", "append", "claim", "keys"):
            faults.allow(f"{call} refused", 0.02, 0.1)
            faults.allow(f"{call} unanswered", 0.02, 0.1)
        for call in ("read", "session"):  # rarer: each costs a follower its leadership
            faults.allow(f"{call} refused", 0.01, 0.04)
            faults.allow(f"{call} unanswered", 0.01, 0.04)
        faults.allow("append unanswered", 0.05, 0.2)
        faults.allow("append late", 0.03, 0.1)
        faults.allow("append overloaded", 0.02)
        faults.allow("slow network", 0.01, 0.1)
        faults.allow("news lost", 0.1, 0.5)
        faults.allow("answer lost", 0.05, 0.2)
        faults.allow("connection refused", 0.1, 0.4)
        faults.allow("451", 0.1, 0.5)
        faults.allow("554", 0.02)
        faults.allow("mail server slow", 0.1)
        faults.allow("end of data unanswered", 0.1, 0.4)
        for message in ("publish refused", "message lost", "message doubled", "message delayed", "confirm lost"):
            faults.allow(message, 0.1, 0.3)
        for windows, longest in (
            (self._away, 90.0),
            (self._locked, 20.0),
            (self._internet.outages, min(1500.0, heal_at * 0.9)),
            (self._internet.deferring, heal_at * 0.9),
        ):
            if rng.random() < 0.3:
                for _ in range(rng.randint(1, 3)):
                    begin = rng.random() * heal_at * rng.choice((0.02, 1.0))
                    windows.add(begin, min(begin + rng.random() * longest, heal_at))
        addresses = [f"Person{number}@example.com" for number in range(rng.randint(1, 3))]
        for address in addresses:
            if rng.random() < 0.15:
                self._internet.greylists.add(address.lower())
            if rng.random() < 0.08:
                self._internet.unknown.add(address.lower())
        self._fuse_length = rng.choice((40, 150, 500))
        for name in ("api-1", "api-2", "saga", "relay", *(("worker",) if self._broker else ())):
            self._crashes[name] = rng.choice((0, 0, 1, 2, 4))
        busy = heal_at * rng.choice((0.02, 0.3, 0.8))
        for number in range(rng.randint(2, 5)):
            address = rng.choice(addresses)
            reads_mail = rng.random() < 0.75
            self._spawn(
                partial(
                    self.people.registrant,
                    start=rng.random() * busy,
                    email=address if rng.random() < 0.7 else address.lower(),
                    name=f"{'Owner' if reads_mail else 'Squatter'} {number}",
                    reads_mail=reads_mail,
                    until=heal_at * 0.95,
                )
            )
        for _ in range(rng.choice((0, 0, 1, 3))):
            self._spawn(partial(self.people.operator, start=rng.random() * heal_at * 0.9))
        if rng.random() < 0.25:
            start = rng.random() * busy
            self._spawn(partial(self.people.importer, start=start, emails=addresses, until=heal_at * 0.95))
        return heal_at

    # --- The run ------------------------------------------------------------------------------

    def live(self) -> Run:
        violation: Violation | None = None
        try:
            heal_at = self._plan()
            for name in self._crashes:
                self._start(name)
            self.loop.run_until(heal_at)
            self._heal()
            self.loop.run_until(heal_at + RETRY_HORIZON)
            self.oracle.after_healing()
            self._check()
            self.loop.run_until(heal_at + RETRY_HORIZON + LIFE)
            self.oracle.at_the_end(stored=self.seed % 4 == 0)
            self._check()
            self._decide_again()
        except Violation as error:
            violation = error
        except Livelock as error:
            violation = Violation(f"I4: turns in circles: {error}")
        if violation is not None:
            self.note(f"VIOLATION {violation}")
        run = Run(
            self.seed,
            violation,
            tuple(self._trace or ()),
            self.loop.steps,
            self._database.head,
            frozenset(row.topic for row in self._database.rows),
            self.oracle.ends(),
            self.oracle.most_copies(),
            self._faults.happened,
        )
        self.loop.dismantle(*self._processes)
        return run

    def _decide_again(self) -> None:
        """The saga of today is that of then, so whatever broke, it decides the same about everything."""
        log, database = self._database.recorded, self._database
        parked = {stream_id for _, stream_id, _, _ in database.parked}
        found = differences_in(log, self._policy, handled=database.followers.get("mail-saga", 0), parked=parked)
        if found:
            raise Violation(f"what-if: {found[0]}")

    def _check(self) -> None:
        if self.loop.failures:
            raise self.loop.failures[0]

    def _heal(self) -> None:
        self.note("healed")
        self._faults.healed = True
        for windows in (self._away, self._locked, self._internet.outages, self._internet.deferring):
            windows.close()
        self._crashes = dict.fromkeys(self._crashes, 0)
        for process in self._processes:
            process.fuse = None
            if process.alive and process.frozen:
                self.loop.wake(process)

    def note(self, what: str) -> None:
        """A line of the trace."""
        if self._trace is not None:
            self._trace.append(f"{self.loop.now:11.3f} {PROCESS.get(self.loop.world).name:8} {what}")

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.loop.spawn(self.loop.world, self._guarded(work))

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Whatever is raised here is a bug."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - reported with the seed
            self.bug(error)

    def bug(self, error: BaseException) -> None:
        if isinstance(error, Violation):
            self.loop.failures.append(error)
            return
        violation = Violation(f"bug: {type(error).__name__}: {error}")
        violation.__cause__ = error
        for line in traceback.format_exception(error):
            self.note(line.rstrip())
        self.loop.failures.append(violation)

    # --- What is seen from outside ------------------------------------------------------------

    def _on_commit(self, events: Any, contexts: Any) -> None:
        if self._trace is not None:
            self.note(f"append {self._database.head - len(events) + 1}: " + ", ".join(map(self._words, events)))
        self.oracle.on_commit(events, contexts)

    def _words(self, event: AnyEvent) -> str:
        of = getattr(event, "registration_id", None)
        shown = {
            name: value
            for name, value in vars(event).items()
            if name in {"serial", "reason", "outcome", "attempt", "request", "failures", "permanent", "failure"}
        }
        if "look_again_at" in vars(event):
            shown["look"] = f"{(vars(event)['look_again_at'] - T0).total_seconds():.0f}"
        name = self.oracle.name(UUID(of) if of else event.originator_id)
        words = " ".join(f"{key}={value}" for key, value in shown.items())
        return f"{type(event).__name__}({name}{' ' if words else ''}{words})"

    def _on_moved(self, name: str, since: Position, to: Position) -> None:
        self.note(f"position of {name}: {since} -> {to}")
        if self._broker is None:
            self.oracle.on_moved(name, since, to)

    def _on_copy(self, copy: Copy) -> None:
        self.note(f"MAIL r? {copy.letter.rendered.subject} {copy.letter.message_id[1:7]} to {copy.letter.to}")
        self.oracle.on_copy(copy)
        self.people.deliver(copy)
        about = copy.attempt.registration_id, copy.attempt.serial
        for kind in self._bounces.about(copy):
            self._spawn(partial(self._bounces.tell, kind, *about))

    def _announce(self) -> None:
        for notifications in self._listening:
            notifications.tell()

    # --- Processes: start, crash, freeze ------------------------------------------------------

    def _start(self, name: str) -> None:
        """Start a process from what is durable."""
        process = Process(name, lag=self._rng.choice((0.0, 0.0, 0.4)))
        self._processes.append(process)
        process.on_fuse = self._fuse_burnt
        if self._crashes.get(name, 0) > 0:
            self._crashes[name] -= 1
            process.fuse = self._rng.randint(1, self._fuse_length)
        self.note(f"{name} starts")
        port = (self._database, self._network, self._faults, self._away, self._locked)
        store = SimulatedStore(*port)

        def clock() -> datetime:
            return T0 + timedelta(seconds=self.loop.now - process.lag)

        secrets = self.parts.secrets(self._rng)
        handlers = self.parts.handlers(
            log=store, clock=clock, secrets=secrets, hasher=SimulatedHasher(), policy=self._policy
        )
        if name.startswith("api"):
            self._apis[name] = _Api(process, handlers)
            return
        self._leaders[name] = process
        notifications = Notifications(self._database, self.loop, self._rng, self._faults, deadlines=name == "saga")
        self._listening.append(notifications)
        if name == "saga":
            manager = self.parts.manager(
                store=cast("Any", store),
                tail=store,
                handlers=handlers,
                notifications=cast("Any", notifications),
                clock=clock,
                policy=self._policy,
                due=cast("Any", self._due),
            )
            self._leading[process] = self.loop.spawn(process, self._lead(process, port, manager.work))
            return
        servers = SimulatedMailServers(self._internet, self._network, self._rng, self._faults)
        delivery = self.parts.delivery(
            handlers=handlers,
            secrets=secrets,
            claims=self.parts.claims(*port, holder=UUID(int=self._rng.getrandbits(128))),
            servers=servers,
            letters=SimulatedLetters(),
            clock=clock,
            policy=self._policy,
            retry_claimed_after=timedelta(seconds=5),
        )

        async def attempt(request: MailRequest) -> None:
            await self._attempt(process, delivery, request)

        async def bury(request: MailRequest) -> None:
            """What the dead-letter consumer does."""
            context = Context("dead-letter-consumer", request.correlation_id, request.position, request.trace)
            await handlers.handle(expired(request), context)

        if name == "worker":
            assert self._broker is not None
            for _ in range(COMMANDERS):
                self.loop.spawn(process, self._guarded(partial(self._consume, self._broker, attempt, bury, servers)))
            return
        hands_on = self.parts.relay(
            tail=store,
            notifications=cast("Any", notifications),
            hand_over=attempt if self._broker is None else self._broker.publish,
            until_ready=servers.until_ready,
            turns=Unpaced(parse_limit("mails=off")),
        )
        self._leading[process] = self.loop.spawn(process, self._lead(process, port, hands_on.work))

    async def _due(self, session: Session, now: datetime, limit: int) -> list[DueLook]:
        await session.execute("SELECT 1")
        return self._database.due(now, limit)

    async def _lead(self, process: Process, port: Any, work: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        """`infrastructure.followers.leadership.lead` on sessions of ours; whoever took over in the meantime keeps the
        lead."""
        while self._leaders[process.name] is process:
            try:
                await work(LeaderSession(cast("Any", Session(*port))))
            except (psycopg.OperationalError, Unavailable, NotLeader, Conflict) as error:
                self.note(f"begins again: {type(error).__name__}")
                await self._network.pause(1.0)
            except Exception as error:  # noqa: BLE001 - a bug
                self.bug(error)
                return

    async def _attempt(self, process: Process, delivery: MailDelivery, request: MailRequest) -> None:
        attempt = Attempt(request.registration_id, request.serial, process, self.loop.now, began_at=self._database.head)
        self._attempts.add(attempt)
        token = ATTEMPT.set(attempt)
        recorded = False
        try:
            await delivery.deliver(request)
            recorded = True
        finally:
            ATTEMPT.reset(token)
            self._attempts.discard(attempt)
            note_end(attempt, self.loop.now, outcome_recorded=recorded)

    async def _consume(
        self,
        broker: BrokerLine,
        attempt: Callable[[MailRequest], Coroutine[Any, Any, None]],
        bury: Callable[[MailRequest], Coroutine[Any, Any, None]],
        servers: SimulatedMailServers,
    ) -> None:
        """A worker behind the broker: acknowledges once the outcome is recorded."""
        while True:
            tag, request, is_dead = await broker.take()
            while True:
                try:
                    await (bury if is_dead else attempt)(request)
                    break
                except MailServersAway:
                    await servers.until_ready()
                except Unavailable as away:
                    await self._network.pause(away.retry_after)
                except Conflict:
                    await self._network.pause(1.0)
            await self._network.travel()
            broker.held.pop(tag, None)

    def _fuse_burnt(self, process: Process) -> None:
        pause = self._rng.choice((0.1, 2.0, 60.0, 1000.0)) * self._rng.random()
        leading = self._leading.get(process)
        match self._rng.choices(("kill", "freeze", "stop"), (6, 3, 2))[0]:
            case "stop" if leading is not None:
                self.note(f"{process.name} STOPS")
                self._faults.count(f"{process.name} stopped")
                leading.add_done_callback(lambda _: self._stopped(process, pause), context=self.loop.world.context)
                leading.cancel()
            case "freeze":
                self._freeze(process)
            case _:
                self._kill(process)
                self._start_later(process.name, pause)

    def _stopped(self, process: Process, pause: float) -> None:
        """It has finished what must not be cut off."""
        self.note(f"{process.name} has stopped")
        process.alive = False
        self._start_later(process.name, pause)

    def _kill(self, process: Process) -> None:
        self.note(f"{process.name} KILLED")
        self._faults.count(f"{process.name.partition('-')[0]} killed")
        process.alive = False
        self._give_up(process, "killed")
        api = self._apis.get(process.name)
        if api is not None:
            self._apis[process.name] = None
            for client in api.clients:
                if not client.done():
                    client.set_exception(AnswerLost())
        if process.name == "worker" and self._broker is not None:
            self._broker.redeliver()

    def _freeze(self, process: Process) -> None:
        """It stops for a while; perhaps another one takes its place, and then there are two."""
        seconds = self._rng.choice((1.0, 30.0, 200.0)) * self._rng.random()
        self.note(f"{process.name} FROZEN for {seconds:.1f} s")
        self._faults.count(f"{process.name.partition('-')[0]} frozen")
        process.frozen = True
        self._give_up(process, "frozen")
        if process.name in self._leaders and self._rng.random() < 0.5:
            self._faults.count("two leaders")
            self._start_later(process.name, seconds * self._rng.random())
            if process.name == "worker" and self._broker is not None:
                self._broker.redeliver()
        self.loop.later(seconds, self._wake, process)

    def _wake(self, process: Process) -> None:
        if process.alive and process.frozen:
            self.note(f"{process.name} wakes")
            self._give_up(process, "frozen")
            self.loop.wake(process)

    def _give_up(self, process: Process, why: str) -> None:
        for attempt in [attempt for attempt in self._attempts if attempt.process is process]:
            attempt.ambiguous = attempt.ambiguous or why

    def _start_later(self, name: str, seconds: float) -> None:
        self.loop.later(seconds, self._start, name)

    # --- The API, as clients reach it ---------------------------------------------------------

    async def call(self, request: Request) -> Answer:
        """Send a request to any API process.

        Raises:
            AnswerLost: whether anything was done is unknown.
        """
        api = self._apis[self._rng.choice(("api-1", "api-2"))]
        if api is None:
            await self._network.travel()
            raise AnswerLost
        future: asyncio.Future[Answer] = self.loop.create_future()
        api.clients.add(future)
        self.loop.spawn(api.process, self._serve(api, request, future))
        patience = self.loop.call_later(CLIENT_PATIENCE, _lose, future)
        try:
            return await future
        finally:
            patience.cancel()
            api.clients.discard(future)

    async def _serve(self, api: _Api, request: Request, client: asyncio.Future[Answer]) -> None:
        answer: Answer | None = None
        failure: Exception | None = None
        try:
            await self._network.travel()
            answer = await request(api.handlers)
        except (Refused, Conflict, Unavailable) as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a bug
            self.bug(error)
            return
        await self._network.travel()
        if self._faults.hits("answer lost"):
            failure = AnswerLost()
        if client.done():
            return
        if failure is not None:
            client.set_exception(failure)
        elif answer is not None:
            client.set_result(answer)


def _lose(client: asyncio.Future[Answer]) -> None:
    if not client.done():
        client.set_exception(AnswerLost())
