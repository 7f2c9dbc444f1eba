"""A line to whichever of a host's addresses answers first."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

from aiohappyeyeballs import AddrInfoType, start_connection

HEAD_START: Final = timedelta(milliseconds=250)
"""Of each address before the next; RFC 8305, section 5, recommends it."""


NO_HOST_NAME: Final = "a part of the name between two dots is empty or too long"


async def look_up(host: str, port: int | str, *, flags: int = 0) -> Sequence[AddrInfoType]:
    """The host's addresses for TCP, as `getaddrinfo` has them.

    Raises:
        OSError: it has none; also for what is no host name, of which Python itself says `UnicodeError`.
    """
    wanted = {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}
    try:
        with suppress(socket.gaierror):  # an address needs no look-up, and no thread that waits for one
            return socket.getaddrinfo(host, port, flags=flags | socket.AI_NUMERICHOST, **wanted)
        return await asyncio.get_running_loop().getaddrinfo(host, port, flags=flags, **wanted)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, NO_HOST_NAME) from None


async def reach(host: str, port: int, *, rank: Callable[[str], float] = lambda _: 0.0) -> socket.socket:
    """Connect to the first of the host's addresses that answers: one without a route cannot use up the others' time.

    Args:
        rank: of an address; those with the lowest are tried first, and equals in the resolver's order.

    Raises:
        OSError: none answers, or there is none.
    """
    found = await look_up(host, port)
    addresses = sorted(found, key=lambda one: rank(str(one[4][0])))
    return await start_connection(addresses, happy_eyeballs_delay=HEAD_START.total_seconds())


async def open_streams(
    host: str, port: int, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`asyncio.open_connection`, at whichever address answers first.

    Raises:
        OSError: see `reach`; also where there is no trustworthy encryption.
    """
    line = await reach(host, port)
    return await asyncio.open_connection(sock=line, ssl=tls, server_hostname=host if tls else None)
