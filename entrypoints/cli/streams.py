"""The process's standard streams, as a shell may give them: closed, full, or with nobody who reads them any more."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from infrastructure.telemetry.log_output import is_ready


class CannotPrint(OSError):
    """Standard output takes nothing."""


def secure_standard_streams() -> None:
    """Make the standard streams safe to use, whatever they are; call it once, before anything is opened.

    A closed one gets its number taken: otherwise the next file or connection has it, and what is printed goes there.
    An error of standard output is a `CannotPrint`, raised once; a reader who has gone is none (`is_read`): whoever runs
    `| head` has seen enough, and a service goes on. Errors of standard error are ignored, as there is nowhere to tell.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # To write to what is open for reading fails as it does on what is closed.
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    sys.stdout = _text(_Output(1, "wb", closefd=False), sys.stdout)
    sys.stderr = _text(_Errors(2, "wb", closefd=False), sys.stderr)


def never_wait() -> None:
    """From now on drop what would have to wait for its reader: a service's end must not depend on who reads its log."""
    for stream in (sys.stdout, sys.stderr):
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if isinstance(raw, _Output | _Errors):
            raw.waits = False


def is_read() -> bool:
    """Does anybody still read what is printed?"""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return not (isinstance(raw, _Output) and raw.failed)


class _Output(io.FileIO):
    """Standard output; what is written after the first error is dropped."""

    failed = False
    waits = True

    def write(self, data: Any, /) -> int:
        if not self.failed and (self.waits or is_ready(1)):
            try:
                return super().write(data)
            except BrokenPipeError:
                self.failed = True
            except OSError as error:
                self.failed = True
                raise CannotPrint(error.errno, error.strerror, "standard output") from None
        return memoryview(data).nbytes


class _Errors(io.FileIO):
    """Standard error; what cannot be written is dropped."""

    waits = True

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) if self.waits or is_ready(2) else memoryview(data).nbytes
        except OSError:
            return memoryview(data).nbytes


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    terminal = raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=terminal or isinstance(raw, _Errors),
    )
