"""The attack: everybody at once against two APIs with one Redis, while honest people register; then it is judged.

report = await run(REQUESTS, Stage(dsn, sink, redis, directory, reached))
assert report.violations == []
"""

from __future__ import annotations

import asyncio
import math
import random
import resource
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

from domain.registration import Registration
from infrastructure.postgres.connection import connect
from tests.attack.claims import judge
from tests.attack.deeds import Deeds, Field, Range, Run
from tests.attack.floods import MailBomb, SpoofedFlood
from tests.attack.guessing import Guess, GuessUnsent, Peep, Spray
from tests.attack.honest import Person
from tests.attack.rude import Malformed, Slow
from tests.attack.strangers import Hijacker, Repeat, TellApart
from tests.attack.wire import Who, Wire, at_our_domain, honest_network
from tests.faults.evidence import Canary, Evidence, keyring_of
from tests.faults.fleet import Fleet, Node, unsettled
from tests.faults.invariants import Violation
from tests.faults.people import MARKS, Inbox
from tests.faults.scene import Scene
from tests.support.facts import eventually
from tests.support.redis import PrivateRedis
from tests.support.smtp_stub import SmtpStub

LASTS_AT_MOST: Final = 3 * 3600.0
HASTY_FROM: Final = 50_000
MOST_UNSENT: Final = 200
SETTLES_WITHIN: Final = 1800.0
"""Seconds."""


