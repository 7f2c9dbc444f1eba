"""File systems of a few kilobytes, which are full soon."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_filesystem(directory: Path, size: str, owner: os.stat_result) -> Iterator[Callable[[str], None]]:
    """A file system of its own on a directory; yields what changes its size. Needs the right to mount."""

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", directory], check=True)

    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", directory], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED, a full disk: this user cannot mount one ({mounted.stderr.strip()}); root can")
    try:
        os.chown(directory, owner.st_uid, owner.st_gid)
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
