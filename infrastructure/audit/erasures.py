"""The journal of erasures: which registrations were erased, in a file outside of the database.

A backup from before an erasure brings the person's key back. At the start after such a restore, whoever is in the
journal is erased again. Each line is a note of its own, signed in the form of C2SP's signed-note with a key that is
derived from the root secret: no other key has to be kept for it, it is the same after a restore and after a change of
the master key, and nobody can have a person erased by writing to the file. There is no personal data in it.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec
import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from application.crash_points import crash_point
from domain.recorded import Position
from domain.registration import Registration
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

_ED25519: Final = b"\x01"
_DASH: Final = "\u2014 "


class NotSigned(Exception):
    """A note is not signed by this key, or is none."""


class NoteKey:
    """Signs notes, and verifies them (C2SP signed-note, Ed25519)."""

    def __init__(self, seed: bytes, name: str = ORIGIN) -> None:
        """
        Args:
            seed: 32 bytes, the private key of RFC 8032.
        """
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._private.public_key()
        self._name = name
        public = _ED25519 + self._public.public_bytes_raw()
        self._id = sha256(name.encode() + b"\n" + public).digest()[:4]
        self.public = f"{name}+{self._id.hex()}+{b64encode(public).decode()}"

    def sign(self, text: str) -> str:
        """The note of a text, which ends with a line feed."""
        signature = b64encode(self._id + self._private.sign(text.encode())).decode()
        return f"{text}\n{_DASH}{self._name} {signature}\n"

    def verify(self, note: str) -> str:
        """The text of a note.

        Raises:
            NotSigned: it is not signed by this key.
        """
        text, separator, signatures = note.rpartition("\n\n")
        for line in signatures.splitlines():
            try:
                signature = b64decode(line.removeprefix(f"{_DASH}{self._name} "), validate=True)
                if signature[:4] == self._id:
                    self._public.verify(signature[4:], f"{text}\n".encode())
                    return f"{text}\n"
            except (ValueError, InvalidSignature):
                continue
        raise NotSigned(f"not signed by {self.public}" if separator else "not a note")


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


class _Line(msgspec.Struct):
    note: str


_DECODER: Final = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A line of the journal, whose signature has not been looked at yet."""

    erasure: Erasure
    note: str


def read_journal(file: Path) -> list[JournalEntry]:
    """Every line that is one; a torn one, of a crash, has been written again behind it.

    Raises:
        OSError: it cannot be read; FileNotFoundError: there is none.
    """
    found = []
    for line in file.read_bytes().splitlines():
        try:
            note = _DECODER.decode(line).note
            found.append(JournalEntry(Erasure.parse(note), note))
        except (msgspec.MsgspecError, ValueError):
            if line:
                log.warning(
                    "erasures.unreadable_line", file=file.name, hint="the journal has a line that is none of ours"
                )
    return found


async def write_to(file: Path, note: str) -> None:
    """Add a note to the journal; it is on disk when this returns.

    Raises:
        OSError: it is not, or only a part of it.
    """
    await asyncio.to_thread(append_line, file, msgspec.json.encode(_Line(note)) + b"\n")


def append_line(file: Path, line: bytes) -> None:
    """Add a line to a file that is only ever added to; it is on disk when this returns.

    Raises:
        OSError: it is not, or only a part of it.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not file.exists()
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        data = b"\n" * bool(torn) + line
        written = os.write(descriptor, data)
        os.fsync(descriptor)
        if written != len(data):
            raise OSError(f"only {written} bytes of {len(data)} were written")
    finally:
        os.close(descriptor)
    if is_new:
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class ErasureJournal:
    """Follows the log, and has each erasure written to the journal; one process leads (`followers.leadership.lead`).

    At least once: its position moves once a line is on disk, so that a crash in between repeats the line. Nothing that
    goes wrong here reaches an erasure, which is in the log and effective before.
    """

    name = "erasures"

    def __init__(
        self,
        *,
        tail: ReadsLog,
        notifications: Notifications,
        key: NoteKey,
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
