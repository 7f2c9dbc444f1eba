"""One database connection that reconnects after a failure, and never hangs."""

from __future__ import annotations

import asyncio
import os
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
import structlog
from psycopg.rows import TupleRow

from application.ports import Unavailable
from infrastructure.postgres import binary_arrays

T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]

log = structlog.get_logger(__name__)

AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    # Of SQLSTATE class 25, which the driver takes for bugs in the database: the server ended a session that took too
    # long, or does not write for now.
    psycopg.errors.TransactionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
)
"""The database is away or cannot do it for now; any other `psycopg.Error` lies in the statement."""

CONNECT_TIMEOUT = timedelta(seconds=2)
"""A database that does not respond for that long counts as away; libpq's minimum is 2 s."""

READ_AS = {"DateStyle": "ISO", "IntervalStyle": "postgres", "TimeZone": "UTC"}
"""The form in which values are sent to us as text. The driver reads times and intervals in no other one: it raises
`NotImplementedError`, which is no `psycopg.Error`. (Either form of `bytea_output` is read, and no text of a statement
depends on `standard_conforming_strings`.)"""

GRACE = timedelta(seconds=1)
"""How long a server may take to report that it has cancelled a statement, before we cut the connection."""

TRANSACTION_STATEMENTS = 3
"""A transaction may take that many times a statement's timeout."""

FAIL_FAST = timedelta(milliseconds=250)
"""After a failed connect, calls are refused at once for that long, instead of each trying to connect."""


