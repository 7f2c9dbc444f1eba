"""The followers of the log, each led by one process at a time: read models, the saga, the relay, integration events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from uuid import UUID

from application.commands import EraseRegistration
from application.ports import Context
from domain.errors import UnknownRegistration
from domain.recorded import Actor
from entrypoints.bootstrap.background import Works
from entrypoints.bootstrap.broker import finish_within
from entrypoints.bootstrap.checkpoints import checkpointer, taken_by
from entrypoints.bootstrap.core import Core
from entrypoints.bootstrap.delivery import Delivery
from entrypoints.bootstrap.erasures import journal_file, note_key
from infrastructure.alerts.alerts import Alerts
from infrastructure.alerts.webhook import Webhook
from infrastructure.audit.erasures import ErasureJournal, PostedErasures, is_complete, write_to
from infrastructure.followers.integration_events import IntegrationEvents, PublishesEvents
from infrastructure.followers.leadership import LeaderTask
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.projector import Projector
from infrastructure.followers.relay import Relay
from infrastructure.followers.turns import Turns
from infrastructure.postgres.connection import Connection
from infrastructure.replay.background import BackgroundVerification
from infrastructure.settings.settings import Settings
from infrastructure.synthetic.erasing import Erase, without_probe
from infrastructure.synthetic.probe import Probe
from infrastructure.telemetry.tracing import traced
from projections import PROJECTIONS
from projections.deadlines import Deadlines
from projections.mail import Mails
from projections.registrations import Registrations
from projections.strays import Strays

PACE = timedelta(milliseconds=200)
"""Least time between two batches of a read model that nobody waits for."""

PACE_WAITED_FOR = timedelta(milliseconds=10)
"""The same for the one that clients wait for: under load it saves half of its transactions (our measurement)."""

APPENDS_PACE = timedelta(milliseconds=4)
"""Least time between two appends of a process that answers no requests, and between two loads: the outcomes of several
mails, and what the saga notes, share a commit."""

LOOK_FOR_LEFTOVERS = timedelta(minutes=10)
"""How often a process that makes no synthetic registrations looks whether one is left that nobody erases."""


def followers(core: Core, settings: Settings, relay: Relay, publisher: PublishesEvents | None) -> list[LeaderTask]:
    """Everything that follows the log, the verification of the read models, checkpoints, and alerts.

    Args:
        publisher: of integration events; None without a broker.

    Raises:
        CannotStart, BadDataDirectory: checkpoints cannot be signed; one line, fit to show.
    """
    leading: list[LeaderTask] = [
        Projector(
            projection(),
            store=core.tail,
            notifications=core.notifications,
            # Clients wait for their own registration; the others may be a little late.
            pace=PACE_WAITED_FOR if projection is Registrations else PACE,
            announced=projection is Registrations,
        )
        for projection in PROJECTIONS
    ]
    leading.append(
        ProcessManager(
            store=core.store,
            tail=core.tail,
            handlers=core.handlers,
            notifications=core.notifications,
            clock=core.clock,
            policy=core.policy,
            due=Deadlines().due,
            tracing=core.tracing,
            release=version("registrar"),
        )
    )
    leading.append(relay)
    if publisher is not None:
        leading.append(IntegrationEvents(tail=core.tail, notifications=core.notifications, publisher=publisher))
    leading.extend(erasure_journals(core, settings))
    if settings.verify_interval:
        leading.append(_verification(core, settings, settings.verify_interval))
    checkpoints = checkpointer(settings)
    if checkpoints is not None:
        leading.append(checkpoints)
    if settings.alert_url is not None:
        leading.append(_alerts(core, settings, settings.alert_url.get_secret_value()))
    if settings.synthetic is not None:
        leading.append(_probe(core, settings, settings.synthetic))
    return leading


def by_session(leading: Iterable[LeaderTask]) -> dict[str, list[LeaderTask]]:
    """Who shares a session, by its name: a session is 2 MiB of the server's memory.

    Two kinds do. Saga and relay use theirs for moments. The read models that nobody waits for have turns of one
    transaction each, and may hold each other up, but nobody else; beside them is what hardly ever uses a session.
    """
    sessions: dict[str, list[LeaderTask]] = {}
    for one in leading:
        match one:
            case ProcessManager() | Relay():
                name = "saga-relay"
            case Projector(announced=False) | ErasureJournal() | IntegrationEvents() | BackgroundVerification():
                name = "read-models"
            case _:
                name = one.name
        sessions.setdefault(name, []).append(one)
    return sessions


def beside_followers(core: Core, settings: Settings) -> Works:
    """What a process with followers does beside them, led by nobody."""
    if settings.synthetic is not None:
        return {}
    erasing_leftovers = without_probe(
        core.database.dsn,
        erasing(core),
        statement_timeout=settings.statement_timeout,
        every=LOOK_FOR_LEFTOVERS,
    )
    return {"synthetic leftovers": erasing_leftovers}


def relay_inside(core: Core, settings: Settings, delivery: Delivery) -> Relay:
    """A relay that sends the mails itself."""
    return Relay(
        tail=core.tail,
        notifications=core.notifications,
        hand_over=traced(core.tracing, delivery.deliver, "deliver mail"),
        until_ready=delivery.servers.until_ready,
        turns=turns_of_mails(core, settings),
        finish_within=finish_within(settings),
        give_back=delivery.give_back_claims,
    )


def turns_of_mails(core: Core, settings: Settings) -> Turns:
    """When mails may be handed on: the limit of all that the service sends."""
    limit = next(limit for limit in settings.limits if limit.name == "mails")
    return Turns(limit, on_turn=core.metrics.limit)


def erasure_journals(core: Core, settings: Settings) -> Iterator[ErasureJournal]:
    """What writes the journal of erasures, to each place that there is for it."""
    if (file := journal_file(settings)) is not None:
        complete = partial(is_complete, file, note_key(core.keyring))
        yield _journal(ErasureJournal, core, partial(write_to, file), complete)
    if settings.checkpoint_url is not None:
        yield _journal(PostedErasures, core, taken_by(settings.checkpoint_url.get_secret_value()))


def _journal(
    kind: type[ErasureJournal],
    core: Core,
    take: Callable[[str], Awaitable[None]],
    complete: Callable[[], bool] = lambda: True,
) -> ErasureJournal:
    return kind(
        tail=core.tail,
        notifications=core.notifications,
        key=note_key(core.keyring),
        take=take,
        is_complete=complete,
    )


def _verification(core: Core, settings: Settings, every: timedelta) -> BackgroundVerification:
    return BackgroundVerification(
        PROJECTIONS, dsn=core.database.dsn, every=every, statement_timeout=settings.statement_timeout
    )


def erasing(core: Core) -> Erase:
    """How the probe erases what it made."""

    async def erase(registration_id: UUID, correlation_id: UUID) -> bool:
        try:
            await core.handlers.handle(
                EraseRegistration(registration_id=registration_id), Context(Actor.PROBE, correlation_id)
            )
        except UnknownRegistration:
            return False
        return True

    return erase


def _probe(core: Core, settings: Settings, every: timedelta) -> Probe:
    core.metrics.measured.synthetic_interval(every.total_seconds())
    return Probe(
        Webhook(settings.synthetic_url or settings.public_url),
        secrets=core.keyring,
        erase=erasing(core),
        every=every,
        on_end=core.metrics.synthetic,
    )


def _alerts(core: Core, settings: Settings, url: str) -> Alerts:
    mails = Mails()
    strays = Strays(mails.schema)

    async def dead_letters(connection: Connection) -> int:
        """What an operator has to look at: mails that failed for good, and foreign messages."""
        return await mails.dead_letters(connection) + await strays.count(connection)

    return Alerts(
        Webhook(url),
        service=settings.public_url,
        threshold=settings.alert_dead_letters,
        dead_letters=dead_letters,
        has_checkpoints=settings.has_checkpoints,
        webhooks=[one.name for one in settings.webhook_endpoints],
        on_attempt=core.metrics.alert,
    )
