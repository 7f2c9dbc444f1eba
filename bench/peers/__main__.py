"""`python -m bench.peers`: registrations a second of other ways to take them, beside ours, in one run.

The packages go to a temporary folder, each of the version that stands here; it takes a network, Node.js and five
minutes. Each takes registrations in one process, with a database of its own in the same PostgreSQL. Better Auth and
fastapi-users have no account without a password: there they are given a hash that does nothing.
"""

# ruff: noqa: S603, S607 - npm, and programs that this has just installed
from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final

import structlog
from psycopg.conninfo import conninfo_to_dict

from bench.bare_hashes import PASSWORD
from bench.beside import CONNECTIONS, HASHING_CONNECTIONS
from bench.cluster import Cluster, cluster
from bench.processes import Process, load, registrar_serve, running

HERE: Final = Path(__file__).parent

_OF_FASTAPI_USERS: Final = (
    "fastapi-users[sqlalchemy]==15.0.5",
    "asyncpg==0.32.0",
    "pwdlib[argon2]==0.3.0",
    "sqlalchemy[asyncio]==2.0.45",
)
_OF_BETTER_AUTH: Final = ("better-auth@1.7.25", "pg@8.23.1", "@node-rs/argon2@2.2.1")

_tags = (f"peer{number}" for number in count())


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that takes registrations where and as ours does.

    Attributes:
        hashes: does it know passwords?
    """

    name: str
    arguments: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    hashes: bool = True


def main() -> None:
    """Measure each in turns, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where they are installed already, or to stay")
    wanted = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with ExitStack() as stack:
        folder = wanted.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registrar-peers-")))
        install(folder)
        server = stack.enter_context(cluster())
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(wanted.repetitions):
            for hashing in (False, True):
                for peer in (None, *peers(folder)):
                    name = "Registrar" if peer is None else peer.name
                    if peer is None or peer.hashes or not hashing:
                        kind = "with a password" if hashing else "without"
                        found[f"{name}, {kind}"].append(_rate(server, peer, wanted.seconds, hashing=hashing))
    for name, rates in found.items():
        print(f"{name}: {median(rates):,.0f}/s", [round(rate) for rate in rates])


def install(folder: Path) -> None:
    """Into the folder, unless they are there."""
    environment = folder / "fastapi-users"
    if not environment.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        ours = [f"{name}=={version(name)}" for name in ("fastapi", "uvicorn", "uvloop", "httptools")]
        pip: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *_OF_FASTAPI_USERS, *ours], check=True)
    modules = folder / "better-auth"
    if not modules.exists():
        modules.mkdir(parents=True)
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", *_OF_BETTER_AUTH], cwd=modules, check=True
        )
    (modules / "better_auth.mjs").write_text((HERE / "better_auth.mjs").read_text())


def peers(folder: Path) -> list[Peer]:
    """Those that are installed there."""
    stock = {"PERSISTENCE_MODULE": "eventsourcing.postgres", "POSTGRES_POOL_SIZE": "10"}
    users = str(folder / "fastapi-users" / "bin" / "python")
    return [
        Peer(
            "stock eventsourcing",
            [sys.executable, "-m", "bench.peers.stock_eventsourcing"],
            stock,
            hashes=False,
        ),
        Peer("fastapi-users", [users, "-m", "bench.peers.fastapi_users_peer"]),
        Peer("Better Auth", ["node", str(folder / "better-auth" / "better_auth.mjs")]),
    ]


def _rate(server: Cluster, peer: Peer | None, seconds: float, *, hashing: bool) -> float:
    with server.fresh(schema=False) as dsn, _serving(peer, dsn, hashing=hashing) as process:
        connections = HASHING_CONNECTIONS if hashing else CONNECTIONS
        more = {"password": PASSWORD} if hashing else {}
        load(process, what="register", tag=next(_tags), connections=connections, seconds=1, **more)  # warm
        outcome = load(process, what="register", tag=next(_tags), connections=connections, seconds=seconds, **more)
        assert set(outcome["statuses"]) == {"202"}, outcome["statuses"]
        return float(len(outcome["latencies"]) / outcome["seconds"])


@contextmanager
def _serving(peer: Peer | None, dsn: str, *, hashing: bool) -> Iterator[Process]:
    if peer is None:
        with registrar_serve(dsn) as process:
            yield process
        return
    to = conninfo_to_dict(dsn)
    where = {"HOST": to["host"], "PORT": to["port"], "USER": "registrar", "PASSWORD": "none"}
    environment = {f"PG{name}": str(value) for name, value in (where | {"DATABASE": to["dbname"]}).items()}
    environment |= {f"POSTGRES_{name}": str(value) for name, value in (where | {"DBNAME": to["dbname"]}).items()}
    environment["PEER_DATABASE"] = f"postgresql+asyncpg://registrar@/{to['dbname']}?host={to['host']}&port={to['port']}"
    environment["PEER_HASHING"] = "argon2id" if hashing else "none"
    with running(peer.arguments, "listening", environment | dict(peer.environment)) as process:
        yield process


if __name__ == "__main__":
    main()