class ReconnectingConnection:
    """One connection, for one call at a time.

    If a call gets no response in time, its connection is cut at the socket: a cancellation would have to be sent to the
    very server that does not respond, and wait for it.
    """

    def __init__(
        self,
        dsn: str,
        *,
        name: str,
        statement_timeout: timedelta,
        lock_timeout: timedelta = timedelta(seconds=1),
        read_only: bool = False,
    ) -> None:
        """
        Args:
            name: the application_name, after "registrar".
            statement_timeout: enforced by the server; `GRACE` later we cut the connection ourselves.
            lock_timeout: how long a statement waits for a lock.
            read_only: the server refuses to change anything.
        """
        self._dsn = dsn
        self._name = name
        self._statement_timeout = statement_timeout
        self._lock_timeout = lock_timeout
        self._read_only = read_only
        self._connection: Connection | None = None
        self._refuse_until = 0.0
        self._busy = asyncio.Lock()

    async def execute(self, use: Callable[[Connection], Awaitable[T]]) -> T:
        """Call `use` with the connection (autocommit); a broken one is dropped, and the next call makes a new one.

        Raises:
            Unavailable: no connection could be made; `use` was not called.
            psycopg.Error: from `use`. If the connection is lost, the outcome of the statement is unknown.
        """
        async with self._busy:
            connection = await self._connected()
            try:
                with cut_after(self._statement_timeout + GRACE, connection):
                    return await use(connection)
            except BaseException:
                if connection.closed or not _is_at_rest(connection):
                    await self._drop()
                raise

    async def execute_idempotent(self, use: Callable[[Connection], Awaitable[T]]) -> T:
        """`execute` for what may be done twice: repeated once if the connection turned out to be broken.

        Raises:
            Unavailable: the database is away, or busy (waiting for a lock, or the statement is too slow).
            psycopg.Error: the statement is at fault.
        """
        try:
            return await self.execute(use)
        except AWAY as first:
            if self._connection is not None:  # it is sound: a repeat would wait as long once more, for the same
                raise Unavailable("the database is busy") from first
            try:
                return await self.execute(use)
            except AWAY as error:
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
                read_only=self._read_only,
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
    read_only: bool = False,
) -> Connection:
    """A connection as `session` describes it, with a limit for transactions.

    Raises:
        psycopg.Error, OSError, TimeoutError: the database is away.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds() + 1):
            connection = await psycopg.AsyncConnection.connect(
                dsn,
                **session(
                    name=name, statement_timeout=statement_timeout, lock_timeout=lock_timeout, read_only=read_only
                ),
            )
            try:
                await overrule_environment(connection)
                if connection.info.server_version >= 170000:
                    await _limit_transactions(connection, TRANSACTION_STATEMENTS * statement_timeout)
            except BaseException:
                await connection.close()  # nobody else knows of it yet
                raise
    except (psycopg.Error, TimeoutError) as error:
        # The frames of a connect that got no answer hold its socket, and the error holds the frames: through an outage
        # they would pile up until the garbage collector looks, which it seldom does in a service.
        traceback.clear_frames(error.__traceback__)
        raise
    binary_arrays.register(connection)
    return connection


async def _limit_transactions(connection: Connection, most: timedelta) -> None:
    """Let the server end the session if a transaction takes longer.

    To the server, a client that stops between two messages of a pipeline neither runs a statement nor is idle: no other
    timeout ever ends such a session, with the locks that it holds (measured on 18.4).
    """
    await connection.execute("SELECT set_config('transaction_timeout', %s, false)", (str(_milliseconds(most)),))


async def overrule_environment(connection: Connection) -> None:
    """Have values sent as we read them although PGDATESTYLE or PGTZ is set.

    libpq sends these two beside `options`, and with the server they win. What it reports of itself at the connect
    shows whether they are set, so no one else pays for a round trip.
    """
    for name, value in READ_AS.items():
        reported = connection.info.parameter_status(name)
        if reported is not None and reported.partition(",")[0] != value:  # "ISO, DMY"
            await connection.execute("SELECT set_config(%s, %s, false)", (name, value))


def session(
    *,
    name: str,
    statement_timeout: timedelta,
    lock_timeout: timedelta = timedelta(seconds=1),
    read_only: bool = False,
) -> dict[str, Any]:
    """How every session of this service is opened: what `psycopg.AsyncConnection.connect` takes beside the address.

    Our tables are those in `public`, whatever the role's own search_path begins with. Nor does it matter in which form
    the role, the database or the environment (but for `overrule_environment`) want values to be sent. Text is UTF8; with
    SQL_ASCII it would be `bytes`. Floats have all their digits: a circuit's time is compared with what was read of it.
    """
    read_as = "".join(f" -c {name}={value}" for name, value in READ_AS.items())
    return {
        "autocommit": True,
        "connect_timeout": int(CONNECT_TIMEOUT.total_seconds()),
        "application_name": f"registrar {name}",
        "client_encoding": "UTF8",
        "tcp_user_timeout": 5000,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "options": f"-c statement_timeout={_milliseconds(statement_timeout)}"
        f" -c lock_timeout={_milliseconds(lock_timeout)}"
        f" -c idle_in_transaction_session_timeout=5000 -c search_path=public -c extra_float_digits=1{read_as}"
        + (" -c default_transaction_read_only=on" if read_only else ""),
    }


@asynccontextmanager
async def closing(connection: Connection) -> AsyncIterator[None]:
    """Close it at the end of the block, and with it what the block leaves open.

    The driver's own `async with connection` commits or rolls back first, for which an autocommit session has no use,
    and leaves the connection open if it is cancelled there.
    """
    try:
        yield
    finally:
        await connection.close()


@asynccontextmanager
async def pipeline(connection: Connection) -> AsyncIterator[None]:
    """`connection.pipeline()` that leaves nothing behind when it is interrupted; not to be used inside another one.

    If the wait for its end is cancelled, the driver drops the generator that it waited for. That is finalized with the
    traceback, as a rule after the connection was closed: it tries to fetch what it still expects, and fails where nobody
    can catch it. One that expects nothing just ends (psycopg 3.3.9: findings/psycopg-cancelled-under-load.sh).
    """
    expected = None
    try:
        async with connection.pipeline() as entered:
            expected = entered.result_queue
            yield
    except BaseException:
        if expected is not None:
            expected.clear()
        raise


@contextmanager
def cut_after(patience: timedelta, connection: Connection) -> Iterator[None]:
    """Cut the connection at the socket if the block takes longer: it then fails, instead of hanging."""
    alarm = asyncio.get_running_loop().call_later(patience.total_seconds(), _cut, connection)
    try:
        yield
    finally:
        alarm.cancel()


def _is_at_rest(connection: Connection) -> bool:
    """Is it as before the first statement? If a task was cancelled on entering a pipeline, the connection stays in it:
    later statements would succeed and never be committed (findings/psycopg-cancelled-under-load.sh)."""
    info, pq = connection.info, psycopg.pq
    return (info.transaction_status, info.pipeline_status) == (pq.TransactionStatus.IDLE, pq.PipelineStatus.OFF)


def _milliseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def _cut(connection: Connection) -> None:
    log.warning("database.no_answer", hint="the connection is cut; look at the database server")
    # A duplicate, so that closing it leaves libpq's own descriptor alone.
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)
