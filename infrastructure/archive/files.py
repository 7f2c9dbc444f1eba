"""Files of an exported log: compressed where their name says so, and whole or not there at all."""

from __future__ import annotations

import fcntl
import os
import select
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BufferedReader, FileIO
from pathlib import Path
from typing import IO, Any, Final, Protocol

import zstandard

from infrastructure.archive.lines import MAX_LINE_BYTES
from infrastructure.embedded.files import sync

COMPRESSED: Final = ".zst"
_MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""The first bytes of what zstd has compressed (RFC 8878)."""

_CHUNK: Final = 1 << 20

_LOOK_MILLISECONDS: Final = 100
"""How often who waits for a pipe looks whether anybody wants what comes."""


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


class BadFile(Exception):
    """The file is not what was exported; one line, fit to show."""


class Busy(Exception):
    """Another process writes this file."""


@contextmanager
def written(path: Path) -> Iterator[Writer]:
    """Write a file, which is there and on disk at the end of the block; after an error nothing is left of it.

    It is written beside its place first (`NAME.part`), for its owner alone. What is no ordinary file, such as a pipe,
    is written as it is; of a symbolic link it is the target that is replaced.

    Raises:
        OSError: it cannot be written.
        Busy: another process writes it.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb") as pipe, _compressing(path, pipe) as writer:
            yield writer
        return
    place = Path(os.path.realpath(path))
    part = place.with_name(f"{place.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{part} is being written by another process") from None
        try:
            file.truncate()
            os.fchmod(descriptor, 0o600)
            with _compressing(path, file) as writer:
                yield writer
            file.flush()
            os.fsync(descriptor)
            part.replace(place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    sync(place.parent)  # otherwise a power failure may undo the renaming


def _compressing(path: Path, file: IO[bytes]) -> AbstractContextManager[Writer]:
    if path.suffix != COMPRESSED:
        return nullcontext(file)
    # The lines of a log are much alike: more effort makes them no smaller (our measurement).
    return zstandard.ZstdCompressor(level=1, write_checksum=True).stream_writer(file, closefd=False)


class Stopped(Exception):
    """Nobody wants what is read any more."""


class Source(FileIO):
    """A file that one thread reads until another stops it, also while nothing comes: a thread in a read can neither be
    cancelled nor left behind."""

    def __init__(self, path: Path | None) -> None:
        """
        Args:
            path: None is standard input.

        Raises:
            OSError: it cannot be opened.
        """
        if path is None:
            super().__init__(0, "rb", closefd=False)
        else:
            super().__init__(path, "rb", opener=_at_once)
        self._ready = select.poll()
        self._ready.register(self, select.POLLIN)
        self._stopped = False

    def stop(self) -> None:
        """Have the next read, or the one under way, raise `Stopped`."""
        self._stopped = True

    def readinto(self, buffer: Any, /) -> int:
        while not self._stopped:
            if self._ready.poll(_LOOK_MILLISECONDS) and (count := super().readinto(buffer)) is not None:
                return count
        raise Stopped


def _at_once(path: str, flags: int) -> int:
    """Open a named pipe without waiting for somebody who writes it; reads wait for that."""
    return os.open(path, flags | os.O_NONBLOCK)


def lines_of(file: BufferedReader[Any]) -> Iterator[bytes]:
    """The lines of a file, each with its end; the last one may lack it. Memory is bounded whatever the file holds.

    Raises:
        BadFile: it cannot be decompressed, or has a line that is too long.
        OSError: it cannot be read.
    """
    begin = b""
    for chunk in _chunks(file):
        lines = (begin + chunk).splitlines(keepends=True)
        begin = b"" if lines[-1].endswith(b"\n") else lines.pop()
        yield from lines
        if len(begin) > MAX_LINE_BYTES:
            raise BadFile("it has a line that is too long for an exported log")
    if begin:
        yield begin


def _chunks(file: BufferedReader[Any]) -> Iterator[bytes]:
    """What is in the file, decompressed where its first bytes say that it is compressed."""
    if not file.peek(len(_MAGIC)).startswith(_MAGIC):
        while chunk := file.read1(_CHUNK):  # what a pipe has by now, however little
            yield chunk
        return
    try:
        with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False) as reader:
            while chunk := reader.read(_CHUNK):
                yield chunk
    except zstandard.ZstdError:
        raise BadFile("it cannot be decompressed: it was changed") from None