MOST_EVENTS_WITH_CODES: Final = 60_000
"""Of a log in which codes are looked for: among 90,000 events 20 of 300 codes stood by chance."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What an attack takes place on.

    Attributes:
        dsn: an empty database.
        directory: for logs.
        reached: see `tests.faults.reached`.
        settings: of every process, on top of ours.
        servers: process ids of what else takes CPU, by name.
    """

    dsn: str
    sink: SmtpStub
    redis: PrivateRedis
    directory: Path
    reached: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    servers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Size:
    """How large an attack is.

    Attributes:
        requests: of all attackers together, about.
        victims: mailboxes that are bombed.
        honest, hijacked: people.
        slow: connections that are held.
        of_each: addresses of each state that are compared.
        hasty: some guess before a mail is out, which delays that by minutes.
    """

    requests: int
    victims: int
    honest: int
    hijacked: int
    slow: int
    of_each: int
    hasty: bool

    @classmethod
    def of(cls, requests: int) -> Size:
        root = math.isqrt(requests // 100)
        return cls(
            requests,
            victims=max(2, root // 3),
            honest=max(6, 2 * root),
            hijacked=max(8, root),
            slow=max(20, min(200, 6 * root)),
            of_each=max(2, min(20, root)),
            hasty=requests >= HASTY_FROM,
        )


SHARES: Final = {
    "bombing": 0.34,
    "spoofing": 0.16,
    "guessing": 0.10,
    "spraying": 0.16,
    "peeping": 0.12,
    "comparing": 0.05,
    "repeating": 0.04,
    "malformed": 0.03,
}
"""Of the requests."""


@dataclass(frozen=True, slots=True)
class Report:
    """An attack, in figures.

    Attributes:
        cpu: seconds, by process; "attackers and mail server" is this one.
    """

    requests: int
    run: Run
    statuses: Mapping[Who, Counter[int]]
    troubles: Counter[str]
    deeds: Deeds
    registrations: int
    mails: int
    guesses: int
    honest: int
    degraded: int
    cpu: Mapping[str, float]
    violations: Sequence[Violation]

    def __str__(self) -> str:
        seconds, total = self.run.attacked_for, sum(self.statuses.values(), Counter[int]())
        lines = [
            f"{self.requests} requests in {seconds:.0f} s, {self.requests / seconds:.0f}/s",
            f"  by status {_sorted(total)}",
            f"  {self.registrations} registrations, {self.mails} mails, {self.honest} honest people",
            f"  {self.guesses} guesses compared; not made, because they were right: {self.deeds.spared}",
        ]
        lines += [f"  {who.name.lower():12} {_sorted(found)}" for who, found in self.statuses.items() if found]
        lines.append(f"  refused by limit: {_by_limit(self.run.ledger.refused)}")
        lines.append(f"  what the service could not do: {dict(self.troubles)}")
        lines.append(f"  slow clients: {dict(sorted(self.deeds.ended.items()))}")
        lines += [f"  {what}: {_sorted(found)}" for what, found in sorted(self.deeds.told.items())]
        lines.append(
            f"  calls to Redis that failed: {self.run.uncounted}; times that it was left alone: {self.degraded}"
        )
        lines.append("  CPU: " + ", ".join(f"{name} {used:.1f} s" for name, used in self.cpu.items()))
        lines += [f"{len(self.violations)} violations", *(f"  {one}" for one in self.violations)]
        return "\n".join(lines)


def _sorted(counts: Counter[int]) -> dict[int, int]:
    return dict(sorted(counts.items()))


def _by_limit(refused: Mapping[tuple[str, str], int]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for (name, _), number in refused.items():
        found[name] += number
    return dict(found)


async def run(
    requests: int, stage: Stage, *, seed: int, cooldown: float = 60.0, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Attack, let everything settle, and judge.

    Args:
        requests: about so many.
        seed: of everything that is left to chance.
        cooldown: `RESEND_COOLDOWN` in seconds. With a short one mailboxes soon come to the hourly part of their
            budget.
        say: told what is being done.
    """
    settings = {
        "limits": "",
        "trusted_proxies": "127.0.0.0/8",
        "rate_limit_url": stage.redis.url,
        "resend_cooldown": f"{cooldown:g}",
        "otp_ttl": "7200",  # a million requests take longer than a code lives; it would be wrong in two ways
    } | dict(stage.settings)
    fleet = Fleet(stage.dsn, stage.sink.port, directory=stage.directory, reached=stage.reached)
    async with Scene.on(fleet, stage.sink) as scene:
        apis = [await fleet.serve(**settings), await fleet.serve(**settings)]
        await fleet.process(**settings)
        await fleet.until_it_leads()
        async with await connect(stage.dsn, name="attack", statement_timeout=timedelta(seconds=10)) as connection:
            codes = await keyring_of(connection)
        wire = Wire([_port_of(api) for api in apis])
        chance = random.Random(seed)  # noqa: S311 - repeatable
        field = Field(wire, scene.journal, Inbox(stage.sink), codes, chance, timedelta(seconds=cooldown))
        began_with = _cpu(fleet, stage)
        measured = await _attack(Size.of(requests), field, stage, scene, say)
        say("what was recorded is read back")
        evidence = await _evidence(scene)
        cpu = {name: used - began_with[name] for name, used in _cpu(fleet, stage).items()}
        wire.close()
    violations = judge(evidence, field.deeds, measured)
    return _report(field, measured, evidence, violations, cpu, fleet)


async def _attack(size: Size, field: Field, stage: Stage, scene: Scene, say: Callable[[str], None]) -> Run:
    apis = [node for node in scene.fleet.nodes if node.kind == "serve"]
    comparing = TellApart(size.of_each)
    say("addresses are prepared")
    connections_before, began = connections(stage.redis), _now(stage.redis)
    await comparing.prepare(field, [api.url for api in apis])
    say(f"{size.requests} requests")
    ports = [_port_of(api) for api in apis]
    async with asyncio.TaskGroup() as group:
        attacked_at = _now(stage.redis)
        holding = group.create_task(Slow(size.slow).hold(field, ports))
        people = _people(size, field, [api.url for api in apis], group)
        async with asyncio.TaskGroup() as attackers:
            for name, attack in _attackers(size, field, comparing, ports).items():
                attackers.create_task(_told(attack(round(SHARES[name] * size.requests)), f"{name} is over", say))
        attacked_for = _now(stage.redis) - attacked_at
        field.over = True
        say(f"the attackers are through, and {sum(field.deeds.finished.values())} of {len(people)} honest people")
        await asyncio.gather(*people)
        ended = _now(stage.redis)
        await holding
    measured = Run(
        field.wire.ledger,
        seconds=ended - began,
        attacked_for=attacked_for,
        # Each API makes one connection and keeps it. Our own: four looks at the time, and this one.
        uncounted=max(0, connections(stage.redis) - connections_before - len(apis) - 5),
        processes=len(apis),
        cooldown=field.cooldown,
    )
    say("mails are waited for")
    await _settled(scene.fleet)
    for afterwards in (comparing.look_again(field), GuessUnsent().attack(field, stage.dsn, MOST_UNSENT)):
        await afterwards
        await _settled(scene.fleet)
    return measured


Attack = Callable[[int], Coroutine[Any, Any, None]]


def _attackers(size: Size, field: Field, comparing: TellApart, ports: list[int]) -> dict[str, Attack]:
    """What each does with so many requests."""
    return {
        "bombing": partial(MailBomb(size.victims, Range(0, 120)).attack, field),
        "spoofing": partial(SpoofedFlood().attack, field),
        "guessing": partial(Guess(hasty=size.hasty).attack, field),
        "spraying": partial(Spray(hasty=size.hasty).attack, field),
        "peeping": partial(Peep().attack, field),
        "comparing": partial(comparing.attack, field),
        "repeating": partial(Repeat().attack, field),
        "malformed": partial(Malformed().attack, field, ports),
    }


async def _told(doing: Coroutine[Any, Any, None], what: str, say: Callable[[str], None]) -> None:
    await doing
    say(what)


def _people(size: Size, field: Field, urls: Sequence[str], group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
    """They come evenly distributed over the attack, and those whose addresses are hijacked among them."""

    def person(address: str, number: int) -> Person:
        return Person(address.partition("@")[0], address, honest_network(number), field, [*urls])

    async def one(number: int, of: int, live: Callable[[], Awaitable[None]]) -> None:
        due = number * size.requests * 3 // (4 * of)
        await eventually(lambda: field.wire.asked >= due or field.over, within=LASTS_AT_MOST, every=0.05)
        await live()

    async def comes(number: int) -> None:
        await person(at_our_domain(f"honest{number}"), number).live()

    hijacker = Hijacker()
    honest = [group.create_task(one(number, size.honest, partial(comes, number))) for number in range(size.honest)]
    return honest + [
        group.create_task(
            one(number, size.hijacked, partial(hijacker.hijack, field, number, lambda at, n: person(at, 3000 + n)))
        )
        for number in range(size.hijacked)
    ]


async def _settled(fleet: Fleet) -> None:
    """Every follower has seen everything, and every mail is out or withheld."""
    await fleet.until_caught_up(within=SETTLES_WITHIN)
    await until_mailed(fleet.dsn)
    await fleet.until_caught_up(within=SETTLES_WITHIN)


async def until_mailed(dsn: str) -> None:
    """Every mail is out or withheld, as far as the read models say."""

    async def mailed() -> bool:
        return await unsettled(dsn) == 0

    await eventually(mailed, within=SETTLES_WITHIN, every=0.2)


async def _evidence(scene: Scene) -> Evidence:
    evidence = await scene.evidence(refold=False)
    honest = {one.registration_id for one in scene.journal}
    codes = [issue.code for (registration_id, _), issue in evidence.issues.items() if registration_id in honest]
    # What all that is personal contains, in place of thousands of words to look for; and the codes of a few, because
    # of thousands, or in the log of a million requests, some stand anywhere where there are numbers.
    if len(evidence.log) > MOST_EVENTS_WITH_CODES:
        codes = []
    return replace(evidence, canaries=[*MARKS, *(Canary("code", code) for code in codes)])


def _report(
    field: Field,
    measured: Run,
    evidence: Evidence,
    violations: Sequence[Violation],
    cpu: Mapping[str, float],
    fleet: Fleet,
) -> Report:
    rejected = sum(isinstance(one.event, Registration.CodeRejected) for one in evidence.log)
    return Report(
        requests=sum(sum(found.values()) for found in field.wire.statuses.values()) + _rude(field.deeds),
        run=measured,
        statuses=field.wire.statuses,
        troubles=field.wire.troubles,
        deeds=field.deeds,
        registrations=len({registration_id for registration_id, _ in evidence.issues}),
        mails=len(evidence.mails),
        guesses=rejected,
        honest=len(field.deeds.finished),
        degraded=sum(node.written.count("limits.degraded") for node in fleet.nodes),
        cpu=cpu,
        violations=violations,
    )


def _rude(deeds: Deeds) -> int:
    malformed = sum(found.total() for what, found in deeds.told.items() if what.startswith("malformed"))
    return malformed + deeds.ended.total()


def _port_of(api: Node) -> int:
    return int(api.url.rpartition(":")[2])


def _now(redis: PrivateRedis) -> float:
    seconds, microseconds = redis.ask("TIME")
    return int(seconds) + int(microseconds) / 1e6


def connections(redis: PrivateRedis) -> int:
    """That were ever made to it, this one included. A process makes a further one after a call that failed."""
    return int(redis.ask("INFO", "stats")["total_connections_received"])


def _cpu(fleet: Fleet, stage: Stage) -> dict[str, float]:
    used = {node.name: _seconds_of(node.pid) for node in fleet.nodes}
    used |= {name: _seconds_of(pid) for name, pid in stage.servers.items()}
    told = stage.redis.ask("INFO", "cpu")
    used["redis"] = float(told["used_cpu_user"]) + float(told["used_cpu_sys"])
    own = resource.getrusage(resource.RUSAGE_SELF)
    return used | {"attackers and mail server": own.ru_utime + own.ru_stime}


def _seconds_of(pid: int) -> float:
    process = psutil.Process(pid)
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total
