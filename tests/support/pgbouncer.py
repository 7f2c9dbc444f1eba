"""A PgBouncer of the tests' own, in front of a PostgreSQL of theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

_PROGRAM = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"


def demand(config: pytest.Config) -> None:
    """Let a test that needs PgBouncer fail without it, or be skipped where that was asked for."""
    if "pgbouncer" in config.getoption("--without"):
        pytest.skip("told to go without PgBouncer")
    if not Path(_PROGRAM).exists():
        pytest.fail("pgbouncer is missing: `scripts/services` installs it, `--without pgbouncer` goes without")


@contextmanager
def pgbouncer(dsn: str, **settings: str) -> Iterator[str]:
    """In front of this database, for the block; gives the database's URL by way of it. Unset, settings are its own."""
    to = conninfo_to_dict(dsn)
    owner = Path(str(to["host"])).stat()  # as whom PostgreSQL lets it in
    with tempfile.TemporaryDirectory(prefix="registrar-tests-", dir="/tmp") as directory:
        home = Path(directory)
        os.chown(home, owner.st_uid, owner.st_gid)
        (home / "users").write_text(f'"{to["user"]}" ""\n')
        lines = {"listen_addr": "", "listen_port": "6432", "unix_socket_dir": directory, "auth_type": "trust"}
        lines |= {"auth_file": str(home / "users"), "logfile": str(home / "log"), **settings}
        config = home / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={to['host']} port={to['port']}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        who = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        process = subprocess.Popen([_PROGRAM, "-q", str(config)], **who)  # type: ignore[call-overload]
        try:
            yield f"postgresql://{to['user']}@/{to['dbname']}?host={directory}&port=6432"
        finally:
            process.terminate()
            process.wait()
