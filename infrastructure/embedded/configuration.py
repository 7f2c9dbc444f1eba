"""How the embedded PostgreSQL is configured, and who may connect to it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

_WHO_MAY_CONNECT = """\
# Written at every start. On the socket the kernel says who calls (pg_ident.conf: the server's own user and root);
# over TCP, where that is switched on at all, it takes a password, and no role has one unless it is given one.
local  all          all                peer           map=registrar
local  replication  all                peer           map=registrar
host   all          all  127.0.0.1/32  scram-sha-256
host   all          all  ::1/128       scram-sha-256
"""


def who_may_connect(*, with_names: bool) -> str:
    """The content of pg_hba.conf.

    Args:
        with_names: whether the system knows a name for the server's user. Without one the kernel's word is of no use to
            the server, which compares names only; then whoever reaches the socket is let in. That is the same user and
            root: its directory is theirs alone.
    """
    peer = "peer           map=registrar"
    return _WHO_MAY_CONNECT if with_names else _WHO_MAY_CONNECT.replace(peer, "trust")


_CONFIGURATION = {
    "cluster_name": "registrar",
    "listen_addresses": "",
    "port": "5432",  # names the socket; no TCP port is opened
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": "5s",  # docs/reliability.md, B12
    "jit": "off",  # our statements are short, compiling them never pays
    # Memory is not set aside for what nobody uses: 7 MiB less (PSS, 2026-11-29). Locks suffice for as many tables as
    # with PostgreSQL's own settings (64 for each of 100 connections); no transaction of ours is SERIALIZABLE; nothing
    # subscribes; and reads ahead, as many as `effective_io_concurrency`, are few enough for one process.
    "max_locks_per_transaction": "32",
    "max_pred_locks_per_transaction": "10",
    "max_logical_replication_workers": "0",
    "io_max_concurrency": "16",
    "io_workers": "1",
    # What is acknowledged is on disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",  # so that pg_basebackup works
    # On, though nothing is kept: the first backup sets where to, which takes a reload; this takes a restart.
    "archive_mode": "on",
    "archive_command": ":",
    "max_wal_size": "1GB",
    # No personal data in the log: no statements, no parameters, no errors of statements (the application gets them,
    # and their text can quote a value), no details.
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_error_statement": "panic",
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}


def configuration(socket_directory: Path, extra: Mapping[str, str]) -> str:
    settings = _CONFIGURATION | {"unix_socket_directories": str(socket_directory)} | dict(extra)
    lines = ["# Written at every start; ALTER SYSTEM overrides it."]
    for name, value in settings.items():
        if not re.fullmatch(r"[a-z_.]+", name) or "\n" in value:
            raise ValueError(f"not a PostgreSQL setting: {name!r}")
        quoted = value.replace("\\", "\\\\").replace("'", "''")
        lines.append(f"{name} = '{quoted}'")
    return "\n".join(lines) + "\n"


def url_of(socket_directory: str | None, port: str | None, *, database: str) -> str:
    """Connection URL over the socket; there is no secret in it."""
    return f"postgresql://registrar@/{database}?host={quote(socket_directory or '', safe='')}&port={port}"


def can_hold_a_socket(directory: Path) -> bool:
    # 104 bytes with the final zero on macOS, 108 on Linux. A comma separates directories in PostgreSQL's lists.
    path = os.fsencode(directory / ".s.PGSQL.65535")
    return len(path) < 104 and b"," not in path and b'"' not in path
