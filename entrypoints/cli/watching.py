"""The commands that show what goes on: right now, and how many registrations reach each stage."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

import click

from entrypoints.cli import options


@click.command(
    "top",
    epilog=options.example(
        "registrar top",
        "registrar top --metrics http://10.0.0.5:8001 --metrics http://10.0.0.6:8001",
        "registrar top --json --count 1",
    ),
)
@click.option(
    "--metrics",
    "urls",
    multiple=True,
    metavar="URL",
    help="Where a process shows its metrics; may be repeated.  [default: where this machine's `serve` would]",
)
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds between two looks."
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="End after so many looks.  [default: on a terminal none, else 1]",
)
@options.as_json
@options.data_dir
def top(*, urls: tuple[str, ...], interval: float, count: int | None, as_json: bool, data_dir: Path | None) -> int:
    """Show what goes on, again and again, until Ctrl-C.

    How many registrations there were in the last minute, what waits, how far the followers are, the circuits of the
    mail servers and the last synthetic registration are in the database, and count for all processes. Requests and
    limits are each process's own: name those that you want to see with --metrics. --json prints a line for each look.
    """
    from entrypoints.cli import top as cli_top
    from entrypoints.cli.session import read_settings, reading

    chosen = urls or cli_top.default_urls(read_settings(data_dir=data_dir, with_secrets=False))
    return reading(
        data_dir,
        lambda reader: cli_top.watch(reader.activity, chosen, interval=interval, count=count, as_json=as_json),
    )


@click.command(
    "funnel",
    epilog=options.example(
        "registrar funnel", "registrar funnel --since 30d --bucket day", "registrar funnel --since 2026-01-01 --csv"
    ),
)
@click.option("--since", callback=options.parse_past, help="A time, or how long ago.  [default: 1d; in days: 30d]")
@click.option(
    "--bucket", type=click.Choice(["hour", "day"]), default="hour", show_default=True, help="Count by hour or by day."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
@options.as_json
@options.data_dir
def funnel(
    *, since: datetime | None, bucket: Literal["hour", "day"], as_csv: bool, as_json: bool, data_dir: Path | None
) -> int:
    """Show how many registrations reach each stage, and how fast.

    What happened is counted in the hour (UTC) in which it happened: who registers at 10:59 and verifies at 11:01 is in
    two. Registrations for addresses that have an account already are counted apart, synthetic ones not at all.
    """
    from entrypoints.cli import funnel as cli_funnel
    from entrypoints.cli.session import reading

    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other.", click.get_current_context())
    how: cli_funnel.Format = "csv" if as_csv else "json" if as_json else "chart"
    return reading(data_dir, lambda reader: cli_funnel.show_funnel(reader.funnel, since, bucket, how))
