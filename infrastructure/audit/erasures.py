"""The journal of erasures: which registrations were erased, in a file outside of the database.

A backup from before an erasure brings the person's key back. At the start after such a restore, whoever is in the
journal is erased again. Each erasure is a note of its own, signed in the form of C2SP's signed-note with a key that is
derived from the root secret: no other key has to be kept for it, it is the same after a restore and after a change of
the master key, and nobody can have a person erased by writing to the file. There is no personal data in it.

One more note says since when the journal is complete: an installation that has never erased anybody has a journal, too,
and one that was begun after a restore says nothing of the time before.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import structlog

from application.crash_points import crash_point
from domain.recorded import Position
from domain.registration import Registration
from domain.synthetic import is_synthetic
from infrastructure.audit.note_keys import SigningKey
from infrastructure.audit.notes import BadNote, open_note
from infrastructure.audit.publishing import append
from infrastructure.embedded.files import make_directory
from infrastructure.event_store.reader import ReadsLog, RecordedRow
from infrastructure.followers.follow import follow, keep_leadership
from infrastructure.followers.leadership import LeaderSession, while_touching
from infrastructure.followers.positions import position_of, save_position
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

_NOTE: Final = re.compile(
    rf"{ORIGIN}\n(?:registration [0-9a-f-]{{36}}\nposition [0-9]+\nerased|complete since) [^\n]+\n\n(?:— [^\n]+\n)+"
)
_END: Final = "SELECT position, clock_timestamp() FROM public.head"


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
class Complete:
    """That a journal has every erasure in the log as of a moment, and that later ones are added to it."""

    since: datetime

    def text(self) -> str:
        """The text of its note."""
        return f"{ORIGIN}\ncomplete since {self.since.astimezone(UTC).isoformat()}\n"

    @classmethod
    def parse(cls, text: str) -> Complete:
        """
        Raises:
            ValueError: it is not such a text.
        """
        _, words, time = "\n".join(text.splitlines()[:2]).partition(f"{ORIGIN}\ncomplete since ")
        if not words:
            raise ValueError("it does not say that a journal is complete")
        return cls(datetime.fromisoformat(time))


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """An erasure in a journal. Nobody has looked at the signature of its note yet."""

    erasure: Erasure
    note: str


@dataclass(frozen=True, slots=True)
class CompleteNote:
    """Where a journal says that it is complete. Nobody has looked at the signature of that note yet."""

    complete: Complete
    note: str


class Journal(NamedTuple):
    """What is in a journal."""

    entries: Sequence[JournalEntry] = ()
    complete: Sequence[CompleteNote] = ()


def read_journal(file: Path) -> Journal:
    """Every note in it, however they follow each other: as they were written here, or posted to an address.

    What a crash has torn was written again behind it.

    Raises:
        OSError: it cannot be read; FileNotFoundError: there is none.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    entries, complete, strange = list[JournalEntry](), list[CompleteNote](), bool(_NOTE.sub("", text).strip())
    for note in _NOTE.findall(text):
        try:
            if note.startswith(f"{ORIGIN}\ncomplete"):
                complete.append(CompleteNote(Complete.parse(note), note))
            else:
                entries.append(JournalEntry(Erasure.parse(note), note))
        except ValueError:
            strange = True
    if strange:
        log.warning("erasures.unreadable_line", file=file.name, hint="the journal has lines that are none of ours")
    return Journal(entries, complete)


def is_complete(file: Path, key: SigningKey) -> bool:
    """Does a note in the journal, signed by this key, say so? Not if it cannot be read."""
    try:
        found = read_journal(file).complete
    except OSError:
        return False
    return any(refusal_of(one.note, key) is None for one in found)


def refusal_of(note: str, key: SigningKey) -> str | None:
    """Why a note is not one that this key has signed; None: it is."""
    try:
        open_note(note, [key.verifier])
    except BadNote as error:
        return str(error)
    return None


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

    At least once: its position moves once a note is on disk, so that a crash in between repeats the note. A journal
    that does not say that it is complete, because it is new, or was lost, is written from the first event of the log
    on; the position stays at 0 until it is. Nothing that goes wrong here reaches an erasure, which is in the log and
    effective before.
    """

    name = "erasures"

    def __init__(
        self,
        *,
        tail: ReadsLog,
        notifications: Notifications,
        key: SigningKey,
        take: Callable[[str], Awaitable[None]],
        is_complete: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            take: keeps a note for good, and is repeated until it raises nothing.
            is_complete: does the journal say so, once there is a position? An address cannot be asked.
        """
        self._tail = tail
        self._notifications = notifications
        self._key = key
        self._take = take
        self._is_complete = is_complete
        self._saved: Position = 0
        self._end: Position = 0
        self._complete = Complete(datetime.min.replace(tzinfo=UTC))

    async def work(self, session: LeaderSession) -> None:
        """Follow until cancelled; see `infrastructure.followers.leadership.LeaderTask`."""
        # A file system that hangs must not keep others from leading, while those who share the session go on using it.
        async with asyncio.timeout(MOST_PAUSE.total_seconds()):
            is_complete = await asyncio.to_thread(self._is_complete)
        async with session.turn() as connection:
            position = await position_of(connection, self.name)
            if position and not is_complete:
                await save_position(connection, self.name, position, 0)
                position = 0
            row = await (await connection.execute(_END)).fetchone()
            assert row is not None  # noqa: S101 - a log has an end
            await connection.execute("SET synchronous_commit = off")  # a lost position repeats lines
        self._end, self._complete, self._saved = row[0], Complete(row[1]), position
        await follow(
            position,
            read=self._read,
            act=partial(self._advance, session),
            wake=self._notifications,
            rest=lambda took: max(timedelta(0), PACE - took) if self._saved else timedelta(0),
            chores=[keep_leadership(session)],
        )

    async def _read(self, position: Position) -> tuple[Sequence[RecordedRow], Position]:
        return await self._tail.read(position, BATCH, (Registration.PersonalDataErased.TOPIC,))

    async def _advance(
        self, session: LeaderSession, rows: Sequence[RecordedRow], _position: Position, seen: Position
    ) -> None:
        if rows:
            crash_point("erasures.before_line")
            await while_touching(session, self._write_all(rows))
            crash_point("erasures.before_position")
        if not self._saved:
            if seen < self._end:
                return
            await while_touching(session, self._until_taken(self._complete.text()))
        async with session.turn() as connection:
            await save_position(connection, self.name, self._saved, seen)
        self._saved = seen

    async def _write_all(self, rows: Sequence[RecordedRow]) -> None:
        for row in rows:
            if is_synthetic(row.stream_id):
                continue  # nobody is to be forgotten, and there may be one a minute
            await self._until_taken(Erasure(row.stream_id, row.position, row.recorded_at).text())

    async def _until_taken(self, text: str) -> None:
        note = self._key.sign(text)
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
