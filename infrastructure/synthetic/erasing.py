"""The end of every synthetic registration: its key, its address and its account are erased."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

import psycopg
import structlog

from application.ports import Unavailable
from infrastructure.postgres.connection import Connection, closing, connect
from infrastructure.synthetic import records

log = structlog.get_logger(__name__)

LATE: Final = timedelta(minutes=10)
"""A request that was never answered is not carried out any later than that, and no probe is about it any more."""

Erase = Callable[[UUID, UUID], Awaitable[bool]]
"""Erases a registration under a correlation id; False: there is none."""


async def erase_left(connection: Connection, erase: Erase, *, since: timedelta = timedelta(0)) -> None:
    """Erase what may be an account: that of the last run, and of those that a process did not survive.

    Args:
        since: what was begun later than so long ago is left alone.
    """
    for registration_id, age in await records.not_erased(connection):
        if age < since.total_seconds():
            continue
        try:
            erased = await erase(registration_id, uuid4())
        except Exception as error:  # noqa: BLE001 - one that cannot be erased must not end the looking
            log.error(  # noqa: TRY400 - the trace could carry values
                "synthetic.not_erased",
                registration_id=str(registration_id),
                error=type(error).__name__,
                hint="it is tried again after the next one",
            )
            continue
        if erased or age > LATE.total_seconds():
            await records.note_erased(connection, registration_id)
    await records.forget_old(connection)


async def without_probe(dsn: str, erase: Erase, *, statement_timeout: timedelta, every: timedelta) -> None:
    """Erase, for ever, what is left of a probe that is set no more; one that runs elsewhere is not disturbed."""
    while True:
        await asyncio.sleep(every.total_seconds())
        try:
            connection = await connect(dsn, name="synthetic leftovers", statement_timeout=statement_timeout)
            async with closing(connection):
                await erase_left(connection, erase, since=LATE)
        except (psycopg.Error, Unavailable, OSError, TimeoutError) as error:
            log.warning("synthetic.not_looked_for", error=type(error).__name__, hint="the next look comes")
