"""The processes, each from its parts in order: `up`, `serve`, `process`, `work` and `bounces`.

Last in, first out: what runs stops before what it runs on. Each may raise CannotStart, BadDataDirectory,
DatabaseDidNotStart or WrongMasterKey, which are one line each, fit to show.
"""

# ruff: noqa: PLC0415 - as in `cli.main`: a process loads what it runs
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.background import running
from entrypoints.bootstrap.broker import broker_for, mail_consumers, publisher_to, relay_to
from entrypoints.bootstrap.core import Core, Timing, open_core
from infrastructure.postgres.notifications import FOLLOWERS
from infrastructure.settings.settings import Settings

if TYPE_CHECKING:
    from entrypoints.api.parts import Parts
    from entrypoints.bootstrap.delivery import Delivery
    from infrastructure.bounces.listener import BounceListener
    from infrastructure.followers.leadership import LeaderTask
    from infrastructure.mail.smtp.servers import SmtpServers
    from infrastructure.rabbitmq.connection import Broker

_ERASURES_UNKNOWN: Final = (
    "This database was restored from a backup, and who was erased since is not known here; start a process that finds "
    "the journal of erasures in REGISTRAR_CHECKPOINT_DIR first, or say that there is none: UPDATE restores SET "
    "settled_at = now()."
)


@dataclass(frozen=True, slots=True)
class Process:
    """A process that runs.

    Attributes:
        api: what its listeners create their applications with; None in a process that has none.
        broker: RabbitMQ, None where mail is handed over inside the process.
        delivery: the sending of mails, None in a process that does not.
        bounces: takes notifications of mails that came back, None in a process that does not.
    """

    core: Core
    api: Parts | None
    broker: Broker | None
    delivery: Delivery | None = None
    bounces: BounceListener | None = None


@asynccontextmanager
async def up(settings: Settings, timing: Timing | None = None) -> AsyncIterator[Process]:
    """Everything in one process, with a mailbox if no mail server is set."""
    timing = timing or Timing()
    async with AsyncExitStack() as stack:
        core = await open_core(settings, stack, timing)
        # Not before PostgreSQL has been asked to start: a command that loads them meanwhile has them by now.
        from entrypoints.bootstrap.api import api_parts
        from entrypoints.bootstrap.delivery import open_delivery, open_mailbox
        from entrypoints.bootstrap.erasures import erase_again
        from entrypoints.bootstrap.followers import (
            beside_followers,
            by_session,
            followers,
            relay_inside,
            turns_of_mails,
        )

        core.metrics.measured.runs("up", version("registrar"))
        await erase_again(core, settings)
        mailbox = await open_mailbox(settings, stack)
        delivery = await open_delivery(core, settings, stack, timing, mailbox)
        consumers = mail_consumers(core, delivery, stack) if settings.broker_url else ()
        broker = broker_for("work", settings, *consumers)
        relay = (
            relay_to(broker, core, settings, turns_of_mails(core, settings))
            if broker
            else relay_inside(core, settings, delivery)
        )
        api = api_parts(core, settings, stack, broker=broker, servers=delivery.servers, mailbox=mailbox)
        leading = followers(core, settings, relay, publisher_to(broker, core))
        leading += await _webhooks(core, settings)
        beside = beside_followers(core, settings)
        listener = None
        if settings.bounce_listen is not None:
            from entrypoints.bootstrap.bounces import open_listener

            listener = await open_listener(core, settings, stack)
        await stack.enter_async_context(running(core, settings, broker, by_session(leading), beside))
        yield Process(core, api, broker, delivery, listener)


async def _webhooks(core: Core, settings: Settings) -> list[LeaderTask]:
    """What sends webhooks, where there are endpoints."""
    if settings.webhooks is None:
        return []
    from entrypoints.bootstrap.webhooks import webhooks

    return [await webhooks(core, settings)]


