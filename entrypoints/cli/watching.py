"""The commands that show what goes on: how many registrations reach each stage."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

import click

from entrypoints.cli import options


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
