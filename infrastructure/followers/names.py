"""The names of all followers of the log."""

from __future__ import annotations

from collections.abc import Iterable

from infrastructure.followers.integration_events import IntegrationEvents
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.relay import Relay


def names_of_followers(read_models: Iterable[str], *, publishes: bool) -> tuple[str, ...]:
    """The names of the projectors (one per read model), and of the followers that act.

    Args:
        publishes: whether there is a broker to publish integration events to.
    """
    names = (*read_models, ProcessManager.name, Relay.name)
    return (*names, IntegrationEvents.name) if publishes else names
