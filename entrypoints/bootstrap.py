"""The composition root: the only place where parts meet. Built with ordinary calls, taken down in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import psycopg
import structlog
from opentelemetry.sdk.trace import TracerProvider
from psycopg_pool import AsyncConnectionPool
from purgatory.typing import StateName

from application.handlers import Handlers
from application.mail_delivery import MailDelivery
from application.ports import MailRequest, Unavailable
from domain.registration import Policy
from infrastructure.alerts import Alerts
from infrastructure.announcements import LOOK_ANYWAY, Announcements
from infrastructure.broker import Broker, Consumer, Topology
from infrastructure.circuit import Circuits, OnTransition
from infrastructure.circuit_board import CircuitBoard
from infrastructure.clock import DatabaseClock
from infrastructure.embedded import DatabaseDidNotStart, DataDirectory, EmbeddedPostgres
from infrastructure.event_codec import EventCodec
from infrastructure.event_store import EventStore
from infrastructure.event_store import create_schema as create_event_store
from infrastructure.follower import Leading, Projector, create_read_schema, lead
from infrastructure.integration_events import IntegrationEvents
from infrastructure.keyring import Keyring, open_root_secret
from infrastructure.letters import TemplateLetters
from infrastructure.line import Connection, Line, connect, session
from infrastructure.log_tail import LogTail
from infrastructure.mail_queue import DeadLetterConsumer, MailPublisher, MailWorker
from infrastructure.mail_state import StoredPersonalKeys, StoredSendClaims
from infrastructure.mailbox import Mailbox
from infrastructure.password_hashing import PasswordHashing
from infrastructure.process_manager import ProcessManager
from infrastructure.relay import Relay
from infrastructure.settings import MailServer, Settings
from infrastructure.smtp import Limits, SmtpServers
from infrastructure.telemetry import Metrics, setup_tracing, traced
from infrastructure.webhook import Webhook
from projections import PROJECTIONS
from projections.deadlines import Deadlines
from projections.mail import Mails
from projections.registrations import Registrations

log = structlog.get_logger(__name__)

FOLLOWERS = (*(projection.name for projection in PROJECTIONS), ProcessManager.name, Relay.name)
"""Everything that follows the log, whatever is set."""

SEND_MARGIN = timedelta(seconds=15)
"""What a mail's claim outlasts its three tries by: the waits between them, and the recording of the outcome."""

RECORDING = timedelta(seconds=3)
"""What of that is for the recording: sending is given up so long before the claim ends."""

REVIVE = timedelta(milliseconds=500)
"""How often the embedded database is looked after."""

PACE = timedelta(milliseconds=200)
"""Least time between two batches of a read model that nobody waits for."""

PACE_WAITED_FOR = timedelta(milliseconds=10)
"""The same for the one that clients wait for: under load it saves half of its transactions (our measurement)."""

PUBLISHING = 128
"""Requests on their way to the broker at the same time: confirms come in milliseconds, and not one by one."""

TIME_CHECK = timedelta(seconds=10)
"""How often the clock is set by the database when no append does it."""


def followers_with(settings: Settings) -> tuple[str, ...]:
    """Everything that follows the log under these settings: nobody publishes where there is no broker."""
    return FOLLOWERS if settings.broker_url is None else (*FOLLOWERS, IntegrationEvents.name)


Works = dict[str, Coroutine[Any, Any, None]]
"""What runs in the background, by name."""


class CannotStart(Exception):
    """One line: what is missing or wrong, and what to do."""


