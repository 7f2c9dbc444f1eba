"""Large memory in huge pages, for the commands that hash passwords.

A hash of argon2id takes 19 MiB of fresh memory, which the kernel hands out in 4,864 pages in as much time as the hash
itself takes, or in ten huge ones in a seventh of that (docs/library-notes.md). glibc asks for huge pages if it is told
to, and reads that only when a program begins; so the program begins once more, as the same process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

_COMMANDS: Final = {"serve", "up"}
_TUNABLES: Final = "GLIBC_TUNABLES"
_HUGE_PAGES: Final = "glibc.malloc.hugetlb"
_BEFORE: Final = "_REGISTRAR_GLIBC_TUNABLES"
"""Holds what `GLIBC_TUNABLES` was, for the processes that this one starts."""
_FIRST_GLIBC: Final = (2, 35)
_MODE: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def begin_with_huge_pages(arguments: Sequence[str]) -> None:
    """Begin once more with huge pages where they are to be asked for, and this command profits; otherwise return.

    Signals that come meanwhile are kept: SIGTERM is blocked on the way, and unblocked in the new program.
    """
    before = os.environ.pop(_BEFORE, None)
    if before is not None:
        _set(_TUNABLES, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    if _COMMANDS.isdisjoint(arguments) or "--help" in arguments or not _are_on_request():
        return
    given = os.environ.get(_TUNABLES, "")
    if _HUGE_PAGES in given:
        return
    tunables = f"{given}:{_HUGE_PAGES}=1".removeprefix(":")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with suppress(OSError):
        program = [sys.executable, *sys.orig_argv[1:]]
        os.execve(program[0], program, os.environ | {_TUNABLES: tunables, _BEFORE: given})  # noqa: S606
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _are_on_request() -> bool:
    """Does the kernel give huge pages to who asks, and only then, and does glibc know how to ask?"""
    try:
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        mode = _MODE.read_text()
    except (OSError, ValueError):  # another C library, or another kernel
        return False
    numbers = tuple(int(number) for number in version.split(".")[:2] if number.isdecimal())
    return library == "glibc" and numbers >= _FIRST_GLIBC and "[madvise]" in mode


def _set(name: str, value: str) -> None:
    if value:
        os.environ[name] = value
    else:
        os.environ.pop(name, None)
