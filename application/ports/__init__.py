"""Ports: what the application needs from the outside world, as protocols, their values and their errors.

Adapters (`infrastructure/`) implement them; `entrypoints/bootstrap` connects the two.
"""

from application.ports.errors import (
    BrokerAway,
    Conflict,
    ForeignRequest,
    MailServersAway,
    Overloaded,
    Unavailable,
    UnexpectedAggregate,
    WrongMasterKey,
)
from application.ports.log import (
    A,
    Checkpoint,
    Clock,
    Context,
    Entry,
    Holder,
    Keyed,
    Log,
    Once,
    Streams,
    WrappedKey,
    entries_of,
)
from application.ports.mail import (
    CODE_GAP,
    ID_GAP,
    Letter,
    MailRequest,
    MailServers,
    NotSent,
    Rendered,
    SendClaim,
    SendClaims,
    WantedMail,
)
from application.ports.secrets import PasswordHasher, Person, Secrets

__all__ = [
    "CODE_GAP",
    "ID_GAP",
    "A",
    "BrokerAway",
    "Checkpoint",
    "Clock",
    "Conflict",
    "Context",
    "Entry",
    "ForeignRequest",
    "Holder",
    "Keyed",
    "Letter",
    "Log",
    "MailRequest",
    "MailServers",
    "MailServersAway",
    "NotSent",
    "Once",
    "Overloaded",
    "PasswordHasher",
    "Person",
    "Rendered",
    "Secrets",
    "SendClaim",
    "SendClaims",
    "Streams",
    "Unavailable",
    "UnexpectedAggregate",
    "WantedMail",
    "WrappedKey",
    "WrongMasterKey",
    "entries_of",
]
