"""The composition root: the only place where parts meet. Built with ordinary calls, taken down in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import psycopg
import structlog

from application.handlers import Handlers
from application.ports import Unavailable
from domain.policy import Policy
from entrypoints.mailing import (
    WORKERS_PACE,
    MakeRelay,
    finish_within,
    open_delivery,
    open_worker,
    relay_inside,
    relay_to,
)
from entrypoints.queries.audit import AuditQueries
from entrypoints.queries.followers import FollowerQueries, followers_with
from entrypoints.queries.funnel import FunnelQueries
from entrypoints.queries.mails import MailQueries
from entrypoints.queries.queries import Queries
from entrypoints.queries.registrations import RegistrationQueries
from entrypoints.service import CannotStart, Reader, Service
from infrastructure.alerts.alerts import Alerts
from infrastructure.alerts.webhook import Webhook
from infrastructure.crypto.keyring import Keyring, open_root_secret, read_root_secret
from infrastructure.crypto.password_hashing import PasswordHashing
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.embedded.postgres import DatabaseDidNotStart, EmbeddedPostgres
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers.integration_events import IntegrationEvents
from infrastructure.followers.leadership import Leading, lead
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.projector import Projector, read_scripts
from infrastructure.mail.circuits import Circuits
from infrastructure.mail.mailbox import Mailbox
from infrastructure.mail.shared_circuits import SharedCircuits
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection, Line, connect
from infrastructure.postgres.notifications import Announcements
from infrastructure.postgres.pool import QueryPool
from infrastructure.postgres.schema import WrongSchema, bring_up_to_date, check
from infrastructure.rabbitmq.connection import Broker
from infrastructure.rabbitmq.topology import Topology
from infrastructure.scripts import SCRIPTS
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.metrics import Metrics, setup_tracing
from projections import PROJECTIONS
from projections.deadlines import Deadlines
from projections.mail import Mails
from projections.registrations import Registrations

log = structlog.get_logger(__name__)

REVIVE = timedelta(milliseconds=500)
"""How often the embedded database is looked after."""

PACE = timedelta(milliseconds=200)
"""Least time between two batches of a read model that nobody waits for."""

PACE_WAITED_FOR = timedelta(milliseconds=10)
"""The same for the one that clients wait for: under load it saves half of its transactions (our measurement)."""

TIME_CHECK = timedelta(seconds=10)
"""How often the clock is set by the database when no append does it."""


SCHEMA = (*SCRIPTS, *(script for projection in PROJECTIONS for script in read_scripts(projection())))
"""Everything that makes tables and functions, in order."""


Works = dict[str, Coroutine[Any, Any, None]]
"""What runs in the background, by name."""


@asynccontextmanager
async def open_service(
    settings: Settings,
    *,
    follows: bool,
    works: bool = False,
    mailbox: bool = False,
    clock: DatabaseClock | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    circuits: Callable[..., Circuits] = Circuits,
) -> AsyncIterator[Service]:
    """Build everything, run what runs in the background, and take it down again at the end.

    Args:
        follows: run the followers: projections, the saga, the relay; without a broker, with the mail delivery behind it.
        works: take mails from the broker and send them; without a broker there is nothing to take.
        mailbox: bring up the embedded mailbox if no mail server is set.
        clock: what everybody decides by; tests move it.
        sleep: waits between the tries of a mail, in seconds.
        circuits: makes the mail servers' circuits; tests move their clock.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, WrongMasterKey: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        postgres = await _embedded_postgres(settings, stack) if settings.database_url is None else None
        dsn, master_key, admin_token = _database(settings, postgres)
        root_secret = await _prepare_database(dsn, master_key)
        service = await _parts(
            settings,
            stack,
            dsn=dsn,
            keyring=Keyring(master_key=master_key, root_secret=root_secret),
            admin_token=admin_token,
            clock=clock or DatabaseClock(),
            pace=WORKERS_PACE if works and not follows else timedelta(0),
        )
        if mailbox and not settings.mail_servers:
            service.mailbox = Mailbox(settings.data_dir / "mailbox")
            await service.mailbox.start()
            stack.push_async_callback(service.mailbox.stop)
        background: Works = {
            "announcements": service.announcements.run(),
            "clock": _keep_time(service.store),
            "circuits": service.shared_circuits.run(),
        }
        if postgres is not None:
            background["embedded PostgreSQL"] = _keep_running(postgres)
        if settings.broker_url is None:
            delivery = await open_delivery(service, stack, sleep=sleep, circuits=circuits) if follows else None
            leading = _followers(service, relay_inside(service, delivery)) if delivery is not None else []
        else:
            consumers = await open_worker(service, stack, sleep=sleep, circuits=circuits) if works else ()
            service.broker = Broker(
                settings.broker_url.get_secret_value(),
                name="work" if works else "process" if follows else "serve",
                # Who neither publishes nor consumes only looks, and needs no rights to what is there (docs/security.md, S27).
                topology=Topology.of(queue_ttl=settings.queue_ttl) if follows or works else None,
                consumers=consumers,
                finish_within=finish_within(settings),
            )
            background["RabbitMQ"] = service.broker.run()
            leading = _followers(service, relay_to(service, service.broker)) if follows else []
        if follows and settings.alert_url is not None:
            leading.append(_alerts(service, settings.alert_url.get_secret_value()))
        for work in leading:
            background[work.name] = lead(work, dsn, statement_timeout=settings.statement_timeout)
        # Last in, first out: what runs stops before what it runs on.
        await stack.enter_async_context(_running(background))
        yield service


