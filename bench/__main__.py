"""`python -m bench`: every promise of speed, measured side by side on this machine."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import structlog
from rich.console import Console

from bench import (
    append,
    audit,
    audit_search,
    beside,
    checkpointing,
    composing,
    fold,
    growth,
    limits,
    neutrality,
    over_http,
    overload,
    password_checks,
    proof,
    refusal,
    replay,
    report,
    resting,
    rotating,
    starting,
    taking_over,
    through_rabbitmq,
    tracing,
    webhooks,
    whole_way,
)
from bench.cluster import Cluster, cluster
from bench.report import Row

LONG = 2_000_000
"""Events in a long log."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much is measured.

    Attributes:
        quick: it only has to be seen whether it runs.
        long: events in a long log.
        before: a checkout of an earlier build, with its libraries in `.venv`.
    """

    quick: bool
    long: int
    before: Path | None


Group = Callable[[Cluster, Wanted], list[Row]]


def _beside(how: Wanted, measure: Callable[..., list[Row]], *arguments: Cluster, **options: float) -> list[Row]:
    """Nothing, where there is no earlier build."""
    return [] if how.before is None else measure(*arguments, before=how.before, **options)


GROUPS: dict[str, Group] = {
    "append": lambda c, how: append.run(c, seconds=1 if how.quick else 2, repetitions=1 if how.quick else 3),
    "http": lambda c, how: over_http.run(c, seconds=1 if how.quick else 4, repetitions=1 if how.quick else 3),
    "password-checks": lambda c, how: password_checks.run(
        c, seconds=1 if how.quick else 12, repetitions=1 if how.quick else 5
    ),
    "limits": lambda c, how: limits.run(
        c, decisions=500 if how.quick else 20_000, seconds=1 if how.quick else 4, repetitions=1 if how.quick else 5
    ),
    "neutrality": lambda c, how: neutrality.run(
        c, blocks=200 if how.quick else 10_000, hashed=20 if how.quick else 1_500
    ),
    "whole-way": lambda c, how: whole_way.run(c, seconds=3 if how.quick else 30, repetitions=1 if how.quick else 3),
    "tracing": lambda c, how: tracing.run(c, seconds=2 if how.quick else 6, repetitions=1 if how.quick else 8),
    "rabbitmq": lambda c, how: through_rabbitmq.run(
        c, mails=200 if how.quick else 5000, seconds=3 if how.quick else 15, repetitions=1 if how.quick else 3
    ),
    "webhooks": lambda c, how: webhooks.run(
        c,
        registrations=300 if how.quick else 5000,
        seconds=2 if how.quick else 6,
        repetitions=1 if how.quick else 5,
    ),
    "overload": lambda c, how: [
        *overload.run(c, seconds=5 if how.quick else 60, repetitions=1 if how.quick else 3),
        *refusal.run(seconds=1 if how.quick else 4, repetitions=1 if how.quick else 5),
    ],
    "fold": lambda c, how: fold.run(
        c, sizes=(10_000 if how.quick else 200_000, how.long), repetitions=1 if how.quick else 3
    ),
    "replay": lambda c, how: replay.run(
        c, sizes=(10_000 if how.quick else 20_000, how.long), seconds=3 if how.quick else 30, repetitions=1
    ),
    "audit": lambda c, how: [
        *audit.run(c, sizes=(10_000 if how.quick else 20_000, how.long), repetitions=1 if how.quick else 3),
        *audit_search.run(c, sizes=(10_000 if how.quick else 20_000, how.long)),
        *checkpointing.run(c, seconds=2 if how.quick else 8, repetitions=1 if how.quick else 12),
        *checkpointing.always_on(c, seconds=5 if how.quick else 60),
        *proof.run(blocks=how.long // 3, repetitions=3 if how.quick else 15),
        *rotating.run(c, persons=10_000 if how.quick else 250_000),
    ],
    "composing": lambda _, how: composing.run(mails=100 if how.quick else 20_000, repetitions=1 if how.quick else 7),
    "start": lambda c, how: starting.run(c, before=how.before, repetitions=1 if how.quick else 7),
    "rest": lambda _, how: resting.run(
        before=how.before, settling=3 if how.quick else resting.SETTLING, seconds=5 if how.quick else 60
    ),
    "beside-requests": lambda c, how: _beside(
        how, beside.requests, c, seconds=1 if how.quick else 5, repetitions=1 if how.quick else 5
    ),
    "beside-whole-way": lambda c, how: _beside(
        how, beside.whole_way, c, seconds=2 if how.quick else 8, repetitions=1 if how.quick else 4
    ),
    "beside-highest": lambda c, how: _beside(how, beside.highest_rate, c, seconds=2 if how.quick else 12),
    "beside-rabbitmq": lambda c, how: _beside(
        how, beside.rabbitmq, c, mails=200 if how.quick else 4000, repetitions=1 if how.quick else 3
    ),
    "import": lambda c, how: taking_over.run(
        c, users=2_000 if how.quick else 50_000, repetitions=1 if how.quick else 3
    ),
    "growth": lambda c, how: growth.run(
        c, sizes=(2_000 if how.quick else 20_000, how.long), repetitions=1 if how.quick else 5
    ),
}


def main() -> int:
    """Measure, show the table, write `results.json` (with `--only`, the other groups keep their last results).

    Answers 1 if a promise was not kept or not measured.
    """
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=f"groups: {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="see whether it runs; the figures mean nothing")
    parser.add_argument(
        "--events", type=int, metavar="N", help=f"in a long log  [default: {LONG:,}; with --quick 20,000]"
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="DIR",
        help="a checkout of an earlier build with its .venv: it and this one side by side",
    )
    parser.add_argument(
        "--output", type=Path, help="where the results go  [default: results.json, unless --quick or --events]"
    )
    arguments = parser.parse_args()
    output = arguments.output or (None if arguments.quick or arguments.events else report.RESULTS)
    wanted = Wanted(arguments.quick, arguments.events or (20_000 if arguments.quick else LONG), arguments.before)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console = Console(stderr=True)
    rows: list[Row] = []
    failed = False
    with cluster() as server:
        about = report.machine(server.version)
        for name in arguments.only or GROUPS:
            console.print(f"{datetime.now(UTC):%H:%M:%S} measuring: {name}")
            busy = psutil.cpu_percent(interval=2.0)
            try:
                found = GROUPS[name](server, wanted)
            except Exception:  # noqa: BLE001 - the edge: the other groups are worth as much without this one
                console.print_exception()
                failed = True
                continue
            rows += found
            if output is not None:
                report.write(name, found, about, busy, output)
    report.show(rows)
    return int(failed or any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
