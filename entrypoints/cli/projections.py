"""The followers of the log: where each of them is."""

from __future__ import annotations

from dataclasses import asdict

from entrypoints.bootstrap.desk import Reader
from entrypoints.cli.output import print_json, print_table


async def list_followers(reader: Reader, *, as_json: bool) -> int:
    """Print where every follower is that there should be, also of one that never ran, and where the versions of read
    models are that other releases follow, or followed."""
    found = await reader.followers.listed()
    listed = [(one.progress, one.status) for one in found.items]
    if as_json:
        print_json(
            [asdict(one) | {"version": one.version, "status": status, "head": found.head} for one, status in listed]
        )
        return 0
    print_table(
        (
            "name",
            "version",
            "status",
            "position",
            "head",
            "lag",
            "lag (s)",
            "parked streams",
            "updated at",
            "verified at",
            "mismatches",
        ),
        (
            (
                *(one.name, one.version, status, one.position, found.head, one.lag_events, f"{one.lag_seconds:.1f}"),
                *(one.parked_streams, one.updated_at, one.verified_at, one.mismatches),
            )
            for one, status in listed
        ),
    )
    return 0
