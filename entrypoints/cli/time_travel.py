"""Read models as they were, and what changed in them between two moments."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from entrypoints.bootstrap.replay import Verifier
from entrypoints.cli.output import note, print_json, print_table, show
from entrypoints.cli.replay import watched

MOST_LISTED: Final = 1000
"""Differences that a person is shown; with --json, all that were kept."""


async def as_of(parts: Verifier, name: str, when: int | datetime, *, data_dir: Path | None, as_json: bool) -> int:
    """Build the read model as it was, and say how to ask it."""
    with watched() as watch:
        found = await parts.as_of(name, when, watch)
    query = f"SELECT * FROM {found.schema}.{next(iter(found.tables))} LIMIT 10"  # noqa: S608 - to be shown
    drop = f"registrar projections as-of {name} {found.position} --drop" + (
        f" --data-dir {data_dir}" if data_dir else ""
    )
    if as_json:
        print_json(asdict(found) | {"query": query, "drop": drop})
    else:
        at = "before the first event" if found.recorded_at is None else f"recorded at {show(found.recorded_at)}"
        click.echo(f"{name} as it was at position {found.position}, {at}, is in the schema {found.schema}:")
        for table, rows in found.tables.items():
            click.echo(f"  {table:<20} {rows:>12,} rows")
        click.echo(f"\nAsk it:   {query};")
        click.echo(f"Drop it:  {drop}")
        click.echo(f"     or:  DROP SCHEMA {found.schema} CASCADE;")
    if found.unapplied:
        note(f"{found.unapplied} streams could not be applied; what they would have changed is missing.")
    return 0


async def drop(parts: Verifier, name: str, when: int | datetime, *, as_json: bool) -> int:
    """Drop what was built."""
    dropped = await parts.drop(name, when)
    if as_json:
        print_json({"read_model": name, "dropped": dropped})
    else:
        click.echo(f"Dropped {dropped}." if dropped else "There is nothing to drop.")
    return 0


async def diff(parts: Verifier, name: str, one: int | datetime, other: int | datetime, *, as_json: bool) -> int:
    """Print what is different; 1 if anything is."""
    with watched() as watch:
        first, second, found = await parts.diff(name, one, other, watch)
    listed: list[dict[str, Any]] = [
        {"table": it.table, "row": it.row, "column": it.column, "then": it.live, "now": it.rebuilt} for it in found.kept
    ]
    if as_json:
        print_json({"read_model": name, "a": first, "b": second, "differences": found.count, "found": listed})
        return 1 if found.count else 0
    shown = listed[:MOST_LISTED]
    if shown:
        print_table(("table", "row", "column", f"at {first}", f"at {second}"), [[*one.values()] for one in shown])
    if found.count > len(shown):
        note(f"{found.count - len(shown):,} more differences are counted, but not listed.")
    note(f"{found.count:,} differences in {name} between positions {first} and {second}.")
    return 1 if found.count else 0
