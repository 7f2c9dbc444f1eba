"""Webhooks: calls a second beside a bare client, and what they cost registrations, with one endpoint of three dead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any

import psycopg

from bench.cluster import Cluster
from bench.history import EVENTS_EACH
from bench.processes import Process, beside, load, registrar_process, registrar_serve, run_job, sink
from bench.report import Row, median_by_side, medians
from bench.sending import SETTING

RATE = 250.0
"""Registrations a second, the least that is promised of the whole way: at more, both sides are short of cores."""

PATIENCE = 120.0
"""Seconds until what a measurement has begun is done."""

MESSAGES_EACH = 3
"""Of a registration that went well: accepted, verified, activated."""


def run(cluster: Cluster, *, registrations: int, seconds: float, repetitions: int) -> list[Row]:
    return [
        *_calls(cluster, registrations=registrations, repetitions=repetitions),
        *_registrations(cluster, seconds=seconds, repetitions=repetitions),
    ]


@contextmanager
def receiving() -> Iterator[Process]:
    """An endpoint that takes everything at once."""
    with beside("bench.receiving") as process:
        yield process


def _calls(cluster: Cluster, *, registrations: int, repetitions: int) -> list[Row]:
    messages = MESSAGES_EACH * registrations
    cpu: dict[str, list[float]] = {"follow": [], "bare": [], "plain": []}
    with cluster.fresh() as dsn, receiving() as endpoint:
        run_job("bench.history", {"dsn": dsn, "events": EVENTS_EACH * registrations})
        cluster.settle()

        def side(what: str, **more: Any) -> float:
            found = run_job("bench.sending", {"what": what, "port": endpoint.port, "messages": messages} | more)
            cpu[what].append(found["cpu"])
            return float(found["rate"])

        sides = {
            "follow": lambda: side("follow", dsn=dsn),
            "bare": lambda: side("bare"),
            "plain": lambda: side("plain"),
        }
        found = median_by_side(sides, repetitions)
    middle = medians(found)
    details = {"every repetition": found, "CPU seconds of a call": cpu}
    return [
        Row(
            "webhooks a second, 64 under way",
            against,
            f"{middle['follow']:,.0f}/s",
            f"{middle[other]:,.0f}/s",
            middle["follow"] / middle[other],
            "x",
            target,
            True,
            details,
        )
        for other, against, target in (
            ("plain", "a bare client (httpx), 64 callers", 0.8),
            ("bare", "our own client without log, order and position, 64 callers", None),
        )
    ]


def _registrations(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    tags = (f"hook{number}" for number in count())
    slowest: dict[str, list[float]] = {"with": [], "without": []}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(_service(cluster, webhooks=name == "with")) for name in slowest}

        def measured(name: str, **job: Any) -> float:
            serve, dsn = sides[name]
            outcome = load(serve, what="register", tag=next(tags), connections=64, **job)
            _until_quiet(dsn)  # or the next measurement would pay for this one's mails and calls
            slowest[name].append(outcome["latencies"][int(len(outcome["latencies"]) * 0.99)])
            return len(outcome["latencies"]) / float(outcome["seconds"])

        def steady(name: str) -> float:
            return measured(name, rate=RATE, seconds=seconds)

        def full(name: str) -> float:
            return measured(name, seconds=seconds / 3)

        calm, most = (
            median_by_side({name: partial(measure, name) for name in slowest}, repetitions)
            for measure in (steady, full)
        )
    rows = []
    for what, found, target in (
        (f"registrations at {RATE:.0f}/s with three endpoints, one of them dead", calm, 0.98),
        ("registrations, 64 connections, with three endpoints, one of them dead", most, 0.98),
    ):
        ours, other = medians(found).values()
        details = {"every repetition": found, "p99 in seconds, at the calm rate and then at all that goes": slowest}
        rows.append(Row(what, "without", f"{ours:,.0f}/s", f"{other:,.0f}/s", ours / other, "x", target, True, details))
    return rows


@contextmanager
def _service(cluster: Cluster, *, webhooks: bool) -> Iterator[tuple[Process, str]]:
    """`serve` and `process`; the endpoints are there on both sides, to cost the same."""
    with cluster.fresh() as dsn, sink() as mail, receiving() as one, receiving() as other:
        urls = {"one": one.port, "other": other.port, "dead": 9}
        settings = {
            "REGISTRAR_WEBHOOKS": ",".join(f"{name}=http://127.0.0.1:{port}/hook" for name, port in urls.items()),
            "REGISTRAR_WEBHOOK_SECRETS": ",".join(f"{name}={SETTING}" for name in urls),
            "REGISTRAR_WEBHOOK_NETWORKS": "127.0.0.0/8",
        }
        with (
            registrar_process(dsn, mail.port, settings if webhooks else {}),
            registrar_serve(dsn) as serve,
        ):
            yield serve, dsn


def _until_quiet(dsn: str) -> None:
    """Return when all mails are sent, and all calls made but those to the dead endpoint."""
    behind = (
        "SELECT 1 FROM head AS h JOIN (SELECT name, position FROM followers UNION ALL SELECT name, position FROM webhooks"
        " WHERE name <> 'dead') AS f ON f.position < h.position LIMIT 1"
    )
    deadline = time.monotonic() + PATIENCE
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute(behind).fetchone() is not None:
            assert time.monotonic() < deadline, "it does not come to rest"
            time.sleep(0.2)
