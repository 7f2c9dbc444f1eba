"""The names of all followers of the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MAIL_SAGA: Final = "mail-saga"
RELAY: Final = "relay"
INTEGRATION_EVENTS: Final = "integration-events"


def names_of_followers(read_models: Iterable[str], *, publishes: bool) -> tuple[str, ...]:
    """The names of the projectors (one per read model), and of the followers that act.

    Args:
        publishes: whether there is a broker to publish integration events to.
    """
    names = (*read_models, MAIL_SAGA, RELAY)
    return (*names, INTEGRATION_EVENTS) if publishes else names
