"""Which followers of the log there are."""

from __future__ import annotations

from collections.abc import Iterable

from infrastructure.followers.integration_events import IntegrationEvents
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.relay import Relay


def names_of_followers(read_models: Iterable[str], *, publishes: bool) -> tuple[str, ...]:
    """Their names: those of the read models, and of what acts.

    Args:
        publishes: is there a broker to publish integration events to?
    """
    names = (*read_models, ProcessManager.name, Relay.name)
    return (*names, IntegrationEvents.name) if publishes else names
