"""The followers of the log: where each of them is."""

from __future__ import annotations

from dataclasses import asdict

from entrypoints.bootstrap import followers_with
from entrypoints.cli.output import print_json, print_table
from entrypoints.queries.registrations import followers_of
from entrypoints.service import Reader


async def list_followers(reader: Reader, *, as_json: bool) -> int:
    """Print every follower that ever ran on this database."""
    async with reader.pool.connection() as connection:
        found = await followers_of(connection, followers_with(reader.settings))
    if as_json:
        print_json([asdict(one) | {"head": found.head} for one in found.items])
        return 0
    print_table(
        ("name", "status", "position", "head", "lag", "lag (s)", "parked streams", "updated at"),
        (
            (
                *(one.name, one.status, one.position, found.head, one.lag_events, f"{one.lag_seconds:.1f}"),
                *(one.parked_streams, one.updated_at),
            )
            for one in found.items
        ),
    )
    return 0
