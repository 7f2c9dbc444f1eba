"""Brings a copy to the very position of a follower that goes on meanwhile, and compares the two there."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from typing import Final

from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog
from infrastructure.postgres.connection import Connection
from infrastructure.replay.comparison import Differences, at_one_moment, compared, live_position
from infrastructure.replay.copies import Copy
from infrastructure.replay.swap import CannotReplay

PAUSE: Final = timedelta(milliseconds=5)

PATIENCE: Final = timedelta(seconds=30)
"""A projector rests for most of the time, so a moment at which both are at the same position comes soon; not if the live
one is behind, and nobody leads it."""


async def agreed(
    connection: Connection,
    looker: Connection,
    log: ReadsLog,
    copy: Copy,
    name: str,
    schema: str,
    *,
    without: Collection[Position] = (),
) -> Differences:
    """Compare a copy with what a follower keeps in a schema, both at one position of the log.

    Args:
        connection, looker: the session that writes the copy, and one that looks at both.
        without: positions of events that are not told to the copy.

    Raises:
        CannotReplay: the two did not meet.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE.total_seconds()
    while loop.time() < deadline:
        await copy.fill(connection, log, await live_position(connection, name), without=without)
        async with at_one_moment(looker, name, copy.name) as position:
            if position is not None:
                return await compared(looker, copy.of, schema, copy.schema, position)
        await asyncio.sleep(PAUSE.total_seconds())
    raise CannotReplay(
        f"{name} is behind its copy, or moves on too fast to be compared; is `registrar up` or `registrar process` running?"
    )
