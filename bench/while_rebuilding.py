"""What those notice who register, or read, while read models are rebuilt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import psycopg

from bench.cluster import Cluster
from bench.processes import Process, command, load, registrar_process, registrar_serve, sink
from bench.report import percentile

RATE = 200.0
"""Registrations a second."""


def measure(cluster: Cluster, followed: str, *, seconds: float) -> dict[str, dict[str, Any]]:
    """Registrations at a steady rate, at a service with everything that follows: before, during and after rebuilds.

    Args:
        followed: name of the database to copy: a log with every follower at its end.
    """
    with (
        cluster.fresh(copy_of=followed) as dsn,
        sink() as mail,
        registrar_serve(dsn) as serve,
        registrar_process(dsn, mail.port),
    ):
        _register(serve, "warm", 2)
        before = _register(serve, "before", seconds)
        with _rebuilding(dsn) as rebuilt:
            during = _register(serve, "during", seconds)
        after = _register(serve, "after", seconds)
        without = percentile(sorted(before["latencies"] + after["latencies"]), 0.99)
        return {
            "without": _told(before) | {"p99": without, "after": _told(after)},
            "with a rebuild": _told(during) | {"rebuilds of all ended": len(rebuilt)},
        }


def _register(serve: Process, tag: str, seconds: float) -> dict[str, Any]:
    outcome: dict[str, Any] = load(serve, what="register", tag=tag, rate=RATE, seconds=seconds)
    return outcome


def _told(outcome: dict[str, Any]) -> dict[str, Any]:
    latencies, late = outcome["latencies"], outcome["lateness"]
    return {
        "statuses": outcome["statuses"],
        "p50": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
        "lateness p99": percentile(late, 0.99),
    }


@contextmanager
def _rebuilding(dsn: str) -> Iterator[list[float]]:
    """All read models are rebuilt in the block, over and over, by the operator's command; gives the seconds of each
    round that has ended. The last one ends after the block."""
    over, rounds = Event(), list[float]()

    def rebuild() -> None:
        while not over.is_set():
            rounds.append(command(dsn, "projections", "rebuild", "--all"))

    with _thread(rebuild, over):
        yield rounds


class Waits:
    """How long each read of a read model took, of one reader that does nothing else."""

    def __init__(self) -> None:
        self._ended: list[tuple[float, float]] = []

    def longest(self, since: float) -> float:
        """Seconds, of those that ended after a moment."""
        return max(took for ended, took in self._ended if ended > since)

    def read(self, dsn: str, over: Event) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not over.is_set():
                started = time.perf_counter()
                connection.execute("SELECT FROM read_registrations.progress LIMIT 1")
                self._ended.append((time.time(), time.perf_counter() - started))
                time.sleep(0.001)


@contextmanager
def reading(dsn: str) -> Iterator[Waits]:
    """The read model `registrations` is read in the block, a thousand times a second."""
    over, waits = Event(), Waits()
    with _thread(lambda: waits.read(dsn, over), over):
        yield waits


@contextmanager
def _thread(work: Any, over: Event) -> Iterator[None]:
    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
