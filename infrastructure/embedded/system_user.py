"""The system user that the embedded PostgreSQL runs as when root starts it, and what is made accessible to it."""

# ruff: noqa: S603 - the program is the system's own, called with a list of arguments
from __future__ import annotations

import pwd
import shutil
import stat
import subprocess
from pathlib import Path

import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class NoSystemUser(Exception):
    """The system user does not exist and cannot be made; the message is one line that says why and what to do."""


def system_user(name: str) -> tuple[int, int]:
    """User and group id of the system user `name`, created if missing (PostgreSQL refuses to run as root)."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin") or "useradd"
        command = [program, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            entry = pwd.getpwnam(name)  # even after an error: another process may have created it meanwhile
            log.info("made a system user for the embedded database", user=name)
        except (OSError, KeyError) as error:
            said = (
                str(error)
                if isinstance(error, OSError)
                else (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            )
            raise NoSystemUser(
                f"PostgreSQL does not run as root, and the system user {name} cannot be made ({said}); "
                "run as another user, or set REGISTRAR_DATABASE_URL."
            ) from error
    return entry.pw_uid, entry.pw_gid


def let_traverse(path: Path, user: tuple[int, int]) -> None:
    """Let `user` traverse the directories above `path`, without listing them."""
    for directory in path.parents:
        found = directory.stat()
        bit = stat.S_IXUSR if found.st_uid == user[0] else stat.S_IXGRP if found.st_gid == user[1] else stat.S_IXOTH
        if not found.st_mode & bit:
            directory.chmod(stat.S_IMODE(found.st_mode) | bit)
            log.info("let the embedded database pass through a directory", directory=str(directory), mode=f"+{bit:o}")


def let_read(tree: Path) -> None:
    """Let everyone read the installed programs of PostgreSQL, in spite of a strict umask. They contain no secrets."""
    for path in [tree, *tree.rglob("*")] if tree.exists() else []:
        found = path.lstat()
        mode = stat.S_IMODE(found.st_mode)
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if wanted != mode and not stat.S_ISLNK(found.st_mode):
            path.chmod(wanted)