@asynccontextmanager
async def serve(settings: Settings, timing: Timing | None = None) -> AsyncIterator[Process]:
    """The HTTP API alone. After a restore it does not start before one that has the journal of erasures did."""
    from entrypoints.bootstrap.api import api_parts
    from entrypoints.bootstrap.erasures import erase_again

    async with AsyncExitStack() as stack:
        core = await open_core(settings, stack, timing or Timing(), role="serve", hears=[FOLLOWERS])
        core.metrics.measured.runs("serve", version("registrar"))
        if not await erase_again(core, settings):
            raise CannotStart(_ERASURES_UNKNOWN)
        broker = broker_for("serve", settings)
        api = api_parts(core, settings, stack, broker=broker)
        await stack.enter_async_context(running(core, settings, broker))
        yield Process(core, api, broker)


@asynccontextmanager
async def process(settings: Settings, timing: Timing | None = None) -> AsyncIterator[Process]:
    """The followers; without a broker, with the mail delivery behind them."""
    from entrypoints.bootstrap.delivery import open_delivery
    from entrypoints.bootstrap.erasures import erase_again
    from entrypoints.bootstrap.followers import (
        APPENDS_PACE,
        beside_followers,
        by_session,
        followers,
        relay_inside,
        turns_of_mails,
    )

    timing = timing or Timing()
    async with AsyncExitStack() as stack:
        core = await open_core(settings, stack, timing, role="process", pace=APPENDS_PACE)
        core.metrics.measured.runs("process", version("registrar"))
        await erase_again(core, settings)
        broker, delivery = broker_for("process", settings), None
        if broker is None:
            delivery = await open_delivery(core, settings, stack, timing)
            relay = relay_inside(core, settings, delivery)
        else:
            relay = relay_to(broker, core, settings, turns_of_mails(core, settings))
        api = _for_operators(core, settings, stack, broker=broker, servers=delivery.servers if delivery else None)
        leading = followers(core, settings, relay, publisher_to(broker, core))
        leading += await _webhooks(core, settings)
        beside = beside_followers(core, settings)
        await stack.enter_async_context(running(core, settings, broker, by_session(leading), beside))
        yield Process(core, api, broker, delivery)


@asynccontextmanager
async def work(settings: Settings, timing: Timing | None = None) -> AsyncIterator[Process]:
    """The mail worker and the consumer of dead letters. Without a broker there is nothing for them to consume."""
    from entrypoints.bootstrap.delivery import WORKERS_PACE, open_delivery

    timing = timing or Timing()
    async with AsyncExitStack() as stack:
        core = await open_core(settings, stack, timing, role="work", pace=WORKERS_PACE, hears=())
        core.metrics.measured.runs("work", version("registrar"))
        delivery = await open_delivery(core, settings, stack, timing)
        broker = broker_for("work", settings, *mail_consumers(core, delivery, stack))
        api = _for_operators(core, settings, stack, broker=broker, servers=delivery.servers)
        await stack.enter_async_context(running(core, settings, broker))
        yield Process(core, api, broker, delivery)


@asynccontextmanager
async def bounces(settings: Settings, timing: Timing | None = None) -> AsyncIterator[Process]:
    """The listener for notifications of mails that came back. After a restore: see `serve`."""
    from entrypoints.bootstrap.bounces import open_listener
    from entrypoints.bootstrap.erasures import erase_again

    async with AsyncExitStack() as stack:
        core = await open_core(settings, stack, timing or Timing(), role="bounces", hears=())
        core.metrics.measured.runs("bounces", version("registrar"))
        if not await erase_again(core, settings):
            raise CannotStart(_ERASURES_UNKNOWN)
        api = _for_operators(core, settings, stack)
        listener = await open_listener(core, settings, stack)
        await stack.enter_async_context(running(core, settings, None))
        yield Process(core, api, None, bounces=listener)


def _for_operators(
    core: Core,
    settings: Settings,
    stack: AsyncExitStack,
    *,
    broker: Broker | None = None,
    servers: SmtpServers | None = None,
) -> Parts | None:
    """What a process that serves nobody else has to show to operators; None where it does not listen for them."""
    if settings.admin_listen is None:
        return None
    from entrypoints.bootstrap.api import api_parts

    return api_parts(core, settings, stack, broker=broker, servers=servers)
