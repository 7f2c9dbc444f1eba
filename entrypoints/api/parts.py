"""What an application is created with: without the framework, because not every process creates one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from application.account_passwords import AccountPasswords
from application.handlers import Handlers
from entrypoints.api.limits import RequestLimits
from entrypoints.queries.health import HealthChecks
from entrypoints.queries.queries import Queries
from infrastructure.replay.jobs import Jobs
from infrastructure.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from infrastructure.bounces.webhooks import BounceWebhooks
    from infrastructure.mail.mailbox import Mailbox
    from infrastructure.telemetry.tracing import Tracing

DomainPolicy = Literal["off", "log", "hint", "refuse"]


@dataclass(frozen=True, slots=True)
class SignUpPolicy:
    """What the operator makes of sign-ups that are well-formed.

    Attributes:
        disposable, misspelt: what is done about an address at a disposable domain, and at one that looks misspelt.
        service_names: what people call the service, which counts for nothing in a password.
    """

    disposable: DomainPolicy
    misspelt: DomainPolicy
    service_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an application; the listeners of a process share them.

    Attributes:
        admin_token: what operators prove themselves with; None if nobody can.
        next_admin_token: what they prove themselves with as well while it is changed; None otherwise.
        jobs: what is done for operators in processes of its own.
        export: the log in pieces, without personal keys; see `infrastructure.archive.exporting.exported`.
        tracing: makes spans; None if tracing is off.
        prefix: path of `PUBLIC_URL`, such as "/accounts"; "" if it has none.
        access_log: whether each request gets a line in the log.
        host_names: that requests may call the service by, beside IP addresses; None: any.
        broken: set when something that runs until the end of the process has ended before.
        is_synthetic_key: see `infrastructure.crypto.keyring.Keyring.is_synthetic_key`.
        bounces: what mail providers report to; None if none may.
        cors_origins: whose pages may call the registrants' routes.
        front_door: whether there are a first page and a sign-up by form.
        logo_url: the image in mails, which the page of the mailbox may load.
        mailbox: the embedded mailbox, None with real mail servers or in a process that does not deliver.
    """

    handlers: Handlers
    queries: Queries
    passwords: AccountPasswords
    checks: HealthChecks
    limits: RequestLimits
    sign_up_policy: SignUpPolicy
    metrics: Metrics
    request_timeout: timedelta
    admin_token: str | None
    jobs: Jobs
    export: Callable[[], AsyncGenerator[bytes, None]]
    tracing: Tracing | None
    mailbox: Mailbox | None
    broken: asyncio.Event
    is_synthetic_key: Callable[..., bool]
    prefix: str = ""
    host_names: frozenset[str] | None = None
    next_admin_token: str | None = None
    bounces: BounceWebhooks | None = None
    access_log: bool = False
    front_door: bool = False
    cors_origins: tuple[str, ...] = ()
    logo_url: str | None = None
