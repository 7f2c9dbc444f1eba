"""PostgreSQL servers of the tests' own, in memory where there is room."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from infrastructure.embedded.postgres import EmbeddedPostgres

_FORGETFUL = {"fsync": "off", "autovacuum": "off", "max_wal_size": "128MB"}

SHARED = _FORGETFUL | {"synchronous_commit": "off", "full_page_writes": "off"}
"""Forgets in a crash."""

SURVIVES_KILLS = _FORGETFUL
"""Keeps every commit through a SIGKILL of its processes, which leave what they wrote with the kernel; only a crash of
the machine would cost something. The promises of `synchronous_commit` hold."""


@contextmanager
def server(settings: Mapping[str, str], *, prefix: str = "registrar-tests-") -> Iterator[EmbeddedPostgres]:
    """A running server, gone at the end of the block whatever was done to it."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=in_memory()) as directory:
        postgres = EmbeddedPostgres(Path(directory), settings)
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()


def in_memory() -> Path | None:
    """A directory in memory if there is one with room: a database is made there 30 times as fast as on a disk."""
    memory = Path("/dev/shm")  # noqa: S108 - a private directory is made in it
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 2**31 else None


def database_of(postgres: EmbeddedPostgres, name: str) -> str:
    """URL of a database of the server."""
    return urlsplit(postgres.dsn)._replace(path=f"/{name}").geturl()
