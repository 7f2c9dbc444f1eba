"""Line: one database connection that is made again when it breaks, and never hangs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import psycopg
import structlog
from psycopg.rows import TupleRow

from application.ports import Unavailable
from infrastructure import arrays

T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT = timedelta(seconds=2)
"""A database that does not answer for that long counts as away; libpq takes no less than 2 s."""

FAIL_FAST = timedelta(milliseconds=250)
"""After a failed connect, calls are refused at once for that long instead of each waiting for a connect of its own."""


class Line:
    """One connection, for one call at a time.

    A call that gets no answer within its time has its connection cut at the socket: cancelling would ask the very
    server that does not answer, and wait for it.
    """

    def __init__(
        self,
        dsn: str,
        *,
        name: str,
        statement_timeout: timedelta,
        lock_timeout: timedelta = timedelta(seconds=1),
    ) -> None:
        """
        Args:
            name: shown as application_name in the server's lists.
            statement_timeout: enforced by the server; one second later we cut the connection ourselves.
            lock_timeout: how long a statement waits for a lock.
        """
        self._dsn = dsn
        self._name = name
        self._statement_timeout = statement_timeout
        self._lock_timeout = lock_timeout
        self._connection: Connection | None = None
        self._refuse_until = 0.0
        self._busy = asyncio.Lock()

    async def run(self, use: Callable[[Connection], Awaitable[T]]) -> T:
        """Call `use` with the connection (autocommit); a broken one is dropped, and the next call makes a new one.

        Raises:
            Unavailable: no connection could be made; `use` was not called.
            psycopg.Error: from `use`. If the connection is gone afterwards, what became of the statement is unknown.
        """
        async with self._busy:
            connection = await self._connected()
            patience = (self._statement_timeout + timedelta(seconds=1)).total_seconds()
            alarm = asyncio.get_running_loop().call_later(patience, _cut, connection)
            try:
                return await use(connection)
            except BaseException:
                if connection.closed or connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    await self._drop()
                raise
            finally:
                alarm.cancel()

    async def ask(self, use: Callable[[Connection], Awaitable[T]]) -> T:
        """`run` for what may be done twice: repeated once if the connection turned out to be broken.

        Raises:
            Unavailable: the database is away.
            psycopg.Error: the statement is at fault.
        """
        try:
            return await self.run(use)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            try:
                return await self.run(use)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                raise Unavailable("the database is away") from error

    async def close(self) -> None:
        async with self._busy:
            await self._drop()

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        now = asyncio.get_running_loop().time()
        if now < self._refuse_until:
            raise Unavailable("the database is away")
        try:
            connection = await connect(
                self._dsn,
                name=self._name,
                statement_timeout=self._statement_timeout,
                lock_timeout=self._lock_timeout,
            )
        except (psycopg.Error, OSError, TimeoutError) as error:
            self._refuse_until = asyncio.get_running_loop().time() + FAIL_FAST.total_seconds()
            raise Unavailable("the database is away") from error
        self._connection = connection
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def connect(
    dsn: str,
    *,
    name: str,
    statement_timeout: timedelta,
    lock_timeout: timedelta = timedelta(seconds=1),
) -> Connection:
    """An autocommit connection with the timeouts of this service, in UTC.

    Raises:
        psycopg.Error, OSError, TimeoutError: the database is away.
    """
    async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds() + 1):
        connection = await psycopg.AsyncConnection.connect(
            dsn,
            autocommit=True,
            connect_timeout=int(CONNECT_TIMEOUT.total_seconds()),
            application_name=f"registrar {name}",
            tcp_user_timeout=5000,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            options=f"-c statement_timeout={_milliseconds(statement_timeout)}"
            f" -c lock_timeout={_milliseconds(lock_timeout)}"
            f" -c idle_in_transaction_session_timeout=5000 -c timezone=UTC",
        )
    arrays.register(connection)
    return connection


def _milliseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def _cut(connection: Connection) -> None:
    log.warning("database.no_answer", hint="the connection is cut; look at the database server")
    # A duplicate, so that closing it leaves libpq's own descriptor alone.
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)