@asynccontextmanager
async def open_reader(settings: Settings) -> AsyncIterator[Reader]:
    """What looks at the database and can change nothing there. It starts nothing, makes nothing, and needs no secret.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        dsn = (
            settings.database_url.get_secret_value()
            if settings.database_url is not None
            else (await _started(DataDirectory(settings.data_dir), stack)).dsn
        )
        async with _connection(dsn, read_only=True) as connection:
            await check(connection, SCHEMA)
        pool = QueryPool(dsn, statement_timeout=settings.statement_timeout, read_only=True)
        await pool.open()
        stack.push_async_callback(pool.close)
        yield Reader(settings=settings, pool=pool)


@asynccontextmanager
async def open_desk(settings: Settings) -> AsyncIterator[Service]:
    """What an operator's command acts with: it records events, and neither changes tables nor runs anything.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, WrongMasterKey: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        postgres = await _embedded_postgres(settings, stack) if settings.database_url is None else None
        dsn, master_key, admin_token = _database(settings, postgres)
        async with _connection(dsn, read_only=True) as connection:
            await check(connection, SCHEMA)
            root_secret = await read_root_secret(connection, master_key)
        if root_secret is None:
            raise CannotStart("No service has run on this database yet; start one first (`registrar up`, or `serve`).")
        yield await _parts(
            settings,
            stack,
            dsn=dsn,
            keyring=Keyring(master_key=master_key, root_secret=root_secret),
            admin_token=admin_token,
            clock=DatabaseClock(),
            pace=timedelta(0),
        )


async def _parts(
    settings: Settings,
    stack: AsyncExitStack,
    *,
    dsn: str,
    keyring: Keyring,
    admin_token: str | None,
    clock: DatabaseClock,
    pace: timedelta,
) -> Service:
    """What records and answers questions; nothing of it runs by itself. Taken down with the stack."""
    policy = Policy(
        otp_ttl=settings.otp_ttl,
        otp_max_attempts=settings.otp_max_attempts,
        resend_cooldown=settings.resend_cooldown,
        registration_ttl=settings.registration_ttl,
    )
    metrics = Metrics()
    store = EventStore(
        dsn,
        codec=EventCodec(),
        clock=clock,
        statement_timeout=settings.statement_timeout,
        pace=pace,
        on_batch=metrics.append_batch,
        on_append=metrics.append,
    )
    await store.open()
    stack.push_async_callback(store.close)
    hasher = PasswordHashing(salt_for=keyring.password_salt)
    stack.callback(hasher.close)
    handlers = Handlers(
        log=store,
        clock=clock,
        secrets=keyring,
        hasher=hasher,
        policy=policy,
        reveal_duplicates=settings.reveal_duplicates,
    )
    circuits_line = Line(dsn, name="circuits", statement_timeout=settings.statement_timeout)
    stack.push_async_callback(circuits_line.close)
    pool = QueryPool(dsn, statement_timeout=settings.statement_timeout, patience=settings.request_timeout)
    await pool.open()
    stack.push_async_callback(pool.close)
    announcements = Announcements(dsn)
    registrations = RegistrationQueries(
        pool,
        Line(dsn, name="queries", statement_timeout=settings.statement_timeout),
        keyring=keyring,
        policy=policy,
        announcements=announcements,
        request_timeout=settings.request_timeout,
    )
    stack.push_async_callback(registrations.close)
    service = Service(
        settings=settings,
        policy=policy,
        dsn=dsn,
        clock=clock,
        store=store,
        keyring=keyring,
        hasher=hasher,
        handlers=handlers,
        announcements=announcements,
        pool=pool,
        queries=Queries(
            registrations,
            MailQueries(pool),
            AuditQueries(pool, keyring),
            FunnelQueries(pool, clock),
            FollowerQueries(pool, clock, followers_with(settings)),
        ),
        metrics=metrics,
        shared_circuits=SharedCircuits(circuits_line, probe_lasts=2 * settings.send_timeout),
        admin_token=admin_token,
        tracing=setup_tracing(settings.otlp_endpoint, version("registrar")),
    )
    if service.tracing is not None:
        stack.push_async_callback(asyncio.to_thread, service.tracing.shutdown)
    return service


