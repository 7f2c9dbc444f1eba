"""A pool of connections for concurrent queries, which replaces broken ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, NamedTuple, TypeVar

from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from application.ports import Unavailable
from infrastructure.postgres.connection import AWAY, GRACE, Connection, ToldConnection, parameters
from infrastructure.postgres.cutting import cut, cut_after
from infrastructure.postgres.pulse import LONG, Pulse
from infrastructure.postgres.session import Terms

T = TypeVar("T")


class Depths(NamedTuple):
    """Connections of a pool, and callers that wait for one."""

    idle: int
    used: int
    waiting: int


class QueryPool(AsyncConnectionPool[ToldConnection]):
    """Up to eight autocommit connections, opened on demand once the pool is open."""

    def __init__(
        self, dsn: str, *, statement_timeout: timedelta, patience: timedelta | None = None, read_only: bool = False
    ) -> None:
        """
        Args:
            patience: how long a query may take in all; by default as long as a statement.
            read_only: the server refuses to change anything.
        """
        super().__init__(
            dsn,
            min_size=1,
            max_size=8,
            max_waiting=16,  # docs/reliability.md, B14: twice the pool; beyond it callers are refused at once
            timeout=2.0,
            reconnect_timeout=0,
            open=False,
            connection_class=ToldConnection,
            kwargs={"terms": Terms("look" if read_only else "read", statement_timeout), **parameters("queries")},
        )
        longest = statement_timeout + GRACE
        self._patience = longest if patience is None else min(longest, patience)
        self._pulse = Pulse(dsn)

    async def close(self, timeout: float = 5.0) -> None:
        await self._pulse.close()
        await super().close(timeout)

    def depths(self) -> Depths:
        """As they are now."""
        found = self.get_stats()
        idle = found["pool_available"]
        return Depths(idle, found["pool_size"] - idle, found["requests_waiting"])

    async def ask(self, select: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a query on a connection of the pool, and on another one if that turns out to be broken.

        It takes no longer than `patience`: the pool itself would wait for an unresponsive database for ever. If the
        database does not respond at all, it takes two seconds, and for the next who ask nothing, but for one at a time.

        Raises:
            Unavailable, one of `AWAY`: the database is away.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience.total_seconds()
        if self._pulse.is_lost and (self._pulse.is_being_felt or not await self._pulse.beats()):
            raise Unavailable(_HANGS)
        for _ in range(self.max_size):
            try:
                async with self.connection() as connection:
                    with cut_after(timedelta(seconds=deadline - loop.time()), connection), self._watched(connection):
                        return await select(connection)
            except (PoolTimeout, PoolClosed, TooManyRequests):
                raise  # there was no connection at all
            except AWAY as error:
                if self._pulse.is_lost:
                    raise Unavailable(_HANGS) from error
                if not connection.broken or loop.time() >= deadline:
                    raise
        raise Unavailable("the database is away")

    @contextmanager
    def _watched(self, connection: Connection) -> Iterator[None]:
        """Cut the connection if the block takes long and the database has no pulse."""
        feeling: list[asyncio.Task[None]] = []

        async def feel() -> None:
            while await self._pulse.beats():  # noqa: ASYNC110 - nobody could tell
                await asyncio.sleep(LONG.total_seconds())
            cut(connection)

        alarm = asyncio.get_running_loop().call_later(
            LONG.total_seconds(), lambda: feeling.append(asyncio.create_task(feel()))
        )
        try:
            yield
        finally:
            alarm.cancel()
            for task in feeling:
                task.cancel()


_HANGS: Final = "the database does not respond"
