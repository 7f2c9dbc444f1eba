"""One database connection that reconnects after a failure, and never hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import psycopg
import structlog
from psycopg.rows import TupleRow

from application.ports import Unavailable
from infrastructure.postgres import binary_arrays
from infrastructure.postgres.addresses import ReachedConnection
from infrastructure.postgres.cutting import cut_after
from infrastructure.postgres.session import Terms, UnfitSession, Use, check_pooling

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

_READ_ONLY = psycopg.errors.ReadOnlySqlTransaction
"""Ends a session, too. It may have inherited that, and keep it though the server takes writes by now; and the primary
may be elsewhere."""

GRACE = timedelta(seconds=1)
"""How long a server may take to report that it has cancelled a statement, before we cut the connection."""

FAIL_FAST = timedelta(milliseconds=250)
"""After a failed connect, calls are refused at once for that long, instead of each trying to connect."""


class ToldConnection(ReachedConnection):
    """One that tells why it cannot be had, so that nobody has to look for it behind an outage: in the log, once for all
    sessions of its kind until one of them can be had."""

    _told: ClassVar[dict[tuple[str, Use], set[str]]] = {}

    @classmethod
    async def connect(  # type: ignore[override]  # see above it
        cls, conninfo: str = "", *, terms: Terms, **parameters: Any
    ) -> Self:
        told = cls._told.setdefault((conninfo, terms.use), set())
        try:
            connection = await super().connect(conninfo, terms=terms, **parameters)
        except UnfitSession as error:
            if str(error) not in told:
                told.add(str(error))
                session = parameters.get("application_name")
                if error.may_pass:
                    log.warning("database.unfit", session=session, hint=str(error))
                else:
                    log.error("database.unfit", session=session, hint=str(error))  # noqa: TRY400 - says it all
            raise
        told.clear()
        return connection


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
        plan_once: bool = False,
    ) -> None:
        """
        Args:
            name: the application_name, after "registrar".
            statement_timeout: enforced by the server; `GRACE` later we cut the connection ourselves.
            lock_timeout: how long a statement waits for a lock.
            read_only: the server refuses to change anything.
            plan_once: for few statements with keys as parameters; see `infrastructure.postgres.session.Terms`.
        """
        self._dsn = dsn
        self._name = name
        self._statement_timeout = statement_timeout
        self._lock_timeout = lock_timeout
        self._read_only = read_only
        self._plan_once = plan_once
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
            except BaseException as error:
                if connection.closed or not is_at_rest(connection) or isinstance(error, _READ_ONLY):
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
                plan_once=self._plan_once,
            )
        except (psycopg.Error, OSError) as error:
            unfit = isinstance(error, UnfitSession)
            failed_at = asyncio.get_running_loop().time()
            if not unfit or failed_at - now > FAIL_FAST.total_seconds():  # one that says no at once may be asked again
                self._refuse_until = failed_at + FAIL_FAST.total_seconds()
            raise Unavailable(str(error) if unfit else "the database is away") from error
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
    plan_once: bool = False,
    quiet: bool = False,
) -> Connection:
    """A session for one task.

    Args:
        plan_once: see `infrastructure.postgres.session.Terms`.
        quiet: whoever asked shows the error; the log says nothing.

    Raises:
        UnfitSession: it cannot have what our sessions rest on; a line that says what to do.
        psycopg.Error, OSError: the database is away.
    """
    terms = Terms("look" if read_only else "write", statement_timeout, lock_timeout, plan_once)
    kind = ReachedConnection if quiet else ToldConnection
    connection = await kind.connect(dsn, terms=terms, **parameters(name))
    binary_arrays.register(connection)
    return connection


async def connect_first(dsn: str, *, name: str, statement_timeout: timedelta, read_only: bool = False) -> Connection:
    """`connect`, quietly, for the first session of a process; it also looks whether a session is ours for as long as we
    keep it.

    Raises:
        UnfitSession: it is not; or see `connect`.
        psycopg.Error, OSError: the database is away.
    """
    connect_quietly = partial(
        connect, dsn, name=name, statement_timeout=statement_timeout, read_only=read_only, quiet=True
    )
    connection = await connect_quietly()
    try:
        other = await connect_quietly()
        async with closing(other):
            await check_pooling(connection, other)
    except BaseException:
        await connection.close()
        raise
    return connection


def parameters(name: str) -> dict[str, Any]:
    """How every connection of this service is made: what libpq takes beside the address.

    No `options`: PgBouncer refuses or drops them, and the URL may have some. See `infrastructure.postgres.session`.
    """
    return {
        "autocommit": True,
        "application_name": f"registrar {name}",
        "client_encoding": "UTF8",
        "tcp_user_timeout": 5000,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
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
    traceback, as a rule after the connection was closed: it tries to fetch what it still expects, and fails where
    nobody can catch it. One that expects nothing just ends (psycopg 3.3.9: findings/psycopg-cancelled-under-load.sh).
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


def is_at_rest(connection: Connection) -> bool:
    """Is it as before the first statement? If a task was cancelled on entering a pipeline, the connection stays in it:
    later statements would succeed and never be committed (findings/psycopg-cancelled-under-load.sh)."""
    info, pq = connection.info, psycopg.pq
    return (info.transaction_status, info.pipeline_status) == (pq.TransactionStatus.IDLE, pq.PipelineStatus.OFF)
