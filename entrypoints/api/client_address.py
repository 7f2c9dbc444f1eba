"""Whose request it is, as far as limits can tell: the network that it comes from."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from starlette.types import Scope

UNKNOWN: Final = "unknown"
"""The network of who has no address: on a Unix socket, or behind a proxy that names none. They share one."""

SITE: Final = 64
"""Bits of an IPv6 address that one subscriber is given at least (RFC 6177); the others are theirs to change."""


def network_of(scope: Scope) -> str:
    """The requester's network: an IPv4 address, or the /64 of an IPv6 address (docs/security.md, S13)."""
    client = scope.get("client")
    try:
        address = ip_address(client[0].partition("%")[0]) if client else None
    except ValueError:
        return UNKNOWN
    if address is None:
        return UNKNOWN
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(ip_network((address, SITE), strict=False))
        address = address.ipv4_mapped
    return str(address)
