"""Webhooks: what sends them, and what their commands work on."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from entrypoints.bootstrap.core import Core
from entrypoints.bootstrap.database import first_connection
from infrastructure.settings.settings import Settings
from infrastructure.webhooks import records
from infrastructure.webhooks.addresses import Reachable
from infrastructure.webhooks.calls import Calls
from infrastructure.webhooks.follower import Webhooks


def calls_to(settings: Settings) -> Mapping[str, Calls]:
    """The calls to each endpoint, by its name."""
    endpoints = settings.webhook_endpoints
    encrypts = any(one.url.startswith("https:") for one in endpoints)
    tls = ssl.create_default_context() if encrypts else None
    return {one.name: Calls(one, Reachable(settings.webhook_networks), tls=tls) for one in endpoints}


async def webhooks(core: Core, settings: Settings) -> Webhooks:
    """What sends to the endpoints. One that is new gets what is recorded from now on.

    Raises:
        CannotStart: the database is away.
    """
    calls = calls_to(settings)
    async with first_connection(core.database.dsn) as connection:
        await records.begin(connection, list(calls))
    return Webhooks(
        tail=core.tail,
        notifications=core.notifications,
        endpoints=calls,
        clock=core.clock,
        on_attempt=core.metrics.webhook,
    )
