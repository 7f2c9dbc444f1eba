"""Chaos: everything is broken, in a random order, while people register; then everything is judged.

    report = await run(seed=7, seconds=600, directory=directory, reached=reached)
    assert report.violations == []

`schedule` says what happens when, `nemesis` does it, `people` register meanwhile, `invariants` must have held.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Final, cast

from tests.faults.evidence import Evidence
from tests.faults.fleet import Fleet, NodeKind, unsettled
from tests.faults.invariants import Violation, check
from tests.faults.journal import Kind
from tests.faults.nemesis import PROGRESS_WITHIN, BrokerOnTheWay, Nemesis, Sink, Tally
from tests.faults.noted_spans import noted_in
from tests.faults.people import MARKS, Crowd, Inbox
from tests.faults.scene import Scene
from tests.faults.schedule import Planned, nodes_of, schedule
from tests.faults.shell import Shell
from tests.faults.tap import Tap
from tests.faults.traces import Killed, Traces, judge
from tests.support.collector import Collector, collecting
from tests.support.facts import eventually
from tests.support.log import by_way_of, proxy_to
from tests.support.postgres import SURVIVES_KILLS, server
from tests.support.rabbitmq import PrivateRabbit
from tests.support.tcp_proxy import TcpProxy

REQUEST_TIMEOUT: Final = 10.0
SETTINGS: Final = {
    "request_timeout": f"{REQUEST_TIMEOUT:g}",
    "statement_timeout": "5",
    "send_timeout": "2",
    "accept_timeout": "2",
    "resend_cooldown": "3",
}
A_SECOND: Final = 2.5
"""People who come; each makes some five requests."""

WARM_UP: Final = 10.0
SETTLED_WITHIN: Final = 300.0
RETRY_EVERY: Final = 20.0
CALM_WITHIN: Final = 60.0
READ_BACK_WITHIN: Final = 600.0
"""Registrations expire meanwhile, and are to be read when none does."""

PULSE: Final = 0.1
STARVED: Final = 0.25
"""So much too late is what a machine does that has more to do than it can."""

RIGHTLY_SAID: Final = "broker.away"
"""An error that a node may speak of: five tries to connect have failed, and somebody is to look at the broker."""

NEVER_SAID: Final = frozenset({"follower.batch_failed", "tracing.spans_lost"})

FED_AFTER: Final = 5.0
STARVING: Final = "the machine is too busy"


@dataclass(frozen=True, slots=True)
class Report:
    """A run, in figures.

    Attributes:
        operations: how many, by kind and outcome.
        faults: what became of what was planned, by kind.
    """

    seed: int
    seconds: float
    operations: Counter[tuple[str, str]]
    faults: Mapping[str, Tally]
    violations: Sequence[Violation]
    registrations: int
    events: int
    mails: int
    traces: Traces
    remarks: Sequence[str] = ()

    def outcomes(self, kind: Kind) -> Counter[str]:
        """What became of the operations of a kind."""
        return Counter({outcome: count for (one, outcome), count in self.operations.items() if one == kind})

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.seconds:.0f} s, {self.operations.total()} operations, {self.events} events",
            f"  {self.registrations} registrations, {self.mails} mails",
        ]
        lines += [f"  {kind:10} {outcome:32} {count:6}" for (kind, outcome), count in sorted(self.operations.items())]
        lines += [f"  {kind:24} {one.effective:4} of {one.planned}" for kind, one in sorted(self.faults.items())]
        lines += [f"  {remark}" for remark in (*self.remarks, self.traces)]
        lines += [f"{len(self.violations)} violations", *(f"  {violation}" for violation in self.violations)]
        return "\n".join(lines)


async def run(
    seed: int,
    seconds: float,
    *,
    directory: Path,
    reached: Path,
    rabbit: PrivateRabbit | None = None,
    planned: Sequence[Planned] | None = None,
    people: float = A_SECOND,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Break everything for `seconds` while people register, heal it, let all settle, and judge.

    Args:
        directory: existing; logs of the nodes, and the journal and the log where something does not hold.
        reached: see `tests.faults.reached`.
        rabbit: a running node that the mail goes over, and that is broken, too.
        planned: what is done instead of the seed's `schedule`; it takes about `seconds`.
        people: who come in a second.
        say: told what is being done.
    """
    began = time.monotonic()
    chance = random.Random(f"people of {seed}")  # noqa: S311 - repeatable
    async with _stage(seconds, directory, reached, rabbit, say) as (nemesis, collector):
        scene = nemesis.scene
        client = scene.client_of(*(one for one in scene.fleet.nodes if one.kind == "serve"), timeout=REQUEST_TIMEOUT)
        crowd = Crowd(client, Inbox(scene.sink), chance, a_second=people)
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(_watch(scene)), group.create_task(_feel_the_pulse(scene))]
            crowding = group.create_task(crowd.run())
            await asyncio.sleep(WARM_UP)
            scene.fleet.measure("before")
            await nemesis.act_out(planned or schedule(seed, seconds, broker=rabbit is not None))
            crowd.go_home()
            await crowding
            say("everybody has gone home")
            settled = await _settle(nemesis)
            say(settled)
            await nemesis.prove_read_models()
            await _calm_down(scene)
            for task in watching:
                task.cancel()
        evidence = await _evidence(nemesis, directory)
        traces = await _traces(scene.fleet, collector, evidence)
        violations = [*nemesis.wrong, *_idle(nemesis.faults), *_complaints(scene), *check(evidence), *traces.violations]
        if violations:
            _keep(evidence, scene, directory)
        return Report(
            seed,
            time.monotonic() - began,
            _outcomes(scene),
            dict(nemesis.faults),
            violations,
            registrations=len({event for event, _ in evidence.issues}),
            events=evidence.head,
            mails=len(evidence.mails),
            traces=traces,
            remarks=[
                settled,
                f"{crowd.turned_away} people found it full",
                f"{_busy(evidence).total_seconds():.0f} s in which the machine was too busy to be judged by time",
            ],
        )