async def _embedded_postgres(settings: Settings, stack: AsyncExitStack) -> EmbeddedPostgres:
    directory = DataDirectory(settings.data_dir)
    if settings.master_key is None:
        directory.master_key()  # made before there is a database, never beside one
    return await _started(directory, stack)


async def _started(directory: DataDirectory, stack: AsyncExitStack) -> EmbeddedPostgres:
    postgres = EmbeddedPostgres(directory.path)
    stack.push_async_callback(asyncio.to_thread, postgres.stop)  # also for a start that is cancelled half-way
    await asyncio.to_thread(postgres.start)
    return postgres


def _database(settings: Settings, postgres: EmbeddedPostgres | None) -> tuple[str, bytes, str | None]:
    """Where the database is, the master key and the admin token: from the settings, or from the data directory."""
    if postgres is not None:
        directory = DataDirectory(settings.data_dir)
        master_key = settings.master_key or directory.master_key()
        admin_token = settings.admin_token or directory.admin_token()
        return postgres.dsn, master_key.get_secret_value(), admin_token.get_secret_value()
    if settings.database_url is None or settings.master_key is None:
        raise CannotStart("REGISTRAR_MASTER_KEY is not set; set it to what `openssl rand -hex 32` prints.")
    token = settings.admin_token.get_secret_value() if settings.admin_token else None
    return settings.database_url.get_secret_value(), settings.master_key.get_secret_value(), token


async def _keep_running(postgres: EmbeddedPostgres) -> None:
    """Bring the embedded database up again when it was killed: nobody else looks after it."""
    while True:
        await asyncio.sleep(REVIVE.total_seconds())
        if postgres.pid is None:
            log.warning("database.gone", hint="the embedded PostgreSQL has ended; it is started again")
            try:
                await asyncio.to_thread(postgres.start)
            except DatabaseDidNotStart as error:
                log.error("database.does_not_start", error=type(error).__name__, hint="see postgres.log")  # noqa: TRY400


async def _prepare_database(dsn: str, master_key: bytes) -> bytes:
    """Create what is missing; answers the root secret."""
    async with _connection(dsn) as connection:
        await create_schema(connection)
        return await open_root_secret(connection, master_key)


@asynccontextmanager
async def _connection(dsn: str, *, read_only: bool = False) -> AsyncIterator[Connection]:
    """A connection for the time before anything runs.

    Raises:
        CannotStart: the database is away, or what is done within finds that it holds what we cannot work with.
    """
    try:
        connection = await connect(dsn, name="setup", statement_timeout=timedelta(seconds=60), read_only=read_only)
    except (psycopg.Error, OSError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CannotStart(f"The database cannot be reached: {reason}; check REGISTRAR_DATABASE_URL.") from None
    async with connection:
        try:
            yield connection
        except WrongSchema as error:
            raise CannotStart(str(error)) from None


async def create_schema(connection: Connection) -> None:
    """Run the scripts that have not been run on this database."""
    await bring_up_to_date(connection, SCHEMA)


def _followers(service: Service, make_relay: MakeRelay) -> list[Leading]:
    """Everything that follows the log, each to be led by one process at a time."""
    store, announcements = service.store, service.announcements
    tail = LogTail(store)
    announcements.on_begin = tail.forget
    return [
        *(
            Projector(
                projection(),
                store=tail,
                announcements=announcements,
                # Clients wait for their own registration; the others may be a little late.
                pace=PACE_WAITED_FOR if projection is Registrations else PACE,
                announced=projection is Registrations,
            )
            for projection in PROJECTIONS
        ),
        ProcessManager(
            store=store,
            tail=tail,
            handlers=service.handlers,
            announcements=announcements,
            clock=service.clock,
            policy=service.policy,
            due=Deadlines().due,
        ),
        make_relay(tail),
        *(
            [IntegrationEvents(tail=tail, announcements=announcements, broker=service.broker)]
            if service.broker is not None
            else []
        ),
    ]


async def _dead_letters(connection: Connection) -> int:
    """What an operator has to look at: mails that failed for good, and messages that are none of ours."""
    return await Mails.dead_letters(connection) + await Mails.stray_messages(connection)


def _alerts(service: Service, url: str) -> Alerts:
    return Alerts(
        Webhook(url),
        service=service.settings.public_url,
        threshold=service.settings.alert_dead_letters,
        dead_letters=_dead_letters,
        on_attempt=service.metrics.alert,
    )


async def _keep_time(store: EventStore) -> None:
    while True:
        await asyncio.sleep(TIME_CHECK.total_seconds())
        with suppress(Unavailable, psycopg.Error):  # the next look comes; until then the monotonic clock carries on
            await store.ask_time()


@asynccontextmanager
async def _running(works: Works) -> AsyncIterator[None]:
    """Run until the end; then cancel, and wait until all have finished what must not be cut off."""
    tasks = [asyncio.create_task(work, name=name) for name, work in works.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task, result in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
            if isinstance(result, Exception):
                log.error("background.failed", work=task.get_name(), error=type(result).__name__)
