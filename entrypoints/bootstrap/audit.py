"""The parts of an auditor's commands that read the whole log: they need no secret, and cannot record anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.checkpoints import checkpoint_directory, checkpoint_seeds
from entrypoints.bootstrap.database import check_schema, dsn_to_read, first_connection
from entrypoints.bootstrap.replay import giving_way
from infrastructure.audit.known import Known, known_checkpoints, known_keys
from infrastructure.audit.note_keys import VerifierKey
from infrastructure.audit.rows import Restore, restores
from infrastructure.audit.verification import Told, Verified, verify
from infrastructure.settings.settings import Settings

_STATEMENT_TIMEOUT = timedelta(minutes=1)
"""How long a read of a stretch may take."""


@dataclass(frozen=True, slots=True)
class LogVerifier:
    """For a command that verifies the log.

    Attributes:
        known: the checkpoints that there are.
        restores: of the database, as it has noted them.
        keys: those that sign them or signed them.
    """

    _dsn: str
    known: Sequence[Known]
    restores: Sequence[Restore]
    keys: Sequence[VerifierKey]

    async def verify(self, *, since_checkpoint: bool, told: Told) -> Verified:
        """See `infrastructure.audit.verification.verify`."""
        return await verify(
            self._dsn,
            statement_timeout=_STATEMENT_TIMEOUT,
            checkpoints=[one.checkpoint for one in self.known if one.checkpoint is not None],
            since_checkpoint=since_checkpoint,
            told=told,
        )


@asynccontextmanager
async def log_verifier(settings: Settings, *, with_notes: bool = False) -> AsyncIterator[LogVerifier]:
    """
    Args:
        with_notes: the checkpoints as they were signed are asked for, too.

    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        dsn = await dsn_to_read(settings, stack)
        await check_schema(dsn)
        directory = checkpoint_directory(settings)
        try:
            async with first_connection(dsn, read_only=True) as connection:
                keys = await known_keys(connection, directory, checkpoint_seeds(settings))
                known = await known_checkpoints(connection, directory, keys, with_notes=with_notes)
                restored = await restores(connection)
        except PermissionError as error:
            raise CannotStart(f"The checkpoints in {error.filename} cannot be read; run as their owner.") from None
        stack.enter_context(giving_way())
        yield LogVerifier(dsn, known, restored, keys)
