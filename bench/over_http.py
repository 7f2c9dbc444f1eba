"""Requests: our routes against an empty endpoint, and passwords against the bare hash."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import psycopg

from bench.bare_hashes import AS_THE_SERVICE, PASSWORD
from bench.cluster import Cluster
from bench.processes import Process, empty_endpoint, load, registrar_process, registrar_serve, run_job, sink
from bench.report import Row, median_by_side, medians

CONNECTIONS = 64
HASHING_CONNECTIONS = 12
"""Enough to keep every core at a hash, few enough that none is turned away."""

_BODY = '{"email": "somebody-12345@bench.example", "name": "Ada Lovelace"}'


def run(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    return [
        *_posting(cluster, seconds=seconds, repetitions=repetitions),
        *_hashing(cluster, seconds=seconds, repetitions=repetitions),
        *_getting(cluster, seconds=seconds, repetitions=repetitions),
    ]


def _posting(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    outcomes: dict[str, list[Any]] = {"ours": [], "empty": []}
    tags = (f"post{n}" for n in count())
    with cluster.fresh() as dsn, registrar_serve(dsn) as serve, empty_endpoint() as empty:

        def ours() -> float:
            job = {"what": "register", "tag": next(tags)}
            return _rate(serve, job, outcomes["ours"], seconds)

        def theirs() -> float:
            job = {"what": "post", "paths": ["/empty"], "body": _BODY}
            return _rate(empty, job, outcomes["empty"], seconds)

        found = median_by_side({"ours": ours, "empty": theirs}, repetitions)
    return [_row("POST /v1/registrations, 64 connections", "an empty endpoint", found, 0.4, outcomes)]


def _hashing(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    outcomes: dict[str, list[Any]] = {"ours": []}
    tags = (f"hash{n}" for n in count())
    longer = 3 * seconds  # the first answer takes 130 ms, which in four seconds would be 3 % of all
    with cluster.fresh() as dsn, registrar_serve(dsn) as serve:

        def ours() -> float:
            job = {"what": "register", "tag": next(tags), "password": PASSWORD}
            return _rate(serve, job, outcomes["ours"], longer, connections=HASHING_CONNECTIONS)

        def bare() -> float:
            return float(run_job("bench.bare_hashes", {"seconds": longer}, AS_THE_SERVICE)["rate"])

        found = median_by_side({"ours": ours, "bare": bare}, repetitions)
    return [
        _row(
            "POST with a password", "bare argon2id (the same library and pages), a thread a core", found, 0.9, outcomes
        )
    ]


def _getting(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    outcomes: dict[str, list[Any]] = {"ours": [], "empty": []}
    with cluster.fresh() as dsn, registrar_serve(dsn) as serve, empty_endpoint() as empty:
        load(serve, what="register", tag="get", connections=8, seconds=1)
        with sink() as mail, registrar_process(dsn, mail.port):
            _until_folded(dsn)
        with psycopg.connect(dsn) as connection:
            found_ids = connection.execute("SELECT registration_id FROM read_registrations.registrations LIMIT 500")
            paths = [f"/v1/registrations/{row[0]}" for row in found_ids]

        def ours() -> float:
            return _rate(serve, {"what": "get", "paths": paths}, outcomes["ours"], seconds)

        def theirs() -> float:
            return _rate(empty, {"what": "get", "paths": paths}, outcomes["empty"], seconds)

        found = median_by_side({"ours": ours, "empty": theirs}, repetitions)
    return [_row("GET /v1/registrations/{id}, 64 connections", "an empty endpoint", found, 0.5, outcomes)]


def _rate(
    process: Process, job: dict[str, Any], outcomes: list[Any], seconds: float, connections: int = CONNECTIONS
) -> float:
    """Good answers a second; an answer that is not good stops the measurement."""
    outcome = load(process, connections=connections, seconds=seconds, **job)
    latencies = outcome["latencies"]
    assert set(outcome["statuses"]) <= {"200", "202"}, outcome["statuses"]
    outcomes.append(
        {
            "rate": len(latencies) / outcome["seconds"],
            "p50": latencies[len(latencies) // 2],
            "p99": latencies[int(len(latencies) * 0.99)],
            "load_cpu_share": outcome["cpu"] / outcome["seconds"],
        }
    )
    return float(outcomes[-1]["rate"])


def _row(what: str, against: str, found: dict[str, list[float]], target: float, outcomes: dict[str, Any]) -> Row:
    ours, other = medians(found).values()
    details = {"every repetition": found, "closed loop, latencies in seconds": outcomes}
    return Row(what, against, f"{ours:,.0f}/s", f"{other:,.0f}/s", ours / other, "x", target, True, details)


def _until_folded(dsn: str) -> None:
    query = "SELECT (SELECT position FROM followers WHERE name = 'registrations') >= (SELECT position FROM head)"
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(600):
            row = connection.execute(query).fetchone()
            if row is not None and row[0]:
                return
            time.sleep(0.1)
    raise RuntimeError("the read model does not catch up")
