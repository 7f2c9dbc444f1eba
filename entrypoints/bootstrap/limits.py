"""Who counts the requests to a process, and which limits they come under."""

# ruff: noqa: PLC0415 - as in `cli.main`: the client of Redis is loaded only where one is set
from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from ipaddress import IPv4Address
from typing import Final

from entrypoints.api.limits import RequestLimits
from entrypoints.bootstrap.core import Core
from infrastructure.limits.gcra import Limiter, LocalLimiter
from infrastructure.settings.settings import Settings
from infrastructure.settings.values import Network

_LOOPBACK: Final = IPv4Address("127.0.0.1")


def limiter_of(core: Core, settings: Settings, stack: AsyncExitStack) -> Limiter:
    """Who counts requests; taken down with the stack."""
    if settings.rate_limit_url is None:
        return LocalLimiter()
    from infrastructure.limits.shared import SharedLimiter

    shared = SharedLimiter(
        settings.rate_limit_url.get_secret_value(),
        on_change=core.metrics.limiter_degraded,
        on_transition=core.metrics.circuit,
    )
    stack.push_async_callback(shared.close)
    return shared


def request_limits(core: Core, settings: Settings, limiter: Limiter) -> RequestLimits:
    """The limits that are set. Where a proxy on this machine is trusted, loopback is an address as any other."""
    return RequestLimits(
        settings.limits,
        limiter,
        hashed=str if settings.rate_limit_url is None else core.keyring.limited,
        metrics=core.metrics,
        spare_loopback=not _trusts_loopback(settings.trusted_proxies),
    )


def _trusts_loopback(proxies: Sequence[Network]) -> bool:
    return any(network.is_loopback or _LOOPBACK in network for network in proxies)
