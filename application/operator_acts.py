"""How the acts of operators are called in the log. The names stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from application.commands import (
    CancelRegistration,
    Command,
    DiscardMail,
    DiscardStrayMessage,
    EraseRegistration,
    RecordRebuild,
    RetryMail,
    RetryParkedStream,
)

SEARCH_REGISTRATIONS: Final = "search-registrations"
SHOW_REGISTRATION: Final = "show-registration"
"""Looks at persons in clear."""

ROTATE_MASTER_KEY: Final = "rotate-master-key"
"""Changes no registration."""

_ACTS: Final[Mapping[type[Command], str]] = {
    CancelRegistration: "cancel-registration",
    EraseRegistration: "erase-registration",
    RetryMail: "retry-mail",
    DiscardMail: "discard-mail",
    DiscardStrayMessage: "discard-stray-message",
    RetryParkedStream: "retry-parked-stream",
}


def act_of(command: Command) -> str | None:
    """The name of an operator's act; None if this command is not one for operators."""
    if isinstance(command, RecordRebuild):
        return f"rebuild-{command.act}"
    return _ACTS.get(type(command))
