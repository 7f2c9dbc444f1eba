"""What runs in the background from the start of a process to its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from application.addresses import forget_domains
from application.doubtful_domains import forget_judged_domains
from application.ports import Unavailable
from entrypoints.bootstrap.core import Core
from infrastructure.embedded.postgres import DatabaseDidNotStart, EmbeddedPostgres
from infrastructure.event_store.store import EventStore
from infrastructure.followers.leadership import LeaderTask, SharedSession, lead
from infrastructure.settings.settings import Settings
from infrastructure.ticks import until_tick

if TYPE_CHECKING:
    from infrastructure.rabbitmq.connection import Broker

log = structlog.get_logger(__name__)

REVIVE = timedelta(milliseconds=500)
"""How often the embedded database is looked after, where the system does not tell that a process has ended."""

TIME_CHECK = timedelta(seconds=10)
"""How often the clock is set by the database when no append does it."""

FORGET = timedelta(seconds=3)
"""How often what is left of parsed addresses is forgotten: an erased person's is gone from every process in 5 s."""

Works = dict[str, Coroutine[Any, Any, None]]
"""What runs, by name."""


@asynccontextmanager
async def running(
    core: Core,
    settings: Settings,
    broker: Broker | None,
    leading: Mapping[str, Sequence[LeaderTask]] | None = None,
    beside: Works | None = None,
) -> AsyncIterator[None]:
    """Run the core's own works, the broker, what is to be led, and what is `beside` that, until the end.

    Args:
        leading: those that share a session, by its name.

    Then cancel, and wait until all have finished what must not be cut off. None of them ends before: if one does, that
    is logged, and `core.broken` set.
    """
    works: Works = {
        "notifications": core.notifications.run(),
        "clock": _keep_time(core.store),
        "circuits": core.shared_circuits.run(),
        "forgetting": _forget(),
        **(beside or {}),
    }
    if core.database.embedded is not None:
        works["embedded PostgreSQL"] = _keep_running(core.database.embedded)
    if core.exported is not None:
        works["tracing"] = core.exported.run
    if broker is not None:
        works["RabbitMQ"] = broker.run()
    dsn, patience = core.database.dsn, settings.statement_timeout
    for name, sharing in (leading or {}).items():
        shared = SharedSession(dsn, name=name, statement_timeout=patience)
        for work in sharing:
            works[work.name] = lead(work, dsn, statement_timeout=patience, shared=shared)
    tasks = [asyncio.create_task(work, name=name) for name, work in works.items()]
    for task in tasks:
        task.add_done_callback(partial(note_end, core.broken))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def note_end(broken: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Say that a task that runs until the end has ended before, and set `broken`; without effect if it was
    cancelled."""
    if task.cancelled():
        return
    hint = "this process is not ready any more, and ends; start it again, and report this bug"
    error = task.exception()
    says = "it returned" if error is None else type(error).__name__
    log.error("background.failed", work=task.get_name(), error=says, exc_info=error, hint=hint)
    broken.set()


async def _keep_running(postgres: EmbeddedPostgres) -> None:
    """Restart the embedded database when it was killed: nothing else looks after it."""
    while True:
        if (pid := postgres.pid) is not None:
            await until_ended(pid)
        if postgres.pid is None:
            log.warning("database.gone", hint="the embedded PostgreSQL has ended; it is started again")
            try:
                await asyncio.to_thread(postgres.start)
            except DatabaseDidNotStart as error:
                log.error("database.does_not_start", error=type(error).__name__, hint="see postgres.log")  # noqa: TRY400
                await asyncio.sleep(REVIVE.total_seconds())


async def until_ended(pid: int) -> None:
    """Return when the process has ended, or may have."""
    try:
        process = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not on this system, or it is gone
        await asyncio.sleep(REVIVE.total_seconds())
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)


async def _forget() -> None:
    while True:
        await asyncio.sleep(until_tick(FORGET).total_seconds())
        forget_domains()
        forget_judged_domains()


async def _keep_time(store: EventStore) -> None:
    while True:
        await asyncio.sleep(TIME_CHECK.total_seconds())
        with suppress(Unavailable, psycopg.Error):  # the next look comes; until then the monotonic clock carries on
            await store.ask_time()