@dataclass(slots=True)
class Service:
    """The parts that a process is made of. Built by `open_service`.

    Attributes:
        dsn: where the database is.
        pool: connections for the queries of read models; every one is autocommit.
        mailbox: the embedded mailbox, None with real mail servers or in a process that does not deliver.
        servers: the mail servers, None in a process that does not deliver.
        broker: RabbitMQ, None where mail is handed over inside the process.
        board: the mail servers' circuits, as all workers know them.
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
    pool: AsyncConnectionPool[Connection]
    metrics: Metrics
    board: CircuitBoard
    admin_token: str | None
    tracing: TracerProvider | None = None
    mailbox: Mailbox | None = None
    servers: SmtpServers | None = None
    broker: Broker | None = None


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
        policy = Policy(
            otp_ttl=settings.otp_ttl,
            otp_max_attempts=settings.otp_max_attempts,
            resend_cooldown=settings.resend_cooldown,
            registration_ttl=settings.registration_ttl,
        )
        clock = clock or DatabaseClock()
        metrics = Metrics()
        store = EventStore(
            dsn,
            codec=EventCodec(),
            clock=clock,
            statement_timeout=settings.statement_timeout,
            on_batch=metrics.append_batch,
            on_append=metrics.append,
        )
        await store.open()
        stack.push_async_callback(store.close)
        keyring = Keyring(master_key=master_key, root_secret=root_secret)
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
        pool = _pool(dsn, settings)
        await pool.open()
        stack.push_async_callback(pool.close)
        service = Service(
            settings=settings,
            policy=policy,
            dsn=dsn,
            clock=clock,
            store=store,
            keyring=keyring,
            hasher=hasher,
            handlers=handlers,
            announcements=Announcements(dsn),
            pool=pool,
            metrics=metrics,
            board=CircuitBoard(circuits_line, probe_lasts=2 * settings.send_timeout),
            admin_token=admin_token,
            tracing=setup_tracing(settings.otlp_endpoint, version("registrar")),
        )
        if service.tracing is not None:
            stack.push_async_callback(asyncio.to_thread, service.tracing.shutdown)
        if mailbox and not settings.mail_servers:
            service.mailbox = Mailbox(settings.data_dir / "mailbox")
            await service.mailbox.start()
            stack.push_async_callback(service.mailbox.stop)
        background: Works = {
            "announcements": service.announcements.run(),
            "clock": _keep_time(store),
            "circuits": service.board.run(),
        }
        if postgres is not None:
            background["embedded PostgreSQL"] = _keep_running(postgres)
        if settings.broker_url is None:
            delivery = await _delivery(service, stack, sleep=sleep, circuits=circuits) if follows else None
            leading = _followers(service, _relay_inside(service, delivery)) if delivery is not None else []
        else:
            consumers = await _worker(service, stack, sleep=sleep, circuits=circuits) if works else ()
            service.broker = Broker(
                settings.broker_url.get_secret_value(),
                name="work" if works else "process" if follows else "serve",
                topology=Topology.of(queue_ttl=settings.queue_ttl),
                consumers=consumers,
                finish_within=_finish_within(settings),
            )
            background["RabbitMQ"] = service.broker.run()
            leading = _followers(service, _relay_to(service, service.broker)) if follows else []
        if follows and settings.alert_url is not None:
            leading.append(_alerts(service, settings.alert_url.get_secret_value()))
        for work in leading:
            background[work.name] = lead(work, dsn, statement_timeout=settings.statement_timeout)
        # Last in, first out: what runs stops before what it runs on.
        await stack.enter_async_context(_running(background))
        yield service


async def _embedded_postgres(settings: Settings, stack: AsyncExitStack) -> EmbeddedPostgres:
    directory = DataDirectory(settings.data_dir)
    if settings.master_key is None:
        directory.master_key()  # made before there is a database, never beside one
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
    try:
        connection = await connect(dsn, name="setup", statement_timeout=timedelta(seconds=60))
    except (psycopg.Error, OSError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CannotStart(f"The database cannot be reached: {reason}; check REGISTRAR_DATABASE_URL.") from None
    async with connection:
        await create_schema(connection)
        return await open_root_secret(connection, master_key)


async def create_schema(connection: Connection) -> None:
    """Create every table and function where it is missing; repeatable."""
    await create_event_store(connection)
    for projection in PROJECTIONS:
        await create_read_schema(connection, projection())


MakeRelay = Callable[[LogTail], Relay]


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


def _alerts(service: Service, url: str) -> Alerts:
    return Alerts(
        Webhook(url),
        service=service.settings.public_url,
        threshold=service.settings.alert_dead_letters,
        dead_letters=Mails.dead_letters,
        on_attempt=service.metrics.alert,
    )


# --- Mail -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Delivery:
    """The sending of mails, the same behind the in-process relay and behind the broker's queue."""

    servers: SmtpServers
    claims: StoredSendClaims
    line: Line
    deliver: Callable[[MailRequest], Awaitable[None]]

    async def until_database_ready(self) -> None:
        async def ask(connection: Connection) -> None:
            await connection.execute("SELECT 1")

        while True:
            await asyncio.sleep(LOOK_ANYWAY.total_seconds())
            with suppress(Unavailable, psycopg.Error):
                await self.line.ask(ask)
                return


