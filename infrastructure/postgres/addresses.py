"""A connection to whichever of the database's addresses answers: each has a share of the time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any, ClassVar, Final, NamedTuple, Self

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from infrastructure.postgres.cutting import cut_after
from infrastructure.postgres.session import Terms, UnfitSession, settle
from infrastructure.reach import NO_HOST_NAME, look_up

CONNECT_TIMEOUT: Final = timedelta(seconds=3)
"""A database that has not let us in by then counts as away, unless it has more addresses than that gives `SHARE`."""

SHARE: Final = timedelta(seconds=1)
"""The least that each address has for all of it: TCP, TLS, the password, and the settings of the session."""

LOOK_UP: Final = CONNECT_TIMEOUT / 3
"""For the addresses of a name: one that nobody resolves leaves time for the others."""


class _Address(NamedTuple):
    """Of one server; empty where libpq is to find it."""

    host: str
    port: str
    hostaddr: str

    @property
    def shown(self) -> str:
        where = self.hostaddr or self.host
        return f"{f'[{where}]' if ':' in where else where}:{self.port}"


_LEFT_TO_LIBPQ: Final = _Address("", "", "")


class ReachedConnection(psycopg.AsyncConnection[TupleRow]):
    """A connection to the first address of its URL that lets us in and gives us the session that we want.

    In order, as the URL and the resolver have them, but for the one that did last time, which is the first. Each has an
    equal share of the time that is left, so that none can use up that of the others: an address without a route and a
    host that was switched off answer nothing at all. (RFC 8305 would have them all tried at once; here an attempt makes
    a process on the server.)
    """

    _reached: ClassVar[dict[str, _Address]] = {}

    @classmethod
    async def connect(  # type: ignore[override]  # narrower: ours are always given terms
        cls, conninfo: str = "", *, terms: Terms, **parameters: Any
    ) -> Self:
        """
        Raises:
            UnfitSession: see `infrastructure.postgres.session.settle`.
            psycopg.Error, OSError: it is away.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        addresses = await cls._in_order(conninfo)
        deadline = max(began + CONNECT_TIMEOUT.total_seconds(), loop.time() + len(addresses) * SHARE.total_seconds())
        failures: list[tuple[str, psycopg.Error]] = []
        for number, address in enumerate(addresses):
            ends = loop.time() + (deadline - loop.time()) / (len(addresses) - number)
            try:
                connection = await cls._try(conninfo, address, ends, terms, parameters)
            except psycopg.Error as error:
                # Without its frames, which hold what was tried: see below.
                failures.append((address.shown, error.with_traceback(None)))
            else:
                cls._reached[conninfo] = address
                return connection
        try:
            raise _summary(failures)
        finally:
            # An error holds the frame that raises it. Were it held by that in turn, then it would stay until the
            # garbage collector looks, which it seldom does in a service.
            failures.clear()

    @classmethod
    async def _in_order(cls, conninfo: str) -> list[_Address]:
        addresses = await _addresses(conninfo)
        first = cls._reached.get(conninfo)
        return sorted(addresses, key=lambda one: one != first)

    @classmethod
    async def _try(
        cls, conninfo: str, address: _Address, ends: float, terms: Terms, parameters: dict[str, Any]
    ) -> Self:
        where = {} if address == _LEFT_TO_LIBPQ else address._asdict()
        loop = asyncio.get_running_loop()
        connection: Self | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout_at(ends):
                connection = await cls._connect(conninfo, **(parameters | where))
        if connection is None:
            # Raised where the TimeoutError is gone: it would be the context of ours, and keep the socket open.
            raise psycopg.errors.ConnectionTimeout("no answer in time")
        try:
            with cut_after(timedelta(seconds=ends - loop.time()), connection):
                await settle(connection, terms)
        except BaseException as error:
            await connection.close()  # nobody else knows of it yet
            if isinstance(error, UnfitSession) or not isinstance(error, psycopg.Error) or loop.time() < ends:
                raise
        else:
            return connection
        raise UnfitSession(
            "it lets us in, but answers no query",
            "is every connection of the pooler, or the server, taken?",
            may_pass=True,
        )

    @classmethod
    async def _connect(cls, conninfo: str, **parameters: Any) -> Self:
        try:
            return await super().connect(conninfo, **parameters)
        except UnicodeError:
            raise psycopg.OperationalError(f"failed to resolve host: {NO_HOST_NAME}") from None


async def _addresses(conninfo: str) -> list[_Address]:
    """Every address of every host; one that cannot be looked up is left to libpq, which says so."""
    hosts, hostaddrs, ports = _given(conninfo)
    count = max(len(hosts), len(hostaddrs))
    if len(ports) == 1:
        ports *= count
    if not count or {len(hosts), len(hostaddrs), len(ports)} - {0} != {count}:
        return [_LEFT_TO_LIBPQ]  # which has a place of its own to look, or refuses it with a reason
    every = zip(hosts or [""] * count, ports, hostaddrs or [""] * count, strict=True)
    found = await asyncio.gather(*(_resolved(_Address(host, port or "5432", to)) for host, port, to in every))
    return [address for addresses in found for address in addresses]


def _given(conninfo: str) -> tuple[list[str], list[str], list[str]]:
    """Hosts, their addresses and their ports: of the URL, or as libpq finds them (a service file, PGHOST, PGPORT)."""
    # Only a connection shows what libpq makes of a service. This one fails before anything is connected to.
    looking = psycopg.pq.PGconn.connect_start(make_conninfo(conninfo, sslmode="none of its modes").encode())
    found = {option.keyword: (option.val or b"").decode() for option in looking.info}
    looking.finish()
    hosts, hostaddrs, ports = (
        found[name].split(",") if found[name] else [] for name in (b"host", b"hostaddr", b"port")
    )
    return hosts, hostaddrs, ports


async def _resolved(address: _Address) -> list[_Address]:
    host, port, hostaddr = address
    if hostaddr or not host or host.startswith(("/", "@")):
        return [address]
    try:
        async with asyncio.timeout(LOOK_UP.total_seconds()):
            infos = await look_up(host, port)
    except (OSError, TimeoutError):
        return [address]
    return [_Address(host, port, str(info[4][0])) for info in infos]


def _summary(failures: list[tuple[str, psycopg.Error]]) -> psycopg.Error:
    """The one failure, or all of them in one line; unfit if any server answered, and then with its advice, as the
    others say less."""
    if len(failures) == 1:
        return failures[0][1]
    line = "; ".join(
        f"{where}: {error.says if isinstance(error, UnfitSession) else first_line(error)}" for where, error in failures
    )
    unfit = [error for _, error in failures if isinstance(error, UnfitSession)]
    if not unfit:
        return psycopg.OperationalError(line)
    advice = "; ".join(dict.fromkeys(error.advice for error in unfit))
    return UnfitSession(line, advice, may_pass=all(error.may_pass for error in unfit))


def first_line(error: BaseException) -> str:
    """What it says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
