"""Users of another system: how fast `registrar import` takes them over, beside a bare COPY of the same rows.

By itself: `python -m bench.taking_over [USERS]`.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from base64 import b64encode
from pathlib import Path
from typing import Final

import psycopg

from bench.cluster import Cluster, cluster
from bench.processes import MASTER_KEY, command
from bench.report import Row
from tests.support.log import keep_root_secret

LEAST: Final = 5_000.0
"""Users a second, of issue 16."""

_TABLES: Final = ("events", "personal_keys")
_ALPHABET: Final = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def run(server: Cluster, *, users: int = 50_000, repetitions: int = 3) -> list[Row]:
    """Two rows: verified users with hashes who are new, and the same file once more; the whole command each time."""
    found: dict[str, list[float]] = {"import": [], "copy": [], "again": []}
    with tempfile.TemporaryDirectory(prefix="registrar-bench-") as directory:
        file = Path(directory) / "users.jsonl"
        _write(file, users)
        for _ in range(repetitions):
            with server.fresh() as dsn, server.fresh() as other:
                asyncio.run(keep_root_secret(dsn, MASTER_KEY))  # as if a service had started there
                found["import"].append(users / command(dsn, "import", str(file)))
                found["again"].append(users / command(dsn, "import", str(file)))
                found["copy"].append(users / _copied(dsn, other))
    rate = {name: statistics.median(rates) for name, rates in found.items()}
    return [
        Row(
            f"import of {users:,} verified users with hashes",
            "bare COPY of the same rows, in one transaction",
            f"{rate['import']:,.0f}/s",
            f"{rate['copy']:,.0f}/s",
            rate["import"],
            "users/s",
            LEAST,
            at_least=True,
            details=found,
        ),
        Row(
            "the same file again, which changes nothing",
            "the first time",
            f"{rate['again']:,.0f}/s",
            f"{rate['import']:,.0f}/s",
            rate["again"] / rate["import"],
            "x",
            None,
            at_least=True,
        ),
    ]


def _write(file: Path, users: int) -> None:
    """Hashes in the forms of four systems, of nobody's passwords; no two alike, since then they would be cheaper."""
    chance = random.Random(16)  # noqa: S311 - repeatable
    with file.open("w", encoding="utf-8") as out:
        for number in range(users):
            user = {
                "email": f"person{number}.{chance.randrange(10**6)}@mail{number % 50}.example.com",
                "name": f"Person Number{number}",
                "locale": chance.choice(("en", "de", "fr")),
                "password_hash": _hash(chance, number % 4),
                "verified": True,
            }
            out.write(json.dumps(user) + "\n")


def _hash(chance: random.Random, form: int) -> str:
    salt, digest = b64encode(chance.randbytes(16)).decode().rstrip("="), b64encode(chance.randbytes(32)).decode()
    match form:
        case 0:
            return f"$2b$12${''.join(chance.choices(_ALPHABET, k=53))}"
        case 1:
            return f"pbkdf2_sha256$870000${salt[:16].replace('/', 'x')}${digest}"
        case 2:
            return f"$argon2id$v=19$m=65536,t=3,p=4${salt}${digest.rstrip('=')}"
    return f"$scrypt$ln=16,r=8,p=1${salt}${digest.rstrip('=')}"


def _copied(dsn: str, other: str) -> float:
    """Seconds for the same rows as they come out of the one database and go into the other, with its indexes."""
    with psycopg.connect(dsn) as source, psycopg.connect(other) as target:
        target.execute("TRUNCATE personal_keys")
        rows = {name: _copy_out(source, name) for name in _TABLES}
        started = time.monotonic()
        with target.cursor() as cursor:
            for name, content in rows.items():
                with cursor.copy(f"COPY public.{name} FROM STDIN (FORMAT binary)".encode()) as copy:
                    copy.write(content)
        target.commit()
        return time.monotonic() - started


def _copy_out(source: psycopg.Connection, name: str) -> bytes:
    with source.cursor().copy(f"COPY public.{name} TO STDOUT (FORMAT binary)".encode()) as copy:
        return b"".join(bytes(part) for part in copy)


if __name__ == "__main__":
    with cluster() as server:
        for row in run(server, users=int(sys.argv[1]) if len(sys.argv) > 1 else 50_000):
            print(json.dumps({"ours": row.ours, "other": row.other, "met": row.met, **row.details}, indent=1))
