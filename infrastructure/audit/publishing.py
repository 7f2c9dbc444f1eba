"""Where checkpoints go, out of reach of who can write to the database: a directory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from infrastructure.audit.note_keys import VerifierKey
from infrastructure.audit.notes import notes_in
from infrastructure.embedded.files import make_directory, open_private, sync, write

LATEST: Final = "checkpoint"
KEYS: Final = "keys"
_OF_A_DAY: Final = "*.checkpoints"


def append(file: Path, text: str) -> None:
    """Append `text`, and an empty line, durably. What a crash has left half-written before stays apart from it.

    Raises:
        OSError: it is not there; nothing of it is.
    """
    is_new = not file.exists()
    descriptor = open_private(file, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 2, max(0, size - 2)) != b"\n\n"
        content = (("\n\n" if torn else "") + text + "\n").encode()
        try:
            while content:  # a full disk takes a part, and refuses the rest
                content = content[os.write(descriptor, content) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        sync(file.parent)


def _ends_with(file: Path, content: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            opened.seek(-len(content), os.SEEK_END)
            return opened.read() == content
    except (FileNotFoundError, OSError):  # or it is shorter
        return False


class CheckpointDirectory:
    """`checkpoint` is the latest one, `2026-11-28.checkpoints` are all of that day, `keys` has who signed them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def publish(self, note: str, signed_at: datetime, keys: Iterable[VerifierKey], *, is_latest: bool = True) -> None:
        """Write a checkpoint; it is on disk when this returns. Again does no harm.

        Args:
            signed_at: tells the day.
            is_latest: it takes the place of the one that readers are shown first.

        Raises:
            OSError: it is not written.
        """
        make_directory(self.path)
        known = self.keys()
        for key in keys:
            if key not in known:
                append(self.path / KEYS, f"{key}\n")
        of_the_day = self.path / f"{signed_at:%Y-%m-%d}.checkpoints"
        if not _ends_with(of_the_day, f"{note}\n".encode()):  # else a try before this one came as far as that
            append(of_the_day, note)
        if is_latest:
            write(self.path / LATEST, note)

    def keys(self) -> list[VerifierKey]:
        """Those that ever signed here, also before a rotation.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            lines = (self.path / KEYS).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(VerifierKey.parse(line))
            except ValueError:  # an empty or a torn one
                continue
        return found

    def files(self) -> list[Path]:
        """Of the days, the earliest first."""
        return sorted(self.path.glob(_OF_A_DAY))

    def notes(self) -> Iterator[str]:
        """
        Raises:
            OSError: a file cannot be read.
        """
        for file in self.files():
            yield from notes_in(file.read_text(encoding="utf-8", errors="replace"))

    def latest_notes(self) -> Iterator[str]:
        """The last one first.

        Raises:
            OSError: a file cannot be read.
        """
        for file in reversed(self.files()):
            yield from reversed(list(notes_in(file.read_text(encoding="utf-8", errors="replace"))))
