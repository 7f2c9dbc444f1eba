"""What a process or a command is made of, and why it may not start."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.sdk.trace import TracerProvider

from application.handlers import Handlers
from domain.policy import Policy
from entrypoints.queries.queries import Queries
from infrastructure.crypto.keyring import Keyring
from infrastructure.crypto.password_hashing import PasswordHashing
from infrastructure.event_store.store import EventStore
from infrastructure.mail.mailbox import Mailbox
from infrastructure.mail.shared_circuits import SharedCircuits
from infrastructure.mail.smtp.servers import SmtpServers
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.notifications import Announcements
from infrastructure.postgres.pool import QueryPool
from infrastructure.rabbitmq.connection import Broker
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.metrics import Metrics


class CannotStart(Exception):
    """One line: what is missing or wrong, and what to do."""


@dataclass(slots=True)
class Service:
    """The parts that a process is made of. Built by `entrypoints.bootstrap.open_service`.

    Attributes:
        dsn: where the database is.
        pool: connections for the queries of read models; every one is autocommit.
        mailbox: the embedded mailbox, None with real mail servers or in a process that does not deliver.
        servers: the mail servers, None in a process that does not deliver.
        broker: RabbitMQ, None where mail is handed over inside the process.
        shared_circuits: the mail servers' circuits, as all workers know them.
        admin_token: what operators prove themselves with; None if admin routes are off.
        tracing: where spans go; None if tracing is off.
    """

    settings: Settings
    policy: Policy
    dsn: str
    clock: DatabaseClock
    store: EventStore
    keyring: Keyring
    hasher: PasswordHashing
    handlers: Handlers
    announcements: Announcements
    pool: QueryPool
    queries: Queries
    metrics: Metrics
    shared_circuits: SharedCircuits
    admin_token: str | None
    tracing: TracerProvider | None = None
    mailbox: Mailbox | None = None
    servers: SmtpServers | None = None
    broker: Broker | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """What a command looks at the database with. Built by `entrypoints.bootstrap.open_reader`.

    Attributes:
        pool: connections that the server lets change nothing; every one is autocommit.
    """

    settings: Settings
    pool: QueryPool
