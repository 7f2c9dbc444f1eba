"""`registrar limits`: the rate limits of the public API."""

# ruff: noqa: PLC0415 - as in `main`: a command imports what it needs when it runs
from __future__ import annotations

from pathlib import Path

import click

from entrypoints.cli import options


@click.group("limits", epilog=options.example("registrar limits show"))
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
