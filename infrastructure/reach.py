"""A line to whichever of a host's addresses answers first."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from aiohappyeyeballs import start_connection

HEAD_START: Final = timedelta(milliseconds=250)
"""Of each address before the next; RFC 8305, section 5, recommends it."""


async def reach(host: str, port: int, *, rank: Callable[[str], float] = lambda _: 0.0) -> socket.socket:
    """Connect to the first of the host's addresses that answers: one without a route cannot use up the others' time.

    Args:
        rank: of an address; those with the lowest are tried first, and equals in the resolver's order.

    Raises:
        OSError: none answers, or there is none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    addresses = sorted(found, key=lambda one: rank(str(one[4][0])))
    return await start_connection(addresses, happy_eyeballs_delay=HEAD_START.total_seconds())
