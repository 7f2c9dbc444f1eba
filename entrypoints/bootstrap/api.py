"""The parts of the HTTP API: its queries and its health checks."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

from application.account_passwords import AccountPasswords
from entrypoints.api.parts import Parts, SignUpPolicy
from entrypoints.bootstrap.bounces import webhooks_of
from entrypoints.bootstrap.core import Core
from entrypoints.bootstrap.jobs import jobs_of
from entrypoints.bootstrap.limits import limiter_of, request_limits
from entrypoints.queries.accounts import AccountQueries
from entrypoints.queries.audit import AuditQueries
from entrypoints.queries.followers import FollowerQueries, followers_with
from entrypoints.queries.funnel import FunnelQueries
from entrypoints.queries.health import HealthChecks
from entrypoints.queries.mails import MailQueries
from entrypoints.queries.parked import ParkedQueries
from entrypoints.queries.queries import Queries
from entrypoints.queries.registrations import RegistrationQueries
from entrypoints.queries.replay import ReplayQueries
from infrastructure.archive.exporting import exported
from infrastructure.limits.gcra import Limiter
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.settings.settings import Settings

if TYPE_CHECKING:
    from infrastructure.mail.mailbox import Mailbox
    from infrastructure.mail.smtp.servers import SmtpServers
    from infrastructure.rabbitmq.connection import Broker


def queries_of(core: Core, settings: Settings, stack: AsyncExitStack) -> Queries:
    """Every query; taken down with the stack."""
    registrations = RegistrationQueries(
        core.pool,
        ReconnectingConnection(core.database.dsn, name="queries", statement_timeout=settings.statement_timeout),
        keyring=core.keyring,
        policy=core.policy,
        notifications=core.notifications,
        request_timeout=settings.request_timeout,
        decode=core.store.decode,
    )
    stack.push_async_callback(registrations.close)
    accounts = AccountQueries(
        core.pool,
        ReconnectingConnection(core.database.dsn, name="accounts", statement_timeout=settings.statement_timeout),
        keyring=core.keyring,
        decode=core.store.decode,
    )
    stack.push_async_callback(accounts.close)
    return Queries(
        registrations,
        accounts,
        MailQueries(core.pool),
        AuditQueries(core.pool, core.keyring),
        FunnelQueries(core.pool, core.clock),
        FollowerQueries(
            core.pool,
            core.clock,
            followers_with(settings),
            has_checkpoints=settings.has_checkpoints,
            has_webhooks=settings.webhooks is not None,
        ),
        ParkedQueries(core.pool),
        ReplayQueries(core.pool),
    )


def _passwords(core: Core, settings: Settings, queries: Queries) -> AccountPasswords:
    return AccountPasswords(
        persons=queries.accounts,
        seals=core.keyring,
        hasher=core.hasher,
        handlers=core.handlers,
        clock=core.clock,
        new_id=uuid4,
        service_names=settings.service_names,
    )


def api_parts(
    core: Core,
    settings: Settings,
    stack: AsyncExitStack,
    *,
    broker: Broker | None,
    servers: SmtpServers | None = None,
    mailbox: Mailbox | None = None,
) -> Parts:
    """The parts that an application is created with; taken down with the stack.

    Args:
        servers: the mail servers, None in a process that does not deliver.
    """
    queries = queries_of(core, settings, stack)
    limiter = limiter_of(core, settings, stack)
    checks = _checks(core, queries, limiter, servers, broker, stack)
    return Parts(
        handlers=core.handlers,
        queries=queries,
        passwords=_passwords(core, settings, queries),
        checks=checks,
        limits=request_limits(core, settings, limiter),
        sign_up_policy=SignUpPolicy(settings.disposable_domains, settings.misspelt_domains, settings.service_names),
        metrics=core.metrics,
        request_timeout=settings.request_timeout,
        admin_token=core.database.admin_token,
        next_admin_token=settings.next_admin_token.get_secret_value() if settings.next_admin_token else None,
        jobs=jobs_of(core.database.dsn, settings, stack),
        export=partial(
            exported,
            core.pool,
            release=version("registrar"),
            with_keys=False,
            on_events=lambda _reached, _end: None,
            at_once=1,  # the pool is that of everybody's queries
        ),
        tracing=core.tracing,
        mailbox=mailbox,
        broken=core.broken,
        is_synthetic_key=core.keyring.is_synthetic_key,
        prefix=urlsplit(settings.public_url).path,
        host_names=settings.host_names,
        access_log=settings.access_log,
        bounces=webhooks_of(core, settings),
        cors_origins=settings.cors_origins,
        logo_url=settings.logo_url,
        front_door=has_front_door(settings, mailbox=mailbox is not None),
    )


def has_front_door(settings: Settings, *, mailbox: bool) -> bool:
    """Is there a first page with a sign-up to try out? With the embedded mailbox, unless it is said otherwise."""
    return mailbox if settings.front_door is None else settings.front_door


def _checks(
    core: Core,
    queries: Queries,
    limiter: Limiter,
    servers: SmtpServers | None,
    broker: Broker | None,
    stack: AsyncExitStack,
) -> HealthChecks:
    checks = HealthChecks(
        store=core.store,
        followers=queries.followers,
        shared_circuits=core.shared_circuits,
        servers=servers,
        broker=broker,
        hasher=core.hasher,
        metrics=core.metrics,
        limiter=limiter,
        broken=core.broken,
    )
    stack.push_async_callback(checks.close)
    return checks
