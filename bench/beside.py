"""What this build takes and an earlier one, side by side: they take turns on databases of their own."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from bench.bare_hashes import AS_THE_SERVICE, PASSWORD
from bench.cluster import Cluster
from bench.processes import (
    Process,
    cpu_seconds,
    empty_endpoint,
    load,
    of_build,
    run_job,
    sink,
    until_it_leads,
    with_warm_up,
)
from bench.report import Row, percentile
from bench.through_rabbitmq import drained, virtual_host
from bench.whole_way import Service, send
from tests.support.rabbitmq import node

CONNECTIONS = 64
HASHING_CONNECTIONS = 12
STEADY_RATE = 200.0
READING_RATE = 50.0
LOWEST_RATE = 500.0
STEPS = (100.0, 50.0)
"""Registrations a second between two steps of the search for the highest rate, and where it begins."""

Found = dict[str, dict[str, list[float]]]
"""What was measured, by its name and side."""

_tags = (f"beside{number}" for number in count())


@dataclass(frozen=True, slots=True)
class Build:
    """One of the two.

    Attributes:
        tree: its checkout; None for this one.
    """

    name: str
    tree: Path | None

    def settings(self, dsn: str, **more: str) -> dict[str, str]:
        """The earlier one knows no limits."""
        limits = {} if self.tree is not None else {"LIMITS": "mails=off"}
        return {f"REGISTRAR_{name}": value for name, value in {"DATABASE_URL": dsn, **limits, **more}.items()}


def builds(before: Path) -> list[Build]:
    return [Build("ours", None), Build("before", before.resolve())]


# --- Requests -------------------------------------------------------------------------------------


def requests(cluster: Cluster, *, before: Path, seconds: float, repetitions: int) -> list[Row]:
    """Registrations in a closed loop, without and with a password."""
    found: Found = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        empty = stack.enter_context(empty_endpoint())
        serves = {
            build.name: stack.enter_context(_serving(build, stack.enter_context(cluster.fresh(schema=False))))
            for build in builds(before)
        }
        for _ in range(repetitions):
            for side, serve in serves.items():
                _post(found["POST"], side, serve, seconds)
            job = {"what": "post", "paths": ["/empty"], "body": '{"email": "a@bench.example", "name": "Ada Lovelace"}'}
            outcome = load(empty, connections=CONNECTIONS, seconds=seconds, **job)
            found["POST"]["empty"].append(len(outcome["latencies"]) / outcome["seconds"])
            for side, serve in serves.items():
                _post(found["hashed"], side, serve, 2 * seconds, password=PASSWORD)
            for name, kept in (("bare", False), ("bare, kept", True)):
                bare = run_job("bench.bare_hashes", {"seconds": 2 * seconds, "kept": kept}, AS_THE_SERVICE)
                found["hashed"][name].append(bare["rate"])
                found["hashed"][f"{name}, CPU"].append(bare["cpu"])
    return _of_requests(found["POST"], found["hashed"])


def _of_requests(posts: dict[str, list[float]], hashes: dict[str, list[float]]) -> list[Row]:
    post, hashed = _middle(posts), _middle(hashes)
    more = 1000 * (hashed["ours, CPU"] - hashed["bare, CPU"])
    more_before = 1000 * (hashed["before, CPU"] - hashed["bare, CPU"])
    without, with_one = "POST without a password, 64 connections", "POST with a password"
    return [
        _rates(without, "the earlier build", post["ours"], post["before"], 1.3, posts),
        _rates(without, "an empty endpoint", post["ours"], post["empty"], 0.72, posts),
        _rates(with_one, "the earlier build", hashed["ours"], hashed["before"], 1.8, hashes),
        _rates(with_one, "bare argon2id, huge pages", hashed["ours"], hashed["bare"], 0.95, hashes),
        _rates(with_one, "the same, its memory kept", hashed["ours"], hashed["bare, kept"], None, hashes),
        Row(
            "CPU of `serve` for a registration with a password, beyond the bare hash",
            "the earlier build",
            f"{more:.2f} ms",
            f"{more_before:.2f} ms",
            more,
            "ms",
            0.6,
            at_least=False,
            details={"every repetition": dict(hashes)},
        ),
    ]


def _post(found: dict[str, list[float]], side: str, serve: Process, seconds: float, **more: str) -> None:
    connections = HASHING_CONNECTIONS if more else CONNECTIONS
    used = cpu_seconds(serve.pid)
    outcome = load(serve, what="register", tag=next(_tags), connections=connections, seconds=seconds, **more)
    assert set(outcome["statuses"]) == {"202"}, outcome["statuses"]
    registrations = len(outcome["latencies"])
    found[side].append(registrations / outcome["seconds"])
    used = cpu_seconds(serve.pid) - used
    found[f"{side}, CPU"].append(used / (registrations * with_warm_up(outcome["seconds"])))


@contextmanager
def _serving(build: Build, dsn: str, **more: str) -> Iterator[Process]:
    words = ("serve", "--port", "0")
    with of_build(build.tree, *words, ready="API", settings=build.settings(dsn, **more)) as serve:
        yield serve


# --- The whole way --------------------------------------------------------------------------------


@contextmanager
def _service(cluster: Cluster, build: Build) -> Iterator[Service]:
    assert cluster.server.pid is not None
    with cluster.fresh(schema=False) as dsn, sink() as mail, _serving(build, dsn) as serve:
        to = build.settings(dsn, SMTP_URLS=f"smtp://127.0.0.1:{mail.port}?starttls=never")
        with of_build(build.tree, "process", ready="Following", settings=to) as process:
            until_it_leads(dsn)
            service = Service(dsn, serve, process, mail, cluster.server.pid)
            send(service, rate=READING_RATE, seconds=2)
            yield service


def whole_way(cluster: Cluster, *, before: Path, seconds: float, repetitions: int) -> list[Row]:
    """CPU of a registration at a steady rate, all processes and PostgreSQL; the wait for one's own write."""
    cpu: dict[str, list[float]] = defaultdict(list)
    waits: dict[str, list[float]] = defaultdict(list)
    for _ in range(repetitions):
        for build in builds(before):
            with _service(cluster, build) as service:
                step = send(service, rate=STEADY_RATE, seconds=seconds)
                assert step["accepted"] == step["sent"], step
                cpu[build.name].append(1000 * _of_the_service(step) / STEADY_RATE)
                waits[build.name].append(_beyond_the_write(service, seconds))
    used, waited = _middle(cpu), _middle(waits)
    return [
        Row(
            f"CPU of a registration on the whole way at {STEADY_RATE:g}/s, all processes and PostgreSQL",
            "the earlier build",
            f"{used['ours']:.2f} ms",
            f"{used['before']:.2f} ms",
            used["ours"] / used["before"],
            "x",
            0.5,
            at_least=False,
            details={"milliseconds": dict(cpu)},
        ),
        Row(
            "a read with min_position at 50/s, p50, beyond the write",
            "the earlier build",
            f"{waited['ours']:.1f} ms",
            f"{waited['before']:.1f} ms",
            waited["ours"],
            "ms",
            3.0,
            at_least=False,
            details={"milliseconds": dict(waits)},
        ),
    ]


