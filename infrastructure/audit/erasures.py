"""The journal of erasures: which registrations were erased, in a file outside of the database.

A backup from before an erasure brings the person's key back. At the start after such a restore, whoever is in the
journal is erased again. Each erasure is a note of its own, signed in the form of C2SP's signed-note with a key that is
derived from the root secret: no other key has to be kept for it, it is the same after a restore and after a change of
the master key, and nobody can have a person erased by writing to the file. There is no personal data in it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from application.crash_points import crash_point
from domain.recorded import Position
from domain.registration import Registration
from infrastructure.audit.note_keys import SigningKey
from infrastructure.audit.publishing import append
from infrastructure.embedded.files import make_directory
from infrastructure.event_store.reader import ReadsLog, RecordedRow
from infrastructure.followers.follow import follow, keep_leadership
from infrastructure.followers.leadership import while_touching
from infrastructure.followers.positions import position_of, save_position
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.notifications import Notifications

log = structlog.get_logger(__name__)

FILE: Final = "erasures"
"""Of the journal, beside the checkpoints."""

ORIGIN: Final = "registrar/erasures"
"""First line of each note, and name of the key that signs it."""

BATCH: Final = 500

PACE: Final = timedelta(milliseconds=500)
"""Least time between two reads at the end of the log, so that under load its position is saved twice a second."""

MOST_PAUSE: Final = timedelta(seconds=30)
"""Between two attempts to write to a full disk, or to a place that does not take it."""

_NOTE: Final = re.compile(rf"{ORIGIN}\nregistration [0-9a-f-]{{36}}\nposition [0-9]+\nerased [^\n]+\n\n(?:— [^\n]+\n)+")


@dataclass(frozen=True, slots=True)
class Erasure:
    """An erasure, as the journal has it.

    Attributes:
        position: of its event in the log that it was recorded in.
    """

    registration_id: UUID
    position: Position
    erased_at: datetime

    def text(self) -> str:
        """The text of its note."""
        return (
            f"{ORIGIN}\nregistration {self.registration_id}\nposition {self.position}\n"
            f"erased {self.erased_at.astimezone(UTC).isoformat()}\n"
        )

    @classmethod
    def parse(cls, text: str) -> Erasure:
        """
        Raises:
            ValueError: it is not such a text.
        """
        lines = text.splitlines()[:4]
        if len(lines) < 4 or lines[0] != ORIGIN:
            raise ValueError("not an erasure")
        values = {name: value for name, _, value in (line.partition(" ") for line in lines[1:])}
        try:
            return cls(UUID(values["registration"]), int(values["position"]), datetime.fromisoformat(values["erased"]))
        except KeyError:
            raise ValueError("not an erasure") from None


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A note of the journal, whose signature has not been looked at yet."""

    erasure: Erasure
    note: str


def read_journal(file: Path) -> list[JournalEntry]:
    """Every note in it, however they follow each other: as they were written here, or posted to an address.

    What a crash has torn was written again behind it.

    Raises:
        OSError: it cannot be read; FileNotFoundError: there is none.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    found, strange = [], bool(_NOTE.sub("", text).strip())
    for note in _NOTE.findall(text):
        try:
            found.append(JournalEntry(Erasure.parse(note), note))
        except ValueError:
            strange = True
    if strange:
        log.warning("erasures.unreadable_line", file=file.name, hint="the journal has lines that are none of ours")
    return found


async def write_to(file: Path, note: str) -> None:
    """Add a note to the journal; it is on disk when this returns.

    Raises:
        OSError: it is not.
    """
    await asyncio.to_thread(_write, file, note)


def _write(file: Path, note: str) -> None:
    make_directory(file.parent)
    append(file, note)


class ErasureJournal:
    """Follows the log, and has each erasure written to the journal; one process leads (`followers.leadership.lead`).

    At least once: its position moves once a note is on disk, so that a crash in between repeats the note. Nothing that
    goes wrong here reaches an erasure, which is in the log and effective before.
    """

    name = "erasures"

    def __init__(
        self,
        *,
        tail: ReadsLog,
        notifications: Notifications,
        key: SigningKey,
        take: Callable[[str], Awaitable[None]],
    ) -> None:
        """
        Args:
            take: keeps a note for good, and is repeated until it raises nothing.
        """
        self._tail = tail
        self._notifications = notifications
        self._key = key
        self._take = take

    async def work(self, connection: Connection) -> None:
        """Follow until cancelled; see `infrastructure.followers.leadership.LeaderTask`."""
        await connection.execute("SET synchronous_commit = off")  # a lost position repeats lines
        position = await position_of(connection, self.name)
        await follow(
            position,
            read=self._read,
            act=partial(self._advance, connection),
            wake=self._notifications,
            rest=lambda took: max(timedelta(0), PACE - took),
            chores=[keep_leadership(connection)],
        )

    async def _read(self, position: Position) -> tuple[Sequence[RecordedRow], Position]:
        return await self._tail.read(position, BATCH, (Registration.PersonalDataErased.TOPIC,))

    async def _advance(
        self, connection: Connection, rows: Sequence[RecordedRow], position: Position, seen: Position
    ) -> None:
        if rows:
            crash_point("erasures.before_line")
            await while_touching(connection, self._write_all(rows))
            crash_point("erasures.before_position")
        await save_position(connection, self.name, position, seen)

    async def _write_all(self, rows: Sequence[RecordedRow]) -> None:
        for row in rows:
            note = self._key.sign(Erasure(row.stream_id, row.position, row.recorded_at).text())
            await self._until_taken(note)

    async def _until_taken(self, note: str) -> None:
        pause, told = timedelta(milliseconds=200), False
        while True:
            try:
                await self._take(note)
                return
            except Exception as error:  # noqa: BLE001 - whatever it was: an erasure must get there
                if not told:
                    log.error(  # noqa: TRY400 - its text may hold an address with a secret
                        "erasures.not_written",
                        error=type(error).__name__,
                        hint="erased persons would be back after a restore of a backup: is the disk of CHECKPOINT_DIR "
                        "full, or CHECKPOINT_URL away? It is tried again",
                    )
                told = True
            await asyncio.sleep(pause.total_seconds())
            pause = min(2 * pause, MOST_PAUSE)


class PostedErasures(ErasureJournal):
    """The same for the journal's copy at an address, which comes as far as it can, and holds up no other."""

    name = "posted-erasures"
