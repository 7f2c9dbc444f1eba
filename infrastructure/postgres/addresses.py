"""A connection to whichever of the database's addresses answers: each has a share of the time."""

from __future__ import annotations

import asyncio
import socket
import traceback
from datetime import timedelta
from typing import Any, ClassVar, Final, NamedTuple, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from infrastructure.postgres.cutting import cut_after
from infrastructure.postgres.session import Terms, UnfitSession, settle

CONNECT_TIMEOUT: Final = timedelta(seconds=3)
"""A database that has not let us in by then, at any of its addresses, counts as away."""


class _Address(NamedTuple):
    """Of one server; empty where libpq is to find it."""

    host: str
    port: str
    hostaddr: str


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
        deadline = loop.time() + CONNECT_TIMEOUT.total_seconds()
        failures: dict[str, psycopg.Error] = {}
        addresses = await cls._in_order(conninfo, deadline)
        for number, address in enumerate(addresses):
            ends = loop.time() + (deadline - loop.time()) / (len(addresses) - number)
            try:
                connection = await cls._try(conninfo, address, ends, terms, parameters)
            except psycopg.Error as error:
                # The frames of a connect that got no answer hold its socket, and the error holds the frames: through an
                # outage they would pile up until the garbage collector looks, which it seldom does in a service.
                traceback.clear_frames(error.__traceback__)
                failures[address.hostaddr or address.host] = error
            else:
                cls._reached[conninfo] = address
                return connection
        raise _summary(failures)

    @classmethod
    async def _in_order(cls, conninfo: str, deadline: float) -> list[_Address]:
        addresses = await _addresses(conninfo, deadline)
        first = cls._reached.get(conninfo)
        return sorted(addresses, key=lambda one: one != first)

    @classmethod
    async def _try(
        cls, conninfo: str, address: _Address, ends: float, terms: Terms, parameters: dict[str, Any]
    ) -> Self:
        where = {name: value for name, value in address._asdict().items() if value}
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(ends):
                connection = await super().connect(conninfo, **(parameters | where))
        except TimeoutError:
            raise psycopg.errors.ConnectionTimeout("no answer in time") from None
        try:
            with cut_after(timedelta(seconds=ends - loop.time()), connection):
                await settle(connection, terms)
        except UnfitSession:
            await connection.close()
            raise
        except BaseException as error:
            await connection.close()  # nobody else knows of it yet
            if isinstance(error, psycopg.Error) and loop.time() >= ends:
                raise UnfitSession(
                    "it lets us in, but answers no query; is every connection of the pooler, or the server, taken?"
                ) from None
            raise
        return connection


async def _addresses(conninfo: str, deadline: float) -> list[_Address]:
    """Every address of every host; one that cannot be looked up is left to libpq, which says so."""
    given = conninfo_to_dict(conninfo)
    if not given.get("host") or given.get("hostaddr"):
        return [_Address("", "", "")]
    hosts = str(given["host"]).split(",")
    ports = str(given.get("port") or "5432").split(",")
    if len(ports) not in {1, len(hosts)}:
        return [_Address("", "", "")]  # libpq refuses that, with a reason
    pairs = zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False)
    found = await asyncio.gather(*(_resolved(host, port or "5432", deadline) for host, port in pairs))
    return [address for addresses in found for address in addresses]


async def _resolved(host: str, port: str, deadline: float) -> list[_Address]:
    if not host or host.startswith(("/", "@")):
        return [_Address(host, port, "")]
    loop = asyncio.get_running_loop()
    try:
        # A third, so that one name that nobody resolves leaves time for the others.
        async with asyncio.timeout((deadline - loop.time()) / 3):
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, TimeoutError):
        return [_Address(host, port, "")]
    return [_Address(host, port, str(info[4][0])) for info in infos]


def _summary(failures: dict[str, psycopg.Error]) -> psycopg.Error:
    """The one failure, or all of them in one line; unfit if any server answered, as the others say less."""
    if len(failures) == 1:
        return next(iter(failures.values()))
    unfit = [error for error in failures.values() if isinstance(error, UnfitSession)]
    line = "; ".join(f"{where}: {first_line(error)}" for where, error in failures.items())
    return UnfitSession(line) if unfit else psycopg.OperationalError(line)


def first_line(error: BaseException) -> str:
    """What it says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
