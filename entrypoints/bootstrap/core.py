"""The core of every process and acting command: it records events, and queries. Nothing in it runs by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from application.handlers import Handlers
from domain.policy import Policy
from entrypoints.bootstrap.database import Database, keyring_of, open_database, prepare
from entrypoints.bootstrap.mailboxes import mailbox_of
from entrypoints.bootstrap.tracing import Exported, open_tracing
from infrastructure.circuits import Circuits
from infrastructure.crypto.key_uses import CHANNEL
from infrastructure.crypto.key_watch import KeyWatch
from infrastructure.crypto.keyring import Keyring
from infrastructure.crypto.password_hashing import PasswordHashing
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.event_store.traced import TracedLog
from infrastructure.mail import shared_circuits
from infrastructure.mail.shared_circuits import SharedCircuits
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.postgres.notifications import EVERYTHING, Notifications, Watch
from infrastructure.postgres.pool import QueryPool
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from infrastructure.telemetry.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Timing:
    """How a process reads the time and waits; tests replace it.

    Attributes:
        clock: what everybody decides by.
        sleep: waits between the tries of a mail, in seconds.
        circuits: makes the mail servers' circuits, which have a clock of their own.
    """

    clock: DatabaseClock = field(default_factory=DatabaseClock)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    circuits: Callable[..., Circuits] = Circuits


@dataclass(frozen=True, slots=True)
class Core:
    """
    Attributes:
        tail: the log as this process's followers read it.
        pool: connections for the queries of read models; every one is autocommit.
        mail_line: for the short statements of who sends mails, and of the mail servers' circuits.
        shared_circuits: the mail servers' circuits, as all workers know them.
        exported: spans and their way to a collector; None if tracing is off.
        broken: set when something that runs in the background until the end has ended before.
    """

    database: Database
    policy: Policy
    clock: DatabaseClock
    store: EventStore
    tail: LogTail
    notifications: Notifications
    pool: QueryPool
    keyring: Keyring
    hasher: PasswordHashing
    handlers: Handlers
    metrics: Metrics
    mail_line: ReconnectingConnection
    shared_circuits: SharedCircuits
    exported: Exported | None
    broken: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tracing(self) -> Tracing | None:
        """Makes spans; None if tracing is off."""
        return None if self.exported is None else self.exported.tracing


async def open_core(
    settings: Settings,
    stack: AsyncExitStack,
    timing: Timing,
    *,
    role: str | None = None,
    pace: timedelta = timedelta(0),
    hears: Iterable[str] = EVERYTHING,
) -> Core:
    """The core on a database whose tables are brought up to date before. Taken down with the stack.

    Args:
        role: see `entrypoints.bootstrap.tracing.open_tracing`.
        pace: of the batches of appends and loads; see `infrastructure.postgres.batching.Batcher`.
        hears: what somebody in this process waits for; see `infrastructure.postgres.notifications.Notifications`.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, WrongMasterKey: one line each, fit to show.
    """
    database = await open_database(settings, stack)
    keyring = await prepare(database)
    return await core_on(database, keyring, settings, stack, timing, role=role, pace=pace, hears=hears)


async def core_as_it_is(settings: Settings, stack: AsyncExitStack) -> Core:
    """The core on a database whose tables stay as they are: for an operator's command.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, WrongMasterKey: one line each, fit to show.
    """
    database = await open_database(settings, stack)
    return await core_on(database, await keyring_of(database), settings, stack, Timing())


async def core_on(
    database: Database,
    keyring: Keyring,
    settings: Settings,
    stack: AsyncExitStack,
    timing: Timing,
    *,
    role: str | None = None,
    pace: timedelta = timedelta(0),
    hears: Iterable[str] = EVERYTHING,
) -> Core:
    """`open_core` on a prepared database.

    Over 40 lines, because it is a list, each value made of those above it.
    """
    metrics = Metrics()
    store = EventStore(
        database.dsn,
        codec=EventCodec(),
        clock=timing.clock,
        statement_timeout=settings.statement_timeout,
        pace=pace,
        on_batch=metrics.append_batch,
        on_append=metrics.append,
    )
    await store.open()
    stack.push_async_callback(store.close)
    hasher = PasswordHashing(salt_for=keyring.password_salt)
    stack.callback(hasher.close)
    mail_line = ReconnectingConnection(
        database.dsn, name="mail", statement_timeout=settings.statement_timeout, plan_once=True
    )
    stack.push_async_callback(mail_line.close)
    circuits = SharedCircuits(mail_line, probe_lasts=2 * settings.send_timeout)
    pool = QueryPool(database.dsn, statement_timeout=settings.statement_timeout, patience=settings.request_timeout)
    await pool.open()
    stack.push_async_callback(pool.close)
    exported = open_tracing(settings, stack, metrics, role)
    policy = policy_of(settings)
    tail = LogTail(store)
    return Core(
        database=database,
        policy=policy,
        clock=timing.clock,
        store=store,
        tail=tail,
        notifications=Notifications(
            database.dsn,
            hears=hears,
            on_restart=tail.forget,
            watches=[
                Watch(CHANNEL, KeyWatch(keyring.master_keys, find=database.find_keys, settled=store.settled).look),
                Watch(shared_circuits.CHANNEL, circuits.told),
            ],
        ),
        pool=pool,
        keyring=keyring,
        hasher=hasher,
        handlers=Handlers(
            log=store if exported is None else TracedLog(store, exported.tracing),
            clock=timing.clock,
            secrets=keyring,
            hasher=hasher,
            policy=policy,
            reveal_duplicates=settings.reveal_duplicates,
            mailbox_of=partial(mailbox_of, pool, keyring),
        ),
        metrics=metrics,
        mail_line=mail_line,
        shared_circuits=circuits,
        exported=exported,
    )


def policy_of(settings: Settings) -> Policy:
    """The rules that can be set."""
    return Policy(
        otp_ttl=settings.otp_ttl,
        otp_max_attempts=settings.otp_max_attempts,
        resend_cooldown=settings.resend_cooldown,
        registration_ttl=settings.registration_ttl,
    )
