"""The parts of short commands: for those that only read, and for those that act."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from uuid import UUID

from application.addresses import canonical_address, mailbox_guess
from application.handlers import Handlers
from domain.mailbox import Mailbox
from entrypoints.bootstrap.acts import record_act
from entrypoints.bootstrap.core import Core, core_as_it_is
from entrypoints.bootstrap.database import check_schema, dsn_to_read
from entrypoints.queries.activity import ActivityQueries
from entrypoints.queries.events import EventQueries
from entrypoints.queries.followers import FollowerQueries, followers_with
from entrypoints.queries.funnel import FunnelQueries
from entrypoints.queries.mails import MailQueries
from entrypoints.queries.parked import ParkedQueries
from entrypoints.queries.proofs import ProofQueries
from infrastructure.archive.exporting import exported
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.pool import QueryPool
from infrastructure.replay.limits import PastRequests
from infrastructure.replay.what_if import WhatIf
from infrastructure.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class Reader:
    """For a command that only reads: queries on connections that the server keeps read-only.

    Attributes:
        export: see `infrastructure.archive.exporting.exported`.
        record_act: see `entrypoints.bootstrap.acts.record_act`; on a connection of its own.
    """

    events: EventQueries
    mails: MailQueries
    followers: FollowerQueries
    export: Callable[..., AsyncGenerator[bytes, None]]
    record_act: Callable[[str, str | None], Awaitable[None]]
    what_if: WhatIf
    past_requests: PastRequests
    parked: ParkedQueries
    proofs: ProofQueries
    funnel: FunnelQueries
    activity: ActivityQueries


@dataclass(frozen=True, slots=True)
class Desk:
    """For an operator's command that acts.

    Attributes:
        latest_of_mailbox: the registration for which a mail was last decided there, by an address that leads to the
            mailbox; None: nobody has asked for one. Raises what `application.ports.Log.load` does.
    """

    handlers: Handlers
    latest_of_mailbox: Callable[[str], Awaitable[UUID | None]]
    mails: MailQueries
    parked: ParkedQueries


@asynccontextmanager
async def reader(settings: Settings) -> AsyncIterator[Reader]:
    """It starts nothing, makes nothing, and needs no secret.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        dsn = await dsn_to_read(settings, stack)
        await check_schema(dsn)
        pool = QueryPool(dsn, statement_timeout=settings.statement_timeout, read_only=True)
        await pool.open()
        stack.push_async_callback(pool.close)
        clock = DatabaseClock()
        followers = FollowerQueries(pool, clock, followers_with(settings))
        export = partial(exported, pool, release=version("registrar"))
        what_if = WhatIf(dsn, statement_timeout=settings.statement_timeout)
        stack.push_async_callback(what_if.close)
        past_requests = PastRequests(dsn, statement_timeout=settings.statement_timeout)
        stack.push_async_callback(past_requests.close)
        yield Reader(
            EventQueries(pool),
            MailQueries(pool),
            followers,
            export,
            partial(record_act, dsn, statement_timeout=settings.statement_timeout),
            what_if,
            past_requests,
            ParkedQueries(pool),
            ProofQueries(pool),
            FunnelQueries(pool, clock),
            ActivityQueries(pool, followers),
        )


@asynccontextmanager
async def desk(settings: Settings) -> AsyncIterator[Desk]:
    """It records events, and neither changes tables nor runs anything.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, WrongMasterKey: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        core = await core_as_it_is(settings, stack)
        latest = partial(latest_of_mailbox, core)
        yield Desk(core.handlers, latest, MailQueries(core.pool), ParkedQueries(core.pool))


async def latest_of_mailbox(core: Core, email: str) -> UUID | None:
    """See `Desk`."""
    mailbox_id = core.keyring.mailbox_id(mailbox_guess(canonical_address(email)))
    mailbox = (await core.store.load(mailboxes=(mailbox_id,))).get(Mailbox, mailbox_id)
    return None if mailbox is None else UUID(mailbox.latest.registration_id)