@asynccontextmanager
async def _stage(
    seconds: float, directory: Path, reached: Path, rabbit: PrivateRabbit | None, say: Callable[[str], None]
) -> AsyncIterator[tuple[Nemesis, Collector]]:
    """Everything up, each process with a proxy of its own before the database, and a collector; all gone at the end."""
    with server(SURVIVES_KILLS, prefix="registrar-chaos-") as postgres:
        async with AsyncExitStack() as stack:
            sink = await stack.enter_async_context(Sink())
            names = nodes_of(broker=rabbit is not None)
            proxies = {name: await stack.enter_async_context(proxy_to(postgres.dsn)) for name in names}
            broker = await stack.enter_async_context(_by_way_of_a_proxy(rabbit)) if rabbit is not None else None
            lives = {"otp_ttl": f"{max(60, seconds / 6):g}", "registration_ttl": f"{max(100, seconds / 2):g}"}
            collector = stack.enter_context(collecting())
            over = {"broker_url": broker.url} if broker is not None else {}
            settings = SETTINGS | lives | over | {"otlp_endpoint": collector.url}
            spans = directory / "spans"
            spans.mkdir()
            fleet = Fleet(postgres.dsn, sink.port, directory=directory, reached=reached, spans=spans, **settings)
            scene = await stack.enter_async_context(Scene.on(fleet, sink))
            for name in names:
                added = await fleet.add(_kind_of(name), dsn=by_way_of(proxies[name], postgres.dsn))
                assert added.name == name
            await fleet.until_it_leads()
            yield Nemesis(scene, sink, postgres, proxies, say, broker), collector


@asynccontextmanager
async def _by_way_of_a_proxy(rabbit: PrivateRabbit) -> AsyncIterator[BrokerOnTheWay]:
    await asyncio.to_thread(Tap(rabbit).put_in)
    async with TcpProxy(("127.0.0.1", rabbit.port)) as proxy:
        yield BrokerOnTheWay(rabbit, proxy)


def _kind_of(name: str) -> NodeKind:
    return cast("NodeKind", name.partition("-")[0])


async def _watch(scene: Scene) -> None:
    """Ask the APIs how they are, for I16, as a load balancer does; and what everybody takes, to be looked at."""
    for number in count():
        if number % 20 == 0:
            scene.fleet.measure("during")
        for node in scene.fleet.nodes:
            if node.kind == "serve":
                await scene.fleet.look(node)
        await asyncio.sleep(1.0)


async def _feel_the_pulse(scene: Scene) -> None:
    """Note when this very process got no turn: then the machine is too busy for anybody's word on time to count."""
    late_at = -float("inf")
    while True:
        due = time.monotonic() + PULSE
        await asyncio.sleep(PULSE)
        now = time.monotonic()
        if now > due + STARVED:
            late_at = now
            scene.faults.begin(STARVING, "api", "slow database")
        elif now > late_at + FED_AFTER:
            scene.faults.end_if_begun(STARVING)


async def _settle(nemesis: Nemesis) -> str:
    """Let every mail find its end. An operator tries again what failed, instead of waiting for the saga's hours."""
    scene = nemesis.scene
    began = tried_at = time.monotonic()

    async def settled() -> bool:
        nonlocal tried_at
        if time.monotonic() > tried_at + RETRY_EVERY:
            await asyncio.to_thread(_retry_all, scene.fleet)
            tried_at = time.monotonic()
        return await unsettled(scene.fleet.dsn) == 0

    await scene.fleet.until_caught_up(within=PROGRESS_WITHIN)
    try:
        await eventually(settled, within=SETTLED_WITHIN, every=1.0)
    except AssertionError:
        return f"not settled {SETTLED_WITHIN:g} s after healing"
    return f"settled {time.monotonic() - began:.0f} s after healing"


