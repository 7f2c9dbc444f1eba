"""The names that the service answers to: what is asked of another was meant for somebody else, or is a trick.

A page of a stranger whose name suddenly leads to us (DNS rebinding) would otherwise read what it likes through the
browser of somebody who can reach us. An IP address is nobody's name, so that trick needs none, and load balancers and
proxies that pass on no name use one.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final

from starlette.types import Scope

from entrypoints.api.problems import HttpProblem

_HOST: Final = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[0-9a-z_.-]{1,255})(?::[0-9]{0,5})?", re.IGNORECASE)
_PROBES: Final = "/health/"
"""Begins the paths that are answered under any name: a load balancer asks for them in whatever way it likes."""


class Hosts:
    """Decides by the `Host` of a request (RFC 9110, 7.2 and 7.4) whether it is for us."""

    def __init__(self, names: frozenset[str] | None = None) -> None:
        """
        Args:
            names: in lower case; None: any.
        """
        self._names = names
        # As nearly every request has it, which then costs one look.
        self._usual = frozenset(name.encode() for name in names or ())

    def check(self, host: bytes | None, scope: Scope) -> None:
        """
        Args:
            host: the header's value; empty if it comes more than once.

        Raises:
            HttpProblem: the request is not for us, or does not say properly for whom it is.
        """
        if host in self._usual:
            return
        if not host and (host is not None or scope["http_version"] != "1.0"):  # RFC 9112, 3.2
            raise HttpProblem("bad-request", headers={"Connection": "close"})
        if self._names is not None and not self._is_ours(host or b"") and not scope["path"].startswith(_PROBES):
            raise HttpProblem("misdirected-request")

    def _is_ours(self, host: bytes) -> bool:
        found = _HOST.fullmatch(host.decode("latin-1"))
        if found is None or self._names is None:
            return False
        name = found[1].lower().removesuffix(".")
        return name in self._names or _is_an_address(name.strip("[]"))


def _is_an_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
