"""`registrar limits`: the rate limits of the public API."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from entrypoints.cli import options


@click.group("limits", epilog=options.example("registrar limits show", "registrar limits simulate --since 7d"))
def limits() -> None:
    """Rate limits: what a requester may ask of the public API."""


@limits.command("show", epilog=options.example("registrar limits show", "registrar limits show --json"))
@options.as_json
@options.data_dir
def show(data_dir: Path | None, *, as_json: bool) -> int:
    """Show the limits in force, as REGISTRAR_LIMITS sets them.

    A burst passes at once, then a request each interval. "shadow" only counts what it would refuse, in the metric
    registrar_limit_total.
    """
    from entrypoints.cli.output import print_json, print_table
    from entrypoints.cli.session import read_settings

    settings = read_settings(with_secrets=False, data_dir=data_dir)
    if as_json:
        print_json(
            {
                "counted_in": "redis" if settings.rate_limit_url else "process",
                "limits": [
                    {
                        "name": limit.name,
                        "count": limit.count,
                        "per_seconds": int(limit.per.total_seconds()),
                        "burst": limit.burst,
                        "interval_seconds": limit.per.total_seconds() / limit.count,
                        "mode": limit.mode,
                        "of": limit.of,
                    }
                    for limit in settings.limits
                ],
            }
        )
        return 0
    print_table(
        ("limit", "at once", "then", "mode", "of"),
        (
            (limit.name, limit.burst, f"{limit.count} in {limit.written_per}", limit.mode, limit.of)
            for limit in settings.limits
        ),
    )
    return 0


@limits.command(
    "simulate",
    epilog=options.example(
        "registrar limits simulate --since 7d --limit registrations=3/1h --limit mailbox=2/1h",
        "registrar limits simulate --since 2026-01-01 --until 2026-02-01 --json",
    ),
)
@click.option("--since", default="7d", show_default=True, callback=options.parse_past, help="A time, or how long ago.")
@click.option("--until", callback=options.parse_past, help="A time, or how long ago.  [default: now]")
@click.option(
    "--limit",
    "entries",
    multiple=True,
    metavar="NAME=COUNT/DURATION",
    help="As in REGISTRAR_LIMITS, or mailbox, mailbox-day, mailbox-network, mailbox-network-day; may be repeated.  "
    "[default: those in force]",
)
@options.wide
@options.as_json
@options.data_dir
def simulate(
    *, since: datetime, until: datetime | None, entries: tuple[str, ...], as_json: bool, data_dir: Path | None
) -> int:
    """Ask the log what limits would have stopped.

    Each limit is tried by itself on what was asked and let pass. Of some the log cannot tell, by design: these are
    named, with what to do instead. Reads only. Exit code 1 if a limit would have stopped something.
    """
    from entrypoints.cli import simulated_limits
    from entrypoints.cli.session import comparing

    stretch = simulated_limits.Stretch.of(since, until)
    chosen, policy = simulated_limits.chosen(data_dir, entries)
    return comparing(
        data_dir, lambda reader: simulated_limits.simulate(reader, chosen, policy, stretch, as_json=as_json)
    )
