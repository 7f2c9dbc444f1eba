"""Brings a copy to the very position of a follower that goes on meanwhile, and compares the two there."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

from domain.recorded import Position
from infrastructure.event_store.reader import ReadsLog
from infrastructure.postgres.connection import Connection
from infrastructure.replay.comparison import Differences, at_one_moment, compared, live_position
from infrastructure.replay.copies import Copy
from infrastructure.replay.sessions import looking, replaying
from infrastructure.replay.swap import CannotReplay

FREE_ATTEMPTS: Final = 5
"""A projector rests for most of the time, so a moment at which both are at the same position comes soon as a rule; then
it is held up for as long as it takes to fold what it is ahead."""

PAUSE: Final = timedelta(milliseconds=20)

PATIENCE: Final = timedelta(seconds=30)
"""How long a live read model that is behind its copy may stay there."""


async def agreed(
    dsn: str,
    connection: Connection,
    log: ReadsLog,
    copy: Copy,
    name: str,
    schema: str,
    *,
    without: Collection[Position] = (),
) -> Differences:
    """Compare a copy with what a follower keeps in a schema, both at one position of the log.

    Args:
        connection: the session that writes the copy.
        without: positions of events that are not told to the copy.

    Raises:
        CannotReplay: the two did not meet.
    """
    async with AsyncExitStack() as stack:
        looker = await stack.enter_async_context(looking(dsn, name=f"compare {copy.of}"))
        await _until_not_behind(connection, copy, name)
        position = None
        for attempt in range(1, FREE_ATTEMPTS + 2):
            async with AsyncExitStack() as held:
                if attempt > FREE_ATTEMPTS:
                    holder = await held.enter_async_context(replaying(dsn, name=f"hold {name}"))
                    await held.enter_async_context(holder.transaction())
                    await holder.execute("SET LOCAL idle_in_transaction_session_timeout = '1s'")
                    await holder.execute("SELECT FROM public.followers WHERE name = %s FOR UPDATE", (name,))
                await copy.fill(connection, log, await live_position(connection, name), without=without)
                moment = AsyncExitStack()
                position = await moment.enter_async_context(at_one_moment(looker, name, copy.name))
            if position is not None:
                stack.push_async_exit(moment)
                return await compared(looker, copy.of, schema, copy.schema, position)
            await moment.aclose()
    raise CannotReplay(f"{name} has moved while it was held; try again.")


async def _until_not_behind(connection: Connection, copy: Copy, name: str) -> None:
    """A copy that was filled when the live one was ahead of where it is now has to wait for it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE.total_seconds()
    while await live_position(connection, name) < await copy.position(connection):
        if loop.time() > deadline:
            raise CannotReplay(f"{name} is behind its copy; is `registrar up` or `registrar process` running?")
        await asyncio.sleep(PAUSE.total_seconds())
