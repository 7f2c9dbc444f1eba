"""The parts of an auditor's commands that read the whole log: they need no secret, and cannot record anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from entrypoints.bootstrap.database import check_schema, dsn_to_read
from infrastructure.audit.roots import Checkpoint
from infrastructure.audit.verification import Told, Verified, verify
from infrastructure.settings.settings import Settings

_STATEMENT_TIMEOUT = timedelta(minutes=1)
"""How long a read of a stretch may take."""


@dataclass(frozen=True, slots=True)
class Auditor:
    """For a command that verifies the log."""

    _dsn: str
    _checkpoints: Sequence[Checkpoint]

    async def verify(self, *, since_checkpoint: bool, told: Told) -> Verified:
        """See `infrastructure.audit.verification.verify`."""
        return await verify(
            self._dsn,
            statement_timeout=_STATEMENT_TIMEOUT,
            checkpoints=self._checkpoints,
            since_checkpoint=since_checkpoint,
            told=told,
        )


@asynccontextmanager
async def auditor(settings: Settings) -> AsyncIterator[Auditor]:
    """
    Raises:
        CannotStart, BadDataDirectory, DatabaseDidNotStart: one line each, fit to show.
    """
    async with AsyncExitStack() as stack:
        dsn = await dsn_to_read(settings, stack)
        await check_schema(dsn)
        yield Auditor(dsn, ())