async def _calm_down(scene: Scene) -> None:
    """Look until the nodes take no more than before (I11); the last look counts. Idle connections are kept for 30 s."""

    async def calm() -> bool:
        scene.fleet.measure("after")
        return not check(Evidence(resources=scene.fleet.resources), only=("I11",))

    with suppress(AssertionError):
        await eventually(calm, within=CALM_WITHIN, every=2.0)


def _complaints(scene: Scene) -> list[Violation]:
    """What the nodes themselves call an error, events that could not be applied, and spans that the collector did not
    get: there is nothing wrong with any."""
    found = Counter(
        (one.name, entry["event"])
        for one in scene.fleet.nodes
        for entry in map(json.loads, filter(lambda line: line.startswith("{"), one.written.splitlines()))
        if entry["level"] in {"error", "critical"} or entry["event"] in NEVER_SAID
        if entry["event"] != RIGHTLY_SAID
    )
    return [Violation("log", f"{node} says {event} {count} times") for (node, event), count in found.items()]


def _retry_all(fleet: Fleet) -> None:
    """`registrar mail retry --all`; 1 if some refused, because they ended meanwhile."""
    ran = Shell.of(fleet).run("mail", "retry", "--all", "--json")
    assert ran.code in {0, 1}, ran.err


async def _evidence(nemesis: Nemesis, directory: Path) -> Evidence:
    """Read everything back at a moment at which every follower has seen the whole log: registrations go on ending."""
    scene = nemesis.scene

    async def quiet() -> Evidence | None:
        evidence = await scene.evidence()
        nemesis.say("everything is read back")
        return evidence if min(evidence.followers.values()) == evidence.head else None

    evidence: Evidence = await eventually(quiet, within=READ_BACK_WITHIN, every=0.5)
    return replace(
        evidence,
        texts={**evidence.texts, **await asyncio.to_thread(_texts_of_services, nemesis)},
        # What all that is personal contains, in place of thousands of words to look for.
        canaries=[*MARKS, *(canary for canary in evidence.canaries if canary.kind == "code")],
    )


async def _traces(fleet: Fleet, collector: Collector, evidence: Evidence) -> Traces:
    """What the collector has in the end: who stops in order exports what is left."""
    await fleet.stop()
    assert fleet.spans is not None
    killed = {process: Killed(node.name, at) for node in fleet.nodes for process, at in node.killed.items()}
    exported = {span.span_id for span in collector.spans}
    return judge(noted_in(fleet.spans), exported, evidence.log, killed, evidence.faults)


def _texts_of_services(nemesis: Nemesis) -> dict[str, str]:
    """What PostgreSQL and RabbitMQ wrote, and all that was ever published."""
    texts = {"log of PostgreSQL": (nemesis.postgres.directory / "postgres.log").read_text(errors="replace")}
    if nemesis.broker is not None:
        rabbit = nemesis.broker.rabbit
        logs = sorted([rabbit.directory / "node.log", *(rabbit.directory / "log").glob("*.log")])
        texts |= {f"RabbitMQ's {log.name}": log.read_text(errors="replace") for log in logs}
        published = Tap(rabbit).texts()
        assert any(published.values()), "nothing was ever published"
        texts |= published
    return texts


def _busy(evidence: Evidence) -> timedelta:
    return sum((window.lasted for window in evidence.faults if window.what == STARVING), timedelta(0))


def _idle(faults: Mapping[str, Tally]) -> list[Violation]:
    return [
        Violation("nemesis", f"{kind} was planned {tally.planned} times, and never took effect")
        for kind, tally in faults.items()
        if not tally.effective
    ]


def _outcomes(scene: Scene) -> Counter[tuple[str, str]]:
    return Counter(
        (one.kind, one.outcome if one.problem is None else f"{one.outcome} ({one.problem})") for one in scene.journal
    )


def _keep(evidence: Evidence, scene: Scene, directory: Path) -> None:
    """What is needed to find out why: the journal, the windows of the faults and the log, beside the nodes' logs."""
    scene.journal.dump(directory / "journal.jsonl")
    lines = [
        f"{recorded.position} {recorded.recorded_at:%H:%M:%S.%f} {recorded.event.originator_id} "
        f"v{recorded.event.originator_version} {type(recorded.event).__qualname__} {recorded.actor} {recorded.correlation_id} "
        f"{recorded.causation_position}"
        for recorded in evidence.log
    ]
    (directory / "events.txt").write_text("\n".join(lines))
    windows = sorted(evidence.faults, key=lambda window: window.begin)
    samples = [
        f"{one.at:%H:%M:%S} {one.node} {one.moment} {one.rss} {one.fds} {one.threads}" for one in evidence.resources
    ]
    (directory / "resources.txt").write_text("\n".join(samples))
    (directory / "faults.txt").write_text(
        "\n".join(f"{one.begin} {one.end} {one.what} {set(one.hits)}" for one in windows)
    )
