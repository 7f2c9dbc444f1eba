"""More than can be done: four times as many registrations as the service can take, for a minute, and the time after.

The service has a core to itself, at the peak as under the overload; the load and PostgreSQL share the other one, and
nothing that the generator does is taken from what is measured. The details also tell how much of the
service's CPU went to what it accepted, beside its CPU for a registration at the peak.
"""

from __future__ import annotations

import statistics
import time
from itertools import count
from typing import Any

from bench.cluster import Cluster
from bench.processes import REST, SERVICE, Process, cpu_seconds, load_apart, pinned, registrar_serve, with_warm_up
from bench.report import Row, percentile

TIMES = 4
CONNECTIONS = 1000
CALM_RATE = 50
RETURN_WITHIN = 12.0
"""Seconds for which the service is looked at afterwards."""

_tags = (f"over{n}" for n in count())


def run(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    """
    Args:
        seconds: how long the overload lasts.
    """
    found = [_once(cluster, seconds=seconds) for _ in range(repetitions)]

    def row(what: str, name: str, unit: str, target: float, *, at_least: bool = False, other: str = "") -> Row:
        figure = statistics.median(one[name] for one in found)
        shown = f"{figure:,.2f} {unit}".replace(" x", "")
        against = "the peak" if unit == "x" else ""
        return Row(what, against, shown, other, figure, unit, target, at_least, {"every repetition": found})

    peak = f"{statistics.median(one['peak, registrations a second'] for one in found):,.0f}/s"
    late = f"generator late {statistics.median(one['generator late p99, ms'] for one in found):.1f} ms (p99)"
    return [
        row(f"goodput at {TIMES}x the peak", "goodput against the peak", "x", 0.8, at_least=True, other=peak),
        row(f"accepted at {TIMES}x the peak, p99", "accepted p99, ms", "ms", 1000.0, other=late),
        row(f"refused at {TIMES}x the peak, p99", "refused p99, ms", "ms", 50.0, other=late),
        row("until a registration is as quick as before", "seconds until normal", "s", 1.0),
    ]


def _once(cluster: Cluster, *, seconds: float) -> dict[str, Any]:
    postmaster = cluster.server.pid
    assert postmaster is not None
    with (
        pinned(postmaster, REST),
        cluster.fresh() as dsn,
        registrar_serve(dsn) as serve,
        pinned(serve.pid, SERVICE),
    ):
        load_apart(serve, what="register", tag=next(_tags), connections=64, seconds=2)
        normal = percentile(_calm(serve, 3.0)["latencies"], 0.5)
        used = cpu_seconds(serve.pid)
        peak = load_apart(serve, what="register", tag=next(_tags), connections=64, seconds=max(2.0, seconds / 6))
        cpu_at_peak = (cpu_seconds(serve.pid) - used) / (len(peak["latencies"]) * with_warm_up(peak["seconds"]))
        rate = len(peak["latencies"]) / peak["seconds"]

        used, begun = cpu_seconds(serve.pid), time.perf_counter()
        over = load_apart(
            serve, what="register", tag=next(_tags), rate=TIMES * rate, seconds=seconds, connections=CONNECTIONS
        )
        took, cpu = time.perf_counter() - begun, cpu_seconds(serve.pid) - used
        after = _calm(serve, RETURN_WITHIN)
    accepted, refused = over["by_status"]["202"], over["by_status"].get("503", [])
    assert set(over["statuses"]) <= {"202", "503"}, over["statuses"]
    assert set(peak["statuses"]) == {"202"}, peak["statuses"]
    assert set(after["statuses"]) <= {"202", "503"}, after["statuses"]
    return {
        "peak, registrations a second": rate,
        "answered": over["statuses"],
        "goodput against the peak": len(accepted) / over["seconds"] / rate,
        "share of the service's CPU that went to what it accepted": cpu_at_peak * len(accepted) / cpu,
        "accepted p99, ms": percentile(accepted, 0.99) * 1000,
        "refused p99, ms": percentile(refused, 0.99) * 1000 if refused else float("nan"),
        # From the last planned arrival: what is left in the queues then is part of the way back.
        "seconds until normal": max(0.0, over["seconds"] - seconds) + _until_normal(after, normal),
        "normal p50, ms": normal * 1000,
        "generator late p99, ms": percentile(over["lateness"], 0.99) * 1000,
        "cores: service": cpu / took,
        "cores: generator": over["cpu"] / took,
    }


def _calm(serve: Process, seconds: float) -> Any:
    return load_apart(serve, what="register", tag=next(_tags), rate=CALM_RATE, seconds=seconds)


def _until_normal(after: Any, normal: float) -> float:
    """Seconds until all registrations of half a second are accepted, in the median within twice the usual latency."""
    moments = {int(number): moment for number, moment in after["moments"].items()}
    for window in range(int(RETURN_WITHIN / 0.5)):
        wanted = range(round(window * 0.5 * CALM_RATE), round((window + 1) * 0.5 * CALM_RATE))
        took = [answered - planned for planned, answered in (moments[n] for n in wanted if n in moments)]
        if len(took) == len(wanted) and statistics.median(took) <= 2 * normal:
            return window * 0.5
    return float("inf")
