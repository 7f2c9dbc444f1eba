"""The rate limits: their own time, and what they cost a registration."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from itertools import count
from typing import Any

from bench.cluster import Cluster
from bench.limiting import EVERYTHING_PASSES
from bench.processes import cpu_seconds, load, registrar_serve, run_job, with_warm_up
from bench.report import Row, median_by_side, medians
from infrastructure.settings.limits import DEFAULTS
from tests.support.redis import server

CONNECTIONS = 64

_AS_ANYBODY = {"REGISTRAR_TRUSTED_PROXIES": "127.0.0.0/8"}
"""Limits by network spare this machine, unless a proxy on it is trusted."""

_ALL_ON = _AS_ANYBODY | {"REGISTRAR_LIMITS": EVERYTHING_PASSES}
_ALL_OFF = _AS_ANYBODY | {"REGISTRAR_LIMITS": ", ".join(f"{limit.name}=off" for limit in DEFAULTS)}


def run(cluster: Cluster, *, decisions: int, seconds: float, repetitions: int) -> list[Row]:
    """
    Args:
        decisions: of which the time is measured.
        seconds: of registrations, on each side and in each repetition.
    """
    with server() as redis:
        return [*_own_time(redis.url, decisions), *_posting(cluster, redis.url, seconds, repetitions)]


def _own_time(url: str, decisions: int) -> list[Row]:
    found = {where: run_job("bench.limiting", {"url": of, "decisions": decisions}) for where, of in _sides(url)}

    def row(where: str, target: float) -> Row:
        took = found[where]["p50"] * 1000
        return Row(
            f"the five limits of a registration, {where}, p50",
            "",
            f"{took:.3f} ms",
            "",
            took,
            "ms",
            target,
            False,
            found,
        )

    return [row("in process", 0.05), row("in Redis", 0.4)]


def _sides(url: str) -> tuple[tuple[str, str | None], ...]:
    return ("in process", None), ("in Redis", url)


def _posting(cluster: Cluster, url: str, seconds: float, repetitions: int) -> list[Row]:
    settings = {
        "off": _ALL_OFF,
        "in process": _ALL_ON,
        "in Redis": _ALL_ON | {"REGISTRAR_RATE_LIMIT_URL": url},
    }
    tags = (f"limits{n}" for n in count())
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(registrar_serve(stack.enter_context(cluster.fresh()), chosen))
            for name, chosen in settings.items()
        }

        cpu: dict[str, list[float]] = {name: [] for name in sides}

        def rate(name: str) -> float:
            used = cpu_seconds(sides[name].pid)
            outcome: Any = load(sides[name], what="register", tag=next(tags), connections=CONNECTIONS, seconds=seconds)
            assert set(outcome["statuses"]) == {"202"}, outcome["statuses"]
            used = cpu_seconds(sides[name].pid) - used
            cpu[name].append(used / (len(outcome["latencies"]) * with_warm_up(outcome["seconds"])))
            return len(outcome["latencies"]) / float(outcome["seconds"])

        found = median_by_side({name: lambda name=name: rate(name) for name in sides}, repetitions)  # type: ignore[misc]
    middle = medians(found)

    def row(name: str, target: float) -> Row:
        # Of each repetition by itself: what disturbs the machine disturbs its sides alike.
        ratio = statistics.median(ours / off for ours, off in zip(found[name], found["off"], strict=True))
        what = f"POST with all limits on, {name}"
        ours, off = f"{middle[name]:,.0f}/s", f"{middle['off']:,.0f}/s"
        return Row(
            what, "limits off", ours, off, ratio, "x", target, True, {"every repetition": found, "seconds of CPU": cpu}
        )

    return [row("in process", 0.95), row("in Redis", 0.8)]
