"""Whose request it is, as far as limits can tell: the network that it comes from."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

from starlette.types import Scope

from application.commands import UNKNOWN_NETWORK
from infrastructure.settings.values import Network

UNKNOWN: Final = UNKNOWN_NETWORK

SITE: Final = 64
"""Bits of an IPv6 address that one subscriber is given at least (RFC 6177); the others are theirs to change."""

PROVIDER: Final = 48
PROVIDER_V4: Final = 24
"""Bits of the larger network, of which one customer of a provider often has all (docs/security.md, S13)."""


class Requester(NamedTuple):
    """
    Attributes:
        network: the IPv4 address, or the /64 of the IPv6 address.
        larger: the /24 or the /48 around it.
        is_loopback: comes from this machine.
    """

    network: str
    larger: str
    is_loopback: bool


def network_of(scope: Scope) -> str:
    """The requester's network: an IPv4 address, or the /64 of an IPv6 address (docs/security.md, S13)."""
    return requester_of(scope).network


def requester_of(scope: Scope) -> Requester:
    """Whose request it is. Someone whose address cannot be read is of the network `UNKNOWN`."""
    client = scope.get("client")
    return _requester_at(client[0]) if client else _NOBODY


def network_at(host: str) -> str:
    """The network of a client with this address."""
    return _requester_at(host).network


def is_forwarded(scope: Scope) -> bool:
    """Does a proxy say for whom it asks, whether it is believed or not?"""
    return any(name == b"x-forwarded-for" for name, _ in scope["headers"])


_NOBODY: Final = Requester(UNKNOWN, UNKNOWN, is_loopback=False)


@lru_cache(maxsize=4096)
def _requester_at(host: str) -> Requester:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return _NOBODY
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            site, provider = (str(ip_network((address, bits), strict=False)) for bits in (SITE, PROVIDER))
            return Requester(site, provider, address.is_loopback)
        address = address.ipv4_mapped
    provider = str(ip_network((address, PROVIDER_V4), strict=False))
    return Requester(str(address), provider, address.is_loopback)


def forms_of(network: Network) -> tuple[Network, ...]:
    """The network as its addresses may come: a socket for both kinds shows an IPv4 address in IPv6."""
    if isinstance(network, IPv6Network):
        return (network,)
    return network, IPv6Network(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
