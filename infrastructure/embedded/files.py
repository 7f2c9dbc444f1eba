"""Private files, written atomically, locks between processes, and owners."""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def is_opened_to_our_group(found: os.stat_result, *, owner: int) -> bool:
    """Has an orchestrator opened this directory of `owner` to a group of ours?

    Kubernetes does it to everything in a volume when a container starts (`fsGroup`): the group is changed, and may
    write; what is made there is to belong to it, too.
    """
    opened = stat.S_ISGID | stat.S_IWGRP
    return (
        found.st_mode & (opened | stat.S_IWOTH) == opened
        and found.st_uid == owner
        and found.st_gid in {os.getegid(), *os.getgroups()}
    )


def open_private(file: Path, flags: int) -> int:
    """Open `file`, created 0600 if missing, for its directory's owner: root may work in another user's directory."""
    descriptor = os.open(file, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        owner = file.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def make_directory(path: Path) -> None:
    """Make `path` where it is missing, open to its owner only: the owner of the directory that it is in."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
    sync(path.parent)


def write(file: Path, text: str) -> None:
    """Write `text` to `file` atomically; it is on disk when this returns. One writer at a time."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    descriptor = open_private(new, os.O_WRONLY | os.O_EXCL)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)
    sync(file.parent)


def sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusively(lock_file: Path, *, or_else: Exception | None = None) -> Iterator[None]:
    """One process, and one thread, at a time. The file is not removed: that would let two in.

    Args:
        or_else: raised if somebody else is in; None: wait for them.
    """
    lock = open_private(lock_file, os.O_RDWR)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if or_else else 0))
        except BlockingIOError:
            assert or_else is not None  # noqa: S101 - it would have waited
            raise or_else from None
        yield
    finally:
        os.close(lock)


@contextmanager
def explained(what: Path | str, kind: type[Exception]) -> Iterator[None]:
    """Turn errors of the system or the server into a message of one line, raised as `kind`."""
    try:
        yield
    except (OSError, psycopg.Error, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise kind(f"{what} cannot be used: {reason}{where}.") from error
