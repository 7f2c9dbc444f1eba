"""Does the database respond at all? So that a query that hangs can be told from one that takes its time."""

from __future__ import annotations

import asyncio
from contextvars import Context
from datetime import timedelta
from typing import Final

import psycopg

from application.ports import Unavailable
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.postgres.cutting import cut_after

LONG: Final = timedelta(seconds=1)
"""A query that takes longer has the database's pulse felt."""

ANSWERS_WITHIN: Final = timedelta(milliseconds=800)
"""A database that does not even answer `SELECT 1` in that time hangs: with `LONG` less than two seconds."""


class Pulse:
    """Felt over a connection of its own, once for all who ask at the same time.

    Attributes:
        is_lost: it was not there the last time.
    """

    def __init__(self, dsn: str) -> None:
        self._connection = ReconnectingConnection(dsn, name="pulse", statement_timeout=LONG, read_only=True)
        self._feeling: asyncio.Task[bool] | None = None
        self.is_lost = False

    @property
    def is_being_felt(self) -> bool:
        return self._feeling is not None and not self._feeling.done()

    async def beats(self) -> bool:
        """Does it?"""
        if self._feeling is None or self._feeling.done():
            self._feeling = asyncio.create_task(self._feel(), name="pulse of the database", context=Context())
        # Not cancelled with whoever waits, and no longer than it may take: a connect without an answer takes longer.
        await asyncio.wait({self._feeling}, timeout=ANSWERS_WITHIN.total_seconds())
        self.is_lost = not self._feeling.done() or not self._feeling.result()
        return not self.is_lost

    async def close(self) -> None:
        if self._feeling is not None:
            self._feeling.cancel()
            await asyncio.wait({self._feeling})
        await self._connection.close()

    async def _feel(self) -> bool:
        async def ask(connection: Connection) -> None:
            with cut_after(ANSWERS_WITHIN, connection):
                await connection.execute("SELECT 1")

        try:
            await self._connection.execute(ask)
        except (Unavailable, psycopg.Error, OSError):
            return False
        finally:
            await self._connection.close()  # it is felt too rarely to keep a session for it
        return True
