"""The data directory, and the secrets made in it."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
from pydantic import SecretBytes, SecretStr

from application.crash_points import crash_point
from infrastructure.embedded.files import (
    exclusively,
    explained,
    is_opened_to_our_group,
    open_private,
    sync,
    user_name,
    write,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

MASTER_KEY = "master.key"
NEXT_MASTER_KEY = "master.key.next"
OTHER_MASTER_KEYS = re.compile(r"master\.key\.next|master-[0-9a-f]{16}\.key")
"""Files beside the master key."""

CHECKPOINT_KEY = "checkpoint.key"
NEXT_CHECKPOINT_KEY = "checkpoint.key.next"
OTHER_CHECKPOINT_KEYS = re.compile(r"checkpoint\.key\.next|checkpoint-[0-9a-f]{8}\.key")

_SIGNS = "it signs checkpoints (`registrar audit checkpoints rotate-key --old-key-is-lost` if there is none)"


class BadDataDirectory(Exception):
    """The data directory cannot be used; the message is one line that says why and what to do."""


class DataDirectory:
    """The directory that holds everything an all-in-one service keeps: created if missing, checked otherwise.

    A directory created here is open to its owner only. One that exists is left as it is, but refused where others
    could put a key or a database of theirs into it. Two that were meant for us are closed to others instead: an empty
    one, and one that an orchestrator has opened to a group of ours (Kubernetes' `fsGroup`, at each start).

    Args:
        adjust: False leaves those as they are, too.

    Raises:
        BadDataDirectory: it cannot be used.
    """

    def __init__(self, path: Path, *, adjust: bool = True) -> None:
        self.path = path.absolute()
        with explained(f"The data directory {path}", BadDataDirectory):
            self._make()
            self.path = self.path.resolve()
            self._check(adjust=adjust)

    def _make(self) -> None:
        if self.path.exists():
            return
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(self.path.parent)

    def _check(self, *, adjust: bool) -> None:
        found = self.path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise BadDataDirectory(f"The data directory {self.path} is a file; name a directory with --data-dir.")
        if os.geteuid() not in {0, found.st_uid}:
            raise BadDataDirectory(
                f"The data directory {self.path} belongs to {user_name(found.st_uid)}; "
                f"run as {user_name(found.st_uid)}, or name another directory with --data-dir, "
                "such as one inside of it that does not exist yet."
            )
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise BadDataDirectory(
                f"The data directory {self.path} is not writable; `chmod u+rwx` it, or name another with --data-dir."
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            # Empty and without the sticky bit, it was meant for us (and is not a /tmp): restricting it does no harm.
            is_new = not found.st_mode & stat.S_ISVTX and not any(self.path.iterdir())
            if not is_new and not is_opened_to_our_group(found, owner=os.geteuid()):
                raise BadDataDirectory(
                    f"The data directory {self.path} is writable by others, who could replace its keys; "
                    "`chmod go-w` it, or name another with --data-dir."
                )
            if adjust:
                self.path.chmod(stat.S_IMODE(found.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process alone: one `up` per directory.

        The kernel releases it when the process ends, however it ends; a database left running does not hold it.

        Raises:
            BadDataDirectory: another process holds it; the message has its pid.
        """
        with explained(f"The data directory {self.path}", BadDataDirectory):
            lock = open_private(self.path / "up.lock", os.O_RDWR)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise BadDataDirectory(
                    f"The data directory {self.path} is in use by another `registrar up`, process {holder}; "
                    "stop that one, or name another directory with --data-dir."
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(lock)

    @property
    def is_locked(self) -> bool:
        """Does a process hold the directory, as `locked` does?"""
        if not (self.path / "up.lock").exists():
            return False
        with explained(f"The data directory {self.path}", BadDataDirectory):
            lock = open_private(self.path / "up.lock", os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(lock)

    @contextmanager
    def following(self) -> Iterator[bool]:
        """Take part in delivering this directory's mail; True if no other process does, so none can be under way."""
        with explained(f"The data directory {self.path}", BadDataDirectory):
            lock = open_private(self.path / "following.lock", os.O_RDWR)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                alone = False
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield alone
        finally:
            os.close(lock)

    def master_key(self) -> SecretBytes:
        """The 32 bytes that wrap every other key: created by the first call ever, and changed by a rotation only.

        Raises:
            BadDataDirectory: the file does not contain a key, or is missing beside a database. It is never replaced:
                what it sealed would be lost.
        """
        if (self.path / "postgres").exists() and not (self.path / MASTER_KEY).exists():
            raise BadDataDirectory(
                f"{self.path / MASTER_KEY} is missing; put it back from a backup: "
                "without it no personal data in this directory can be read."
            )
        return self._key(MASTER_KEY)

    def master_keys(self) -> Sequence[bytes]:
        """The master key, then the next one if a rotation has made it, and those that it has replaced: what a backup
        from before the rotation needs.

        Raises:
            BadDataDirectory: see `master_key`.
        """
        key = self.master_key()
        others = sorted(file.name for file in self.path.glob("master*.key*") if OTHER_MASTER_KEYS.fullmatch(file.name))
        return [key.get_secret_value(), *(self._key(name).get_secret_value() for name in others)]

    def next_master_key(self) -> SecretBytes:
        """The key that a rotation is to: created by its first call, and there until `take_next_master_key`.

        Raises:
            BadDataDirectory: the file does not contain a key.
        """
        return self._key(NEXT_MASTER_KEY)

    def take_next_master_key(self, retired: str) -> Path:
        """Put the next master key in the place of the one that it has replaced, which is kept beside it.

        Args:
            retired: the id of the one that is replaced.

        Returns:
            Its file.
        """
        return self._take(NEXT_MASTER_KEY, MASTER_KEY, self.path / f"master-{retired}.key")

    def _take(self, following: str, name: str, kept: Path) -> Path:
        text = (self.path / name).read_text(encoding="ascii")
        with explained(kept, BadDataDirectory), exclusively(self.path / "keys.lock"):
            write(kept, text)
            crash_point("rotation.before_key_file")
            (self.path / following).replace(self.path / name)
            sync(self.path)
        return kept

    def _key(
        self, name: str, without: str = "without it no personal data in this directory can be read"
    ) -> SecretBytes:
        text = self._made_once(name, lambda: secrets.token_hex(32))
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise BadDataDirectory(
                f"{self.path / name} is not a key (64 hex digits); put it back from a backup: {without}."
            )
        return SecretBytes(bytes.fromhex(text))

    def checkpoint_key(self) -> SecretBytes:
        """The 32 bytes that sign checkpoints: created by the first call ever, and changed by a rotation only.

        Raises:
            BadDataDirectory: the file does not contain a key.
        """
        return self._key(CHECKPOINT_KEY, _SIGNS)

    def checkpoint_keys(self) -> Sequence[bytes]:
        """That key, then the next one if a rotation has made it, and those that it has replaced: after a restore of an
        older backup one of them may sign again.

        Raises:
            BadDataDirectory: a file does not contain a key.
        """
        files = sorted(file.name for file in self.path.glob("checkpoint*.key*"))
        others = [name for name in files if OTHER_CHECKPOINT_KEYS.fullmatch(name)]
        keys = [self.checkpoint_key(), *(self._key(name, _SIGNS) for name in others)]
        return [key.get_secret_value() for key in keys]

    def next_checkpoint_key(self) -> SecretBytes:
        """The one that a rotation is to: created by its first call, and there until `take_next_checkpoint_key`.

        Raises:
            BadDataDirectory: the file does not contain a key.
        """
        return self._key(NEXT_CHECKPOINT_KEY, _SIGNS)

    def take_next_checkpoint_key(self, retired: str) -> Path:
        """Put the next signing key in the place of the one that it has replaced, which is kept beside it.

        Args:
            retired: the id of the one that is replaced.

        Returns:
            Its file.
        """
        return self._take(NEXT_CHECKPOINT_KEY, CHECKPOINT_KEY, self.path / f"checkpoint-{retired}.key")

    def admin_token(self) -> SecretStr:
        """The operators' bearer token: created by the first call ever, the same until its file is removed.

        Raises:
            BadDataDirectory: the file does not contain a token.
        """
        text = self._made_once("admin.token", lambda: secrets.token_urlsafe(32))
        if not re.fullmatch(r"[!-~]+", text):
            raise BadDataDirectory(f"{self.path / 'admin.token'} is not a token; remove it, and a new one is made.")
        return SecretStr(text)

    def _made_once(self, name: str, make: Callable[[], str]) -> str:
        file = self.path / name
        with explained(file, BadDataDirectory), exclusively(self.path / "keys.lock"):
            if not file.is_symlink() and not file.exists():
                write(file, make() + "\n")
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_mode & 0o077:
                    os.fchmod(descriptor, 0o600)
                    log.warning("a secret could be read by others, closed it", file=str(file))
                return os.read(descriptor, 4096).decode("ascii", "replace").strip()
            finally:
                os.close(descriptor)
