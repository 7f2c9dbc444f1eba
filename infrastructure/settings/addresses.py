"""Which addresses may be called: none of this machine, its network or its cloud, unless an operator says so.

Whoever names an endpoint need not be who runs this service; a name's owner can have it mean any address, at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from infrastructure.settings.values import Network

_IN_IPV6: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("::/96"))
"""What holds an IPv4 address in its last 32 bits, and is delivered to it: NAT64 (RFC 6052), compatible (RFC 4291)."""

_NOT_PUBLIC: Final = (ip_network("168.63.129.16/32"), ip_network("fec0::/10"), ip_network("3fff::/20"))
"""Public by their numbers, and not in fact: Azure's own services for a machine; site-local addresses (RFC 3879); those
of documents (RFC 9637), which Python 3.11 does not know."""


@dataclass(frozen=True, slots=True)
class Reachable:
    """What may be called.

    Attributes:
        networks: that are not public, and may be called all the same; also without encryption.
    """

    networks: Sequence[Network]

    def allows(self, address: str, *, encrypted: bool) -> bool:
        """May this address be called? As the resolver gives it, maybe with a zone behind a percent sign."""
        found = _meant(address)
        if any(found in network for network in self.networks):
            return True
        return encrypted and is_public(found)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Is it one of the internet, and of one machine there?"""
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _meant(address: str) -> IPv4Address | IPv6Address:
    """The address that packets to this one reach."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv4Address):
        return found
    if found.ipv4_mapped is not None:
        return found.ipv4_mapped
    if found.sixtofour is not None:
        return found.sixtofour
    if any(found in network for network in _IN_IPV6) and int(found) > 1:
        return IPv4Address(int(found) & 0xFFFFFFFF)
    return found
