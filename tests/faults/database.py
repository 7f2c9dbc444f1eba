"""What can happen to a database and on the way to it: sessions killed, answers lost, processes killed and stopped."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol, Self

import psutil  # type: ignore[import-untyped]
import psycopg

from infrastructure.embedded.postgres import EmbeddedPostgres
from tests.support.tcp_proxy import TO_CLIENT, TO_SERVER, TcpProxy

# --- What is lost on the way ------------------------------------------------------------------

Inject = Callable[[TcpProxy], None]

ANSWER: Final = b"first_position"  # a column of the answer to an append
READY: Final = b"Z\x00\x00\x00\x05I"  # ReadyForQuery, what comes after the commit
REQUEST: Final = b"append_batch"

ANSWER_LOST: Final[dict[str, Inject]] = {
    "the whole answer": lambda proxy: proxy.cut(TO_CLIENT, ANSWER, forward=False),
    "the end of the answer": lambda proxy: proxy.cut(TO_CLIENT, READY, forward=False),
}
REQUEST_LOST: Final[dict[str, Inject]] = {
    "the whole request": lambda proxy: proxy.cut(TO_SERVER, REQUEST, forward=False),
    "the end of the request": lambda proxy: proxy.cut(TO_SERVER, REQUEST, forward=True),
}
LOST: Final = ANSWER_LOST | REQUEST_LOST

# --- Sessions killed again and again ----------------------------------------------------------

SESSIONS: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"


class Killer:
    """Ends sessions after every answer, a moment later each time.

    Args:
        application: whose sessions, as a pattern of LIKE.
    """

    def __init__(self, dsn: str, application: str = "registrar append") -> None:
        self.killed = 0
        self.answered = asyncio.Event()
        self._dsn = dsn
        self._application = application
        self._chance = random.Random(7)  # noqa: S311 - a test's dice

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._kill())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _kill(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            while True:
                await self.answered.wait()
                self.answered.clear()
                for _ in range(self._chance.randrange(12)):
                    await connection.execute("SELECT")
                cursor = await connection.execute(
                    f"{SESSIONS} AND application_name LIKE %s".encode(), (self._application,)
                )
                self.killed += len(await cursor.fetchall())


# --- A database that hangs --------------------------------------------------------------------


class Hang(Protocol):
    """A database that takes requests and does not answer, until it is healed."""

    def inject(self) -> None: ...

    def heal(self) -> None: ...

    @property
    def is_effective(self) -> bool: ...


class BlackHole:
    """Nothing comes back through the proxy."""

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy

    def inject(self) -> None:
        self._proxy.hold(TO_CLIENT)

    def heal(self) -> None:
        self._proxy.heal()

    @property
    def is_effective(self) -> bool:
        return self._proxy.is_effective


class Stopped:
    """Every process of the server is stopped (SIGSTOP)."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._processes: list[psutil.Process] = []

    def inject(self) -> None:
        # The postmaster first: then no more are forked.
        postmaster = psutil.Process(self._server.pid)
        postmaster.suspend()
        self._processes = [postmaster, *postmaster.children(recursive=True)]
        for process in self._processes:
            process.suspend()

    def heal(self) -> None:
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    @property
    def is_effective(self) -> bool:
        """To be asked before it is healed."""
        states = {process.status() for process in self._processes}
        return psutil.STATUS_STOPPED in states and states <= {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}


@contextmanager
def healed(hang: Hang) -> Iterator[Hang]:
    """The hang, ended whatever happens: a server that stays stopped could not even be shut down."""
    try:
        yield hang
    finally:
        hang.heal()
