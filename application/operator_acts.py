"""How the acts of operators are called in the log. The names stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from application.commands import (
    AllowMailbox,
    CancelRegistration,
    Command,
    DiscardMail,
    DiscardStrayMessage,
    EraseRegistration,
    RecordImport,
    RecordRebuild,
    RetryMail,
    RetryParkedStream,
    SetPassword,
)

SEARCH_REGISTRATIONS: Final = "search-registrations"
SHOW_REGISTRATION: Final = "show-registration"
"""Looks at persons in clear."""

BACK_UP: Final = "back-up"
EXPORT_WITH_KEYS: Final = "export-log-with-keys"
APPLY_ROLES: Final = "apply-database-roles"
ROTATE_SIGNING_KEY: Final = "rotate-signing-key"
ROTATE_MASTER_KEY: Final = "rotate-master-key"
TEST_WEBHOOK: Final = "test-webhook"
REPLAY_WEBHOOK: Final = "replay-webhook"
DISABLE_WEBHOOK: Final = "disable-webhook"
ENABLE_WEBHOOK: Final = "enable-webhook"
"""Acts whose effect is not in the log: what is in it leaves the database, others may read it from now on, or another
key signs for it, or wraps what opens it; or somebody hears of it again, or no more."""

_ACTS: Final[Mapping[type[Command], str]] = {
    CancelRegistration: "cancel-registration",
    EraseRegistration: "erase-registration",
    SetPassword: "set-password",
    RetryMail: "retry-mail",
    DiscardMail: "discard-mail",
    AllowMailbox: "allow-mailbox",
    DiscardStrayMessage: "discard-stray-message",
    RetryParkedStream: "retry-parked-stream",
}


def act_of(command: Command) -> str | None:
    """The name of an operator's act; None if this command is not one for operators."""
    if isinstance(command, RecordImport):
        return "import-users" if command.counts is None else None  # once, when it begins
    if isinstance(command, RecordRebuild):
        return f"rebuild-{command.act}"
    return _ACTS.get(type(command))
