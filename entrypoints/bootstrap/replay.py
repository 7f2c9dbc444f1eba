"""The parts of commands that replay: rebuilds, which are recorded in the log, and verifications, which only look."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import uuid4

from application.commands import RecordRebuild
from application.handlers import Handlers
from application.ports import Context
from domain.recorded import Actor, Position
from entrypoints.bootstrap.core import Timing, core_on
from entrypoints.bootstrap.database import check_schema, dsn_to_read, keyring_after_update, open_database
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.followers.versions import version_of
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.replay.comparison import Differences
from infrastructure.replay.copies import MakesProjection
from infrastructure.replay.moments import Moment
from infrastructure.replay.progress import Watch
from infrastructure.replay.rebuild import RebuildAct, Rebuilds
from infrastructure.replay.superseded import Dropped, drop_superseded
from infrastructure.replay.time_travel import Scratch, as_of, diff, drop
from infrastructure.replay.verification import verify_all
from infrastructure.settings.settings import Settings
from projections import PROJECTIONS

READ_MODELS: dict[str, MakesProjection] = {projection.name: projection for projection in PROJECTIONS}


def read_model_named(name: str) -> str | None:
    """The read model of this release that is meant: by its name ("registrations_2"), or without its version; None if
    there is none."""
    if name in READ_MODELS:
        return name
    return next((ours for ours in READ_MODELS if (found := version_of(ours)) and found.read_model == name), None)


NICE = 10
"""Half of the way to the lowest priority."""

_LOG_TIMEOUT = timedelta(minutes=1)
"""How long a read of a batch may take."""


@dataclass(frozen=True, slots=True)
class Rebuilder:
    """For a command that rebuilds. What it does is recorded by handlers whose sessions do not replay."""

    _dsn: str
    _log: LogReader
    _handlers: Handlers
    _reason: str | None = None

    def because(self, reason: str | None) -> Rebuilder:
        """The same, with the operator's reason in what it records."""
        return replace(self, _reason=reason)

    def rebuilds(self, watch: Watch, *, throttle: int | None = None) -> Rebuilds:
        """See `Rebuilds`; an operator's acts, which belong together."""
        context = Context(Actor.OPERATOR, correlation_id=uuid4(), reason=self._reason)

        async def record(act: RebuildAct) -> None:
            command = RecordRebuild(
                rebuild_id=act.rebuild_id,
                read_model=act.read_model,
                act=act.act,
                position=act.position,
                differences=act.differences,
                decision=act.decision,
            )
            await self._handlers.handle(command, context)

        return Rebuilds(self._dsn, log=self._log, record=record, watch=watch, throttle=throttle)

    async def drop_superseded(self, name: str) -> list[Dropped]:
        """See `infrastructure.replay.superseded.drop_superseded`."""
        context = Context(Actor.OPERATOR, correlation_id=uuid4(), reason=self._reason)

        async def record(dropped: Dropped) -> None:
            command = RecordRebuild(
                rebuild_id=uuid4(), read_model=dropped.name, act="version-dropped", position=dropped.position
            )
            await self._handlers.handle(command, context)

        return await drop_superseded(self._dsn, READ_MODELS[name], record=record)


@dataclass(frozen=True, slots=True)
class Verifier:
    """For a command that verifies, or travels in time."""

    _dsn: str
    _log: LogReader

    async def verify(self, name: str, watch: Watch) -> Differences:
        """`verify_all` of one."""
        [found] = await self.verify_all([name], watch)
        return found

    async def verify_all(self, names: Sequence[str], watch: Watch) -> list[Differences]:
        """See `infrastructure.replay.verification.verify_all`."""
        return await verify_all(self._dsn, [READ_MODELS[name] for name in names], log=self._log, watch=watch)

    async def as_of(self, name: str, when: Moment, watch: Watch) -> Scratch:
        """See `infrastructure.replay.time_travel.as_of`."""
        return await as_of(self._dsn, READ_MODELS[name], when, log=self._log, watch=watch)

    async def drop(self, name: str, when: Moment) -> str | None:
        """See `infrastructure.replay.time_travel.drop`."""
        return await drop(self._dsn, READ_MODELS[name], when)

    async def diff(self, name: str, one: Moment, other: Moment, watch: Watch) -> tuple[Position, Position, Differences]:
        """See `infrastructure.replay.time_travel.diff`."""
        return await diff(self._dsn, READ_MODELS[name], one, other, log=self._log, watch=watch)


@contextmanager
def giving_way() -> Iterator[None]:
    """On a machine that it shares with the service, this thread takes what that leaves of the processors."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, max(before, NICE))
    try:
        yield
    finally:
        with suppress(PermissionError):  # a process may always give way, but take the way back with a right only
            os.setpriority(os.PRIO_PROCESS, 0, before)


@asynccontextmanager
async def rebuilder(settings: Settings) -> AsyncIterator[Rebuilder]:
    """It has no broker and no mail server, and runs no follower.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, WrongMasterKey: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        database = await open_database(settings, stack)
        keyring = await keyring_after_update(database)
        core = await core_on(database, keyring, settings, stack, Timing())
        stack.enter_context(giving_way())  # not before: an embedded database that is started here does not
        yield Rebuilder(database.dsn, await _log(database.dsn, stack), core.handlers)


@asynccontextmanager
async def verifier(settings: Settings) -> AsyncIterator[Verifier]:
    """It needs no secret, and cannot record anything.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        dsn = await dsn_to_read(settings, stack)
        await check_schema(dsn)
        stack.enter_context(giving_way())
        yield Verifier(dsn, await _log(dsn, stack))


async def _log(dsn: str, stack: AsyncExitStack) -> LogReader:
    line = ReconnectingConnection(dsn, name="replay log", statement_timeout=_LOG_TIMEOUT, read_only=True)
    stack.push_async_callback(line.close)
    return LogReader(line, EventCodec())
