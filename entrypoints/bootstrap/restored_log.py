"""The log of a restored database: verified, and compared with the newest checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from domain.recorded import Position
from entrypoints.bootstrap.checkpoint_places import checkpoint_seeds
from infrastructure.audit.known import known_keys
from infrastructure.audit.note_keys import VerifierKey
from infrastructure.audit.notes import BadNote, checkpoint_in, open_note
from infrastructure.audit.publishing import LATEST, CheckpointDirectory
from infrastructure.audit.roots import Checkpoint, Claim
from infrastructure.audit.verification import Verified, verify
from infrastructure.backup.layout import Backup, BadBackup, Description, archives_from, gap_in
from infrastructure.postgres.connection import Connection, closing, connect
from infrastructure.settings.settings import Settings

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""

PATIENCE: Final = timedelta(minutes=10)
"""For one statement."""


@dataclass(frozen=True, slots=True)
class RestoredLog:
    """A log whose chain verifies, and that is the one that was backed up.

    Attributes:
        recorded_at: of its last event; None if there is none.
    """

    position: Position
    hash: bytes
    recorded_at: datetime | None


@dataclass(frozen=True, slots=True)
class Arrived:
    """A restored database, whose chain verifies.

    Attributes:
        gap: the first segment that the archive lacks between two that it has; None if there is none.
        checkpointed: position up to which the newest checkpoint covers the log; None: there is no checkpoint.
        agrees: is the restored log the one that it covers? None where it covers more than was restored.
        unsigned: where no known key has signed what should be a checkpoint, each with why.
    """

    backup: Backup
    log: RestoredLog
    gap: str | None
    checkpointed: Position | None
    agrees: bool | None
    unsigned: Sequence[str]

    @property
    def is_troubled(self) -> bool:
        """Is it not all that was recorded, or not what was signed?"""
        return bool(self.gap or self.agrees is False or self.unsigned)


async def look_at(
    dsn: str, settings: Settings, backup: Backup, published: Sequence[Path], to_the_end: bool, progress: Progress
) -> Arrived:
    """Verify the log of a restored database.

    Args:
        published: directories of checkpoints.
        to_the_end: the whole archive was wanted.

    Raises:
        BadBackup: it is not as it was recorded, or another log than the one that was backed up.
        CannotVerify: a helper process was ended.
    """
    connection = await connect(dsn, name="restore", statement_timeout=PATIENCE)
    async with closing(connection):
        checkpoint, unsigned = await _newest_checkpoint(connection, settings, published)
        verified = await verify(
            dsn,
            statement_timeout=PATIENCE,
            claims=() if checkpoint is None else (Claim(checkpoint),),
            told=lambda done, of: progress("Verifying", done, of),
        )
        _demand_whole_chain(verified)
        log = await _end_of(connection, backup.description)
    return Arrived(
        backup,
        log,
        gap_in(archives_from(backup)) if to_the_end else None,
        checkpoint.position if checkpoint else None,
        _agrees(verified),
        unsigned,
    )


async def _newest_checkpoint(
    connection: Connection, settings: Settings, published: Sequence[Path]
) -> tuple[Checkpoint | None, list[str]]:
    """The one that covers most, of the latest in each directory that a known key has signed; and what nobody has."""
    may_sign = settings.checkpoint_key is not None or (settings.data_dir / "checkpoint.key").exists()
    seeds = checkpoint_seeds(settings) if may_sign else []
    keys = [key for one in published for key in await known_keys(connection, CheckpointDirectory(one), seeds)]
    signed, unsigned = [], []
    for directory in published:
        try:
            signed += _latest_in(directory, keys)
        except BadNote as error:
            unsigned.append(f"{directory / LATEST}: {error}")
    return max(signed, default=None), unsigned


def _latest_in(directory: Path, keys: Sequence[VerifierKey]) -> list[Checkpoint]:
    note = directory / LATEST
    if not note.is_file():
        return []
    return [checkpoint_in(open_note(note.read_text(encoding="utf-8", errors="replace"), keys))]


def _demand_whole_chain(verified: Verified) -> None:
    of_chain = [one for one in verified.findings if one not in verified.checkpoints.findings]
    if of_chain:
        found = of_chain[0]
        raise BadBackup(f"The restored log does not verify: from position {found.first} on, {found.says}.")


def _agrees(verified: Verified) -> bool | None:
    checkpoints = verified.checkpoints
    if checkpoints.disagrees is None:
        return True if checkpoints.compared else None
    return None if checkpoints.findings[0].kind == "cut" else False


async def _end_of(connection: Connection, description: Description) -> RestoredLog:
    position, hash_at, recorded_at, block = await row_of(
        connection,
        "SELECT h.position, h.hash, (SELECT recorded_at FROM events WHERE notification_id = h.position),"
        " (SELECT encode(hash, 'hex') FROM blocks WHERE last_position = %s) FROM head AS h",
        description.position,
    )
    if description.position and block != description.hash:
        raise BadBackup(
            f"The restored log ends at position {position}, and is not the one that was backed up at position "
            f"{description.position}; use another backup."
        )
    return RestoredLog(position, hash_at, recorded_at)


async def row_of(connection: Connection, query: str, *parameters: object) -> tuple[Any, ...]:
    """The row of a query that has one."""
    row = await (await connection.execute(query.encode(), parameters or None)).fetchone()
    assert row is not None  # noqa: S101 - see above
    return row