def _of_the_service(step: dict[str, Any]) -> float:
    """Cores."""
    cpu = step["cpu"]
    return float((cpu["postgres"] + cpu["serve"] + cpu["process"]) * step["took"] / step["seconds"])


def _beyond_the_write(service: Service, seconds: float) -> float:
    """Milliseconds, in the median."""
    median = []
    for then_see in (False, True):
        job = {"rate": READING_RATE, "seconds": seconds, "then_see": then_see}
        outcome = load(service.serve, what="register", tag=next(_tags), **job)
        assert set(outcome["statuses"]) <= {"200", "202"}, outcome["statuses"]
        median.append(1000 * percentile(outcome["latencies"], 0.5))
    return median[1] - median[0]


def highest_rate(cluster: Cluster, *, before: Path, seconds: float) -> list[Row]:
    """The highest steady rate that holds at the first try or the second."""
    reached: dict[str, float] = {}
    steps: dict[str, list[dict[str, Any]]] = {build.name: [] for build in builds(before)}
    for build in builds(before):

        def holds(rate: float, build: Build = build) -> bool:
            return any(_holds(cluster, build, rate, seconds, steps[build.name]) for _ in range(2))

        rate = LOWEST_RATE
        while not holds(rate):
            rate -= STEPS[-1]
        for width in STEPS:
            while holds(rate + width):
                rate += width
        reached[build.name] = rate
    what = "the whole way, highest steady rate with p99 < 1 s"
    return [_rates(what, "the earlier build", reached["ours"], reached["before"], 2, steps)]


def _holds(cluster: Cluster, build: Build, rate: float, seconds: float, steps: list[dict[str, Any]]) -> bool:
    with _service(cluster, build) as service:
        step = send(service, rate=rate, seconds=seconds)
    step["holds"] = bool(step["accepted"] == step["sent"] and step["time to inbox"]["p99"] < 1.0)
    steps.append(step)
    inbox = step["time to inbox"]["p99"]
    print(f"{build.name} at {rate:g}/s: {step['accepted']} of {step['sent']}, p99 {inbox:.3f} s", file=sys.stderr)
    return bool(step["holds"])


# --- Through RabbitMQ -----------------------------------------------------------------------------


def rabbitmq(cluster: Cluster, *, before: Path, mails: int, repetitions: int) -> list[Row]:
    """Mails a second of one worker and of two."""
    found: Found = defaultdict(lambda: defaultdict(list))
    with node(prefix="registrar-bench-") as rabbit:
        for _ in range(repetitions):
            for build in builds(before):
                for workers in (1, 2):
                    with cluster.fresh(schema=False) as dsn, virtual_host(rabbit) as url, sink() as mail:
                        more = {"BROKER_URL": url, "MESSAGE_TTL": "3600", "QUEUE_TTL": "3600"}
                        to = build.settings(dsn, SMTP_URLS=f"smtp://127.0.0.1:{mail.port}?starttls=never", **more)
                        rate, _ = drained(build.tree, to, rabbit, mail, workers=workers, mails=mails)
                        found[f"{workers} worker(s)"][build.name].append(rate)
            with virtual_host(rabbit) as url:
                alone = run_job("bench.bare_mail", {"what": "faststream", "url": url, "mails": mails})
            for sides in found.values():
                sides["FastStream alone"].append(alone)
    rows = []
    for workers_, sides in found.items():
        what, middle = f"mails a second through RabbitMQ, {workers_}", _middle(sides)
        rows.append(_rates(what, "the earlier build", middle["ours"], middle["before"], 1.5, sides))
        rows.append(_rates(what, "FastStream alone", middle["ours"], middle["FastStream alone"], 0.85, sides))
    return rows


def _middle(sides: dict[str, list[float]]) -> dict[str, float]:
    return {side: statistics.median(figures) for side, figures in sides.items()}


def _rates(what: str, against: str, ours: float, other: float, target: float | None, details: Any) -> Row:
    every = {"every repetition": dict(details)}
    return Row(what, against, f"{ours:,.0f}/s", f"{other:,.0f}/s", ours / other, "x", target, True, every)
