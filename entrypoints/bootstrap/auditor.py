"""The parts of the auditor's commands that read: they record nothing, and open nothing personal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from entrypoints.bootstrap.database import check_schema, dsn_to_read, keyring_of, open_database
from entrypoints.queries.audit import AuditQueries
from entrypoints.queries.explanations import ExplainQueries
from entrypoints.queries.followers import FollowerQueries, followers_with
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.pool import QueryPool
from infrastructure.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class Auditor:
    """Queries on connections that the server keeps read-only."""

    audit: AuditQueries
    explanations: ExplainQueries
    followers: FollowerQueries


@asynccontextmanager
async def auditor(settings: Settings, *, with_keys: bool) -> AsyncIterator[Auditor]:
    """It starts and makes nothing.

    Args:
        with_keys: addresses and Message-IDs are looked up, which needs the master key.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart, WrongMasterKey: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        if with_keys:
            database = await open_database(settings, stack)
            dsn, keyring = database.dsn, await keyring_of(database)
        else:
            dsn, keyring = await dsn_to_read(settings, stack), None
            await check_schema(dsn)
        pool = QueryPool(dsn, statement_timeout=settings.statement_timeout, read_only=True)
        await pool.open()
        stack.push_async_callback(pool.close)
        followers = FollowerQueries(pool, DatabaseClock(), followers_with(settings))
        yield Auditor(AuditQueries(pool, keyring), ExplainQueries(pool, keyring), followers)
