"""Mail through RabbitMQ: how many a worker sends, and how soon one is there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from bench.cluster import Cluster
from bench.processes import (
    Process,
    cpu_seconds,
    load,
    mailing,
    of_build,
    registrar_process,
    registrar_serve,
    registrar_work,
    run_job,
    sink,
    until_it_leads,
)
from bench.report import Row
from bench.whole_way import spread
from tests.support.rabbitmq import PrivateRabbit, node

BACKLOG_RATE = 500.0
"""Registrations a second while the backlog is made; their mails wait in the queue."""

CALM_RATE = 50.0
PATIENCE = 60.0

_tags = (f"rabbit{number}" for number in count())


def run(cluster: Cluster, *, mails: int, seconds: float, repetitions: int) -> list[Row]:
    with node(prefix="registrar-bench-") as rabbit:
        return [
            *_mails_a_second(cluster, rabbit, mails=mails, repetitions=repetitions),
            *_calm(cluster, rabbit, seconds=seconds, repetitions=repetitions),
        ]


@contextmanager
def virtual_host(rabbit: PrivateRabbit) -> Iterator[str]:
    """A virtual host for this block; its URL."""
    url = rabbit.vhost()
    try:
        yield url
    finally:
        rabbit.drop(url)


# --- Mails a second -------------------------------------------------------------------------------


def _mails_a_second(cluster: Cluster, rabbit: PrivateRabbit, *, mails: int, repetitions: int) -> list[Row]:
    found: dict[str, list[float]] = {"1 worker": [], "2 workers": [], "FastStream alone": [], "SMTP alone": []}
    cpu: dict[str, list[dict[str, float]]] = {"1 worker": [], "2 workers": []}
    for _ in range(repetitions):
        for workers, name in ((1, "1 worker"), (2, "2 workers")):
            rate, used = _drain(cluster, rabbit, workers=workers, mails=mails)
            found[name].append(rate)
            cpu[name].append(used)
        with virtual_host(rabbit) as url:
            found["FastStream alone"].append(
                run_job("bench.bare_mail", {"what": "faststream", "url": url, "mails": mails})
            )
        with sink() as mail:
            job = {"what": "smtp", "port": mail.port, "mails": mails}
            found["SMTP alone"].append(run_job("bench.bare_mail", job))
    middle = {name: statistics.median(rates) for name, rates in found.items()}
    slower = min(("FastStream alone", "SMTP alone"), key=lambda name: middle[name])
    details = {"every repetition": found, "cores": cpu}
    return [
        Row(
            f"mails a second through RabbitMQ, {name}",
            f"a bare loop of the slower part: {slower}",
            f"{middle[name]:,.0f}/s",
            f"{middle[slower]:,.0f}/s",
            middle[name] / middle[slower],
            "x",
            0.5,
            at_least=True,
            details=details,
        )
        for name in ("1 worker", "2 workers")
    ]


def _drain(cluster: Cluster, rabbit: PrivateRabbit, *, workers: int, mails: int) -> tuple[float, dict[str, float]]:
    """Let a backlog wait in the queue, then time the workers from the first mail that is accepted to the last.

    The workers are alone with PostgreSQL, RabbitMQ and the mail server, as the bare loops are: who publishes and
    follows the log has ended. What it costs to have all of it on two cores, the whole way shows.
    """
    with cluster.fresh() as dsn, virtual_host(rabbit) as url, sink() as mail:
        settings = {"REGISTRAR_BROKER_URL": url, "REGISTRAR_MESSAGE_TTL": "3600", "REGISTRAR_QUEUE_TTL": "3600"}
        return drained(None, mailing(dsn, mail.port) | settings, rabbit, mail, workers=workers, mails=mails)


def drained(
    tree: Path | None, settings: dict[str, str], rabbit: PrivateRabbit, mail: Process, *, workers: int, mails: int
) -> tuple[float, dict[str, float]]:
    """The same of a build (`processes.of_build`), whose settings name the database, the broker and the mail server."""
    url = settings["REGISTRAR_BROKER_URL"]
    with ExitStack() as stack:
        with (
            of_build(tree, "serve", "--port", "0", ready="API", settings=settings) as serve,
            of_build(tree, "process", ready="Following", settings=settings),
        ):
            until_it_leads(settings["REGISTRAR_DATABASE_URL"])
            outcome = load(serve, what="register", tag=next(_tags), rate=BACKLOG_RATE, seconds=mails / BACKLOG_RATE)
            mails = len(outcome["moments"])
            _until(lambda: waiting(rabbit, url) >= mails)
        at_work = [
            stack.enter_context(of_build(tree, "work", ready="Taking", settings=settings)) for _ in range(workers)
        ]
        before = _cpu(at_work)
        begun = time.perf_counter()
        _until(lambda: mail.ask("count") >= mails)
        took, after = time.perf_counter() - begun, _cpu(at_work)
        moments = sorted(at for at, _ in mail.ask("all").values())
        used = {name: round((after[name] - before[name]) / took, 3) for name in after}
        return (len(moments) - 1) / (moments[-1] - moments[0]), used


def waiting(rabbit: PrivateRabbit, url: str) -> int:
    queues = rabbit.ask("GET", f"queues/{url.rpartition('/')[2]}")
    return sum(queue.get("messages", 0) for queue in queues if queue["name"] == "registrar.mail")


def _cpu(workers: list[Process]) -> dict[str, float]:
    return {f"work {number}": cpu_seconds(worker.pid) for number, worker in enumerate(workers, start=1)}


def _until(condition: Any) -> None:
    deadline = time.perf_counter() + PATIENCE
    while not condition():
        if time.perf_counter() > deadline:
            raise RuntimeError("it does not get there")
        time.sleep(0.05)


# --- At a calm rate -------------------------------------------------------------------------------


def _calm(cluster: Cluster, rabbit: PrivateRabbit, *, seconds: float, repetitions: int) -> list[Row]:
    steps = []
    for _ in range(repetitions):
        with ExitStack() as stack:
            dsn = stack.enter_context(cluster.fresh())
            url = stack.enter_context(virtual_host(rabbit))
            mail = stack.enter_context(sink())
            settings = {"REGISTRAR_BROKER_URL": url}
            serve = stack.enter_context(registrar_serve(dsn, settings))
            stack.enter_context(registrar_process(dsn, mail.port, settings))
            stack.enter_context(registrar_work(dsn, mail.port, settings))
            _send(serve, mail, seconds=2)  # warm
            steps.append(_send(serve, mail, seconds=seconds))
    rows = []
    for share, target in (("p50", 100.0), ("p99", 500.0)):
        figure = statistics.median(step["time to inbox"][share] for step in steps) * 1000
        late = statistics.median(step["lateness"]["p99"] for step in steps) * 1000
        rows.append(
            Row(
                f"time to inbox through RabbitMQ at 50/s, {share}",
                "",
                f"{figure:,.1f} ms",
                f"generator late {late:.1f} ms (p99)",
                figure,
                "ms",
                target,
                at_least=False,
                details={"steps": steps},
            )
        )
    return rows


def _send(serve: Process, mail: Process, *, seconds: float) -> dict[str, Any]:
    """An open loop of registrations, until every mail is there."""
    tag = next(_tags)
    already = mail.ask("count")
    outcome = load(serve, what="register", tag=tag, rate=CALM_RATE, seconds=seconds)
    _until(lambda: mail.ask("count") >= already + len(outcome["moments"]))
    accepted = {
        recipient.partition("@")[0].rpartition("-")[2]: at
        for recipient, (at, _) in mail.ask("all").items()
        if recipient.startswith(f"{tag}-")
    }
    return {
        "sent": len(outcome["moments"]),
        "time to inbox": spread(accepted[number] - planned for number, (planned, _) in outcome["moments"].items()),
        "lateness": spread(outcome["lateness"]),
    }
