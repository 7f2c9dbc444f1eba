"""Connections of clients: how many there may be, and whose, so that nobody's slow ones keep the others out."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from ipaddress import ip_address
from itertools import islice
from typing import Final, Protocol

from entrypoints.api.client_address import forms_of, network_at
from infrastructure.settings.values import Network

RESERVED: Final = 48
"""File descriptors that connections of clients leave alone: the database's connections, files, mail servers."""

SLOW: Final = timedelta(seconds=1)
"""A connection that has brought no whole request for so long may be ended for another's sake. Between two towns a
request takes a tenth of that, and over a bad mobile connection a second."""


def spare() -> int:
    """Connections that clients may have open: beyond it a file descriptor that we need might be missing."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if descriptors == resource.RLIM_INFINITY else max(8, descriptors - RESERVED)


def shares() -> tuple[int, int]:
    """Connections that registrants and operators may have open where each have a server of their own.

    Together they are what one server alone may have. An eighth is the operators', so that no flood of the others
    keeps them out.
    """
    most = spare()
    operators = max(2, most // 8)
    return most - operators, operators


class Held(Protocol):
    """An open connection.

    Attributes:
        host: the address of its client.
    """

    host: str

    def idle_since(self) -> float | None:
        """When it began to wait for a whole request, by the loop's clock; None while one is worked on."""

    def give_up(self) -> None:
        """End it."""


LOOK_AT: Final = 64
"""Connections of a network, and networks, among which one to end is looked for: a flood must not cost a search."""

SPARED: Final = ""
"""The network of all trusted proxies: theirs are everybody's connections."""


class Connections:
    """Those that are open, by the network of the client.

    Up to `most` everybody may have as many as they like. One more takes the place of one that is worth less: of the
    network that has most, one on which no request is worked on. So whoever opens connections and sends on them slowly,
    or nothing, has at most as many as the others leave; and from many networks, each for a second.
    """

    def __init__(
        self,
        most: int | None = None,
        *,
        network_of: Callable[[str], str] = network_at,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            most: None: as many as the process can spare, this being its only server.
            network_of: the network of an address, `SPARED` if it is nobody's.
            clock: of `Held.idle_since`.
        """
        self._most = spare() if most is None else most
        self._network_of = network_of
        self._clock = clock
        self._count = 0
        self._of: dict[str, dict[Held, None]] = {}  # by network; oldest first
        self._having: dict[int, dict[str, None]] = {}  # networks by how many they have; who came to it first, first
        self._largest = 0

    def enter(self, one: Held, host: str) -> bool:
        """Is there a place for it? If so it has to leave in the end."""
        network = self._network_of(host)
        if self._count >= self._most and not self._make_room(network):
            return False
        theirs = self._of.setdefault(network, {})
        theirs[one] = None
        self._count += 1
        self._moved(network, len(theirs) - 1, len(theirs))
        return True

    def leave(self, one: Held, host: str) -> None:
        """Repeatable, and without effect for one that did not enter."""
        network = self._network_of(host)
        theirs = self._of.get(network, {})
        if one not in theirs:
            return
        del theirs[one]
        self._count -= 1
        self._moved(network, len(theirs) + 1, len(theirs))
        if not theirs:
            del self._of[network]

    def _moved(self, network: str, before: int, now: int) -> None:
        if network == SPARED:
            return
        if before:
            self._having[before].pop(network)
        if now:
            self._having.setdefault(now, {})[network] = None
        self._largest = max(self._largest, now)
        while self._largest and not self._having.get(self._largest):
            self._having.pop(self._largest, None)
            self._largest -= 1

    def _make_room(self, network: str) -> bool:
        """End a connection that is worth less than a new one of this network; is there one?"""
        own = len(self._of.get(network, ())) if network != SPARED else 0
        slow = self._clock() - SLOW.total_seconds()
        for largest in islice(self._having.get(self._largest, ()), LOOK_AT):
            for one in islice(self._of[largest], LOOK_AT):
                since = one.idle_since()
                if since is not None and (self._largest > own + 1 or since < slow):
                    self.leave(one, one.host)
                    one.give_up()
                    return True
        return False


def sparing(proxies: tuple[Network, ...]) -> Callable[[str], str]:
    """The network of an address; `SPARED` for those of trusted proxies."""

    @lru_cache(maxsize=4096)
    def network_of(host: str) -> str:
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return network_at(host)
        is_proxy = any(address in form for network in proxies for form in forms_of(network))
        return SPARED if is_proxy else network_at(host)

    return network_of if proxies else network_at