async def _delivery(
    service: Service,
    stack: AsyncExitStack,
    *,
    sleep: Callable[[float], Awaitable[None]],
    circuits: Callable[..., Circuits],
) -> _Delivery:
    settings = service.settings
    service.servers = SmtpServers(
        _mail_servers(service),
        sender=settings.mail_from,
        circuits=circuits(on_transition=_both(service.metrics.circuit, service.board.changed)),
        may_probe=service.board.may_probe,
        on_opened=service.board.share,
        limits=Limits(timeout=settings.send_timeout),
        on_attempt=service.metrics.mail,
        sleep=sleep,
    )
    stack.push_async_callback(service.servers.close)
    line = Line(service.dsn, name="mail", statement_timeout=settings.statement_timeout)
    stack.push_async_callback(line.close)
    lease = 3 * settings.send_timeout + SEND_MARGIN
    claims = StoredSendClaims(line, lease=lease)
    stack.push_async_callback(_give_back, claims)
    if settings.database_url is None and stack.enter_context(DataDirectory(settings.data_dir).following()):
        await claims.forget_the_dead()
    delivery = MailDelivery(
        log=service.store,
        handlers=service.handlers,
        secrets=service.keyring,
        keys=StoredPersonalKeys(line),
        claims=claims,
        servers=service.servers,
        letters=TemplateLetters(ttl=settings.otp_ttl, public_url=settings.public_url, sender=settings.mail_from),
        clock=service.clock,
        policy=service.policy,
        retry_claimed_after=timedelta(seconds=5),
        give_up_after=lease - RECORDING,
        sleep=sleep,
        on_first_mail=service.metrics.time_to_inbox,
    )
    return _Delivery(service.servers, claims, line, traced(service.tracing, delivery.deliver))


def _finish_within(settings: Settings) -> timedelta:
    """How long a stop waits for mails that are being sent: one that is cut off in the middle may go out twice."""
    return settings.send_timeout + timedelta(seconds=5)


def _relay_inside(service: Service, delivery: _Delivery) -> MakeRelay:
    """A relay that sends the mails itself."""
    return lambda tail: Relay(
        tail=tail,
        announcements=service.announcements,
        hand_over=delivery.deliver,
        until_ready=delivery.servers.until_ready,
        finish_within=_finish_within(service.settings),
        give_back=lambda: _give_back(delivery.claims),
    )


def _relay_to(service: Service, broker: Broker) -> MakeRelay:
    """A relay that has the mails sent by the workers behind the broker."""
    publisher = MailPublisher(broker, message_ttl=service.settings.message_ttl, board=service.board)
    return lambda tail: Relay(
        tail=tail,
        announcements=service.announcements,
        hand_over=publisher.hand_over,
        until_ready=publisher.until_ready,
        at_once=PUBLISHING,
    )


def _both(one: OnTransition, other: OnTransition) -> OnTransition:
    def tell(name: str, old: StateName, new: StateName) -> None:
        one(name, old, new)
        other(name, old, new)

    return tell


async def _worker(
    service: Service,
    stack: AsyncExitStack,
    *,
    sleep: Callable[[float], Awaitable[None]],
    circuits: Callable[..., Circuits],
) -> tuple[Consumer, ...]:
    """What consumes from the broker's queues: the mail worker, and the consumer of dead letters."""
    delivery = await _delivery(service, stack, sleep=sleep, circuits=circuits)
    worker = MailWorker(
        deliver=delivery.deliver,
        until_mail_ready=delivery.servers.until_ready,
        until_database_ready=delivery.until_database_ready,
    )
    stack.push_async_callback(worker.close)
    dead_letters = DeadLetterConsumer(do=service.handlers.handle, until_database_ready=delivery.until_database_ready)
    return worker.consumer, dead_letters.consumer


async def _give_back(claims: StoredSendClaims) -> None:
    with suppress(Unavailable, psycopg.Error):  # then the leases end by themselves
        await claims.close()


def _mail_servers(service: Service) -> tuple[MailServer, ...]:
    if service.settings.mail_servers:
        return service.settings.mail_servers
    if service.mailbox is None:
        raise CannotStart(
            "REGISTRAR_SMTP_URLS is not set, and the embedded mailbox is part of `registrar up` only; set it."
        )
    return (
        MailServer(
            scheme="smtp", host="127.0.0.1", port=service.mailbox.port, username=None, password=None, starttls="never"
        ),
    )


def _pool(dsn: str, settings: Settings) -> AsyncConnectionPool[Connection]:
    return AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=8,
        max_waiting=16,  # faults.md, B14: twice the pool; beyond it callers are told at once
        timeout=2.0,
        reconnect_timeout=0,
        open=False,
        kwargs=session(name="queries", statement_timeout=settings.statement_timeout),
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
