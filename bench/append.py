"""Appending: ours, the library's, and the practical limits of PostgreSQL."""

from __future__ import annotations

import statistics
from itertools import count

import psycopg

from bench.cluster import Cluster
from bench.history import registered
from bench.processes import run_job
from bench.report import Row, percentile

CALLERS = (1, 16, 64, 128)
LIMIT_CLIENTS = (4, 8, 16)
"""The limit is reached with few clients; the better of these counts."""

# The same table and indexes as ours, rows of the same size, the same order of positions.
_TABLES = """
    CREATE TABLE events (
        originator_id uuid NOT NULL, originator_version bigint NOT NULL, topic text NOT NULL, state bytea NOT NULL,
        notification_id bigint NOT NULL, recorded_at timestamptz NOT NULL, correlation_id uuid NOT NULL,
        causation_position bigint, actor text NOT NULL, trace_context text,
        PRIMARY KEY (originator_id, originator_version)
    );
    CREATE UNIQUE INDEX ON events (notification_id);
    CREATE TABLE head (position bigint NOT NULL) WITH (fillfactor = 50);
    INSERT INTO head VALUES (0);
    CREATE TABLE kinds (n bigint PRIMARY KEY, stream integer, version bigint, topic text, state bytea);
"""

# One statement, so one round trip and one transaction. The lock is held to commit, and positions have no gaps. An
# advisory lock, because a locked row is handed on at half that rate once 64 clients wait for it.
_FUNCTION = """
    CREATE FUNCTION record(registrations integer) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        latest bigint;
    BEGIN
        PERFORM pg_advisory_xact_lock(1);
        UPDATE head SET position = position + 3 * registrations RETURNING position INTO latest;
        INSERT INTO events
        SELECT CASE kinds.stream WHEN 0 THEN ids.first ELSE ids.second END, kinds.version, kinds.topic, kinds.state,
               latest - 3 * ids.r - 2 + kinds.n, clock_timestamp(), ids.correlation, NULL, 'client', NULL
        FROM (
            SELECT r, gen_random_uuid() AS first, gen_random_uuid() AS second, gen_random_uuid() AS correlation
            FROM generate_series(0, registrations - 1) AS r OFFSET 0
        ) AS ids
        CROSS JOIN kinds;
        PERFORM pg_notify('log', latest::text);
        RETURN latest;
    END $$
"""


def run(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    """Ours against the stock recorder and `pgbench`, each on fresh tables, in alternation."""
    numbers = count(0, 10_000_000)
    found: dict[str, dict[int, list[dict[str, float]]]] = {
        "ours": {callers: [] for callers in CALLERS},
        "stock": {callers: [] for callers in CALLERS},
        "same guarantees": {callers: [] for callers in CALLERS},
        "16 per transaction": {clients: [] for clients in LIMIT_CLIENTS},
    }
    for _ in range(repetitions):
        with (
            cluster.fresh() as own,
            cluster.fresh(schema=False) as stock,
            cluster.fresh(schema=False) as same,
            cluster.fresh(schema=False) as limit,
        ):
            _prepare(same)
            _prepare(limit)
            for clients in LIMIT_CLIENTS:
                found["16 per transaction"][clients].append(_pgbench(cluster, limit, 16, clients, seconds))
            for callers in CALLERS:
                job = {"callers": callers, "seconds": seconds, "first": next(numbers)}
                found["ours"][callers].append(run_job("bench.appending", job | {"who": "ours", "dsn": own}))
                found["stock"][callers].append(run_job("bench.appending", job | {"who": "stock", "dsn": stock}))
                found["same guarantees"][callers].append(_pgbench(cluster, same, 1, callers, seconds))
    return _rows(found)


def _rows(found: dict[str, dict[int, list[dict[str, float]]]]) -> list[Row]:
    def median(who: str, callers: int, what: str = "rate") -> float:
        return statistics.median(one[what] for one in found[who][callers])

    rows = []
    for against, name, target in (
        ("stock recorder", "stock", 8.0),
        ("pgbench, same guarantees", "same guarantees", 3.0),
    ):
        for callers in CALLERS:
            ours, other = median("ours", callers), median(name, callers)
            rows.append(_against(callers, against, ours, other, target if callers == 64 else None))
    best = max(LIMIT_CLIENTS, key=lambda clients: median("16 per transaction", clients))
    limit = median("16 per transaction", best)
    rows.append(_against(128, f"pgbench, 16 a transaction, {best} clients", median("ours", 128), limit, 0.5))
    alone, same = median("ours", 1, "p50"), median("same guarantees", 1, "p50")
    return [
        *rows,
        Row(
            "a lone append, p50",
            "pgbench, same guarantees",
            f"{alone * 1000:.2f} ms",
            f"{same * 1000:.2f} ms",
            alone / same,
            "x",
            2.0,
            at_least=False,
            details={"registrations a second, latencies in seconds, by callers; every repetition": found},
        ),
    ]


def _against(callers: int, against: str, ours: float, other: float, target: float | None) -> Row:
    what = f"append, {callers} caller{'s' if callers > 1 else ''}"
    return Row(what, against, f"{ours:,.0f}/s", f"{other:,.0f}/s", ours / other, "x", target, at_least=True)


def _prepare(dsn: str) -> None:
    """Tables for `pgbench`, and the three events that it writes: ours, in topic and size."""
    streams: dict[object, int] = {}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_TABLES)
        connection.execute(_FUNCTION)
        for number, event in enumerate(registered(0)):
            stream = streams.setdefault(event.originator_id, len(streams))
            connection.execute(
                "INSERT INTO kinds VALUES (%s, %s, %s, %s, %s)",
                (number, stream, event.originator_version, event.topic, event.state),
            )
        connection.execute("ANALYZE kinds")


def _pgbench(cluster: Cluster, dsn: str, registrations: int, clients: int, seconds: float) -> dict[str, float]:
    rate, times = cluster.pgbench(dsn, f"SELECT record({registrations})", clients=clients, seconds=seconds)
    return {"rate": rate * registrations, "p50": percentile(times, 0.5), "p99": percentile(times, 0.99)}
