"""The parts of an auditor's commands that read the whole log: they need no secret, and cannot record anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.checkpoint_places import checkpoint_directory, checkpoint_seeds
from entrypoints.bootstrap.database import check_schema, dsn_to_read, first_connection
from entrypoints.bootstrap.replay import giving_way
from infrastructure.audit.known import Claims, Known, known_checkpoints, known_keys
from infrastructure.audit.note_keys import VerifierKey
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.rows import Restore, restores
from infrastructure.audit.verification import Told, Verified, verify
from infrastructure.postgres.connection import Connection
from infrastructure.settings.settings import Settings

_STATEMENT_TIMEOUT = timedelta(minutes=1)
"""How long a read of a stretch may take."""


@dataclass(frozen=True, slots=True)
class LogVerifier:
    """For a command that verifies the log, or shows its checkpoints.

    Attributes:
        keys: those that sign checkpoints or signed them.
    """

    _dsn: str
    _directory: CheckpointDirectory | None
    keys: Sequence[VerifierKey]

    async def verify(self, *, since_checkpoint: bool, told: Told) -> Verified:
        """See `infrastructure.audit.verification.verify`."""
        async with self._connection() as connection:
            claims = await Claims.of(connection, self._directory, self.keys)
        return await verify(
            self._dsn,
            statement_timeout=_STATEMENT_TIMEOUT,
            claims=claims,
            is_signed=claims.is_signed,
            since_checkpoint=since_checkpoint,
            told=told,
        )

    async def known(self, most: int) -> list[Known]:
        """See `infrastructure.audit.known.known_checkpoints`."""
        async with self._connection() as connection:
            return await known_checkpoints(connection, self._directory, self.keys, most=most)

    async def restores(self) -> list[Restore]:
        """Of the database, as it has noted them."""
        async with self._connection() as connection:
            return await restores(connection)

    def _connection(self) -> AbstractAsyncContextManager[Connection]:
        return first_connection(self._dsn, read_only=True)


@asynccontextmanager
async def log_verifier(settings: Settings) -> AsyncIterator[LogVerifier]:
    """
    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show; also within.
    """
    async with AsyncExitStack() as stack:
        dsn = await dsn_to_read(settings, stack)
        await check_schema(dsn)
        directory = checkpoint_directory(settings)
        try:
            async with first_connection(dsn, read_only=True) as connection:
                keys = await known_keys(connection, directory, checkpoint_seeds(settings))
            stack.enter_context(giving_way())
            yield LogVerifier(dsn, directory, keys)
        except PermissionError as error:
            raise CannotStart(f"The checkpoints in {error.filename} cannot be read; run as their owner.") from None
