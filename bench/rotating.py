"""What those notice who register while the master key is changed, and how long that takes. In the group `audit`.

By itself: `python -m bench.rotating [PERSONS]`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

from bench.cluster import Cluster, cluster
from bench.processes import MASTER_KEY, command, load, registrar_serve
from bench.report import Row, percentile
from infrastructure.crypto.keyring import binding, read_root_secret
from infrastructure.crypto.master_keys import MasterKeys
from infrastructure.postgres.connection import closing, connect

RATE: Final = 200.0
"""Registrations a second."""

MOST: Final = 60.0
"""Seconds, of issue 12."""

_NEXT: Final = "ffeeddccbbaa99887766554433221100" * 2
_PORTION: Final = 10_000


def run(server: Cluster, *, persons: int = 250_000, repetitions: int = 1) -> Sequence[Row]:
    """One row: `keys rotate` of so many persons, beside registrations."""
    measured = sorted((_measure(server, persons) for _ in range(repetitions)), key=lambda one: one["seconds"])
    one = measured[len(measured) // 2]
    failed = sum(count for status, count in one["statuses"].items() if not str(status).startswith("2"))
    return [
        Row(
            f"keys rotate, {persons:,} persons beside {RATE:g} registrations/s",
            "no failed request",
            f"{one['seconds']:.1f} s",
            f"{failed} failed",
            one["seconds"] if not failed else float("inf"),
            "s",
            MOST,
            at_least=False,
            details={"each": measured},
        )
    ]


def _measure(server: Cluster, persons: int) -> dict[str, Any]:
    both = {"REGISTRAR_NEXT_MASTER_KEY": _NEXT}
    with server.fresh() as dsn, registrar_serve(dsn, both) as serve:
        asyncio.run(_fill(dsn, persons))
        quiet = load(serve, what="register", tag="before", rate=RATE, seconds=10)
        with ThreadPoolExecutor(1) as beside:
            registering = beside.submit(load, serve, what="register", tag="during", rate=RATE, seconds=45)
            seconds = command(dsn, "keys", "rotate", settings=both)
            during = registering.result()
        left = asyncio.run(_left(dsn))
    assert left == 0, f"{left} persons are left under the old key"
    return {
        "seconds": seconds,
        "statuses": during["statuses"],
        "p99 before": percentile(quiet["latencies"], 0.99),
        "p99 during": percentile(during["latencies"], 0.99),
    }


async def _fill(dsn: str, persons: int) -> None:
    """Keys of persons of whom there is nothing else: a rotation looks at nothing else."""
    keys = MasterKeys(bytes.fromhex(MASTER_KEY))
    connection = await connect(dsn, name="bench", statement_timeout=timedelta(minutes=5))
    async with closing(connection):
        await read_root_secret(connection, keys)
        for _ in range(0, persons, _PORTION):
            async with connection.cursor().copy(
                "COPY public.personal_keys (registration_id, wrapped) FROM STDIN"
            ) as copy:
                for _ in range(_PORTION):
                    registration_id = uuid4()
                    await copy.write_row((registration_id, keys.wrap(os.urandom(32), binding(registration_id))))
        await connection.execute("ANALYZE public.personal_keys")


async def _left(dsn: str) -> int:
    connection = await connect(dsn, name="bench", statement_timeout=timedelta(minutes=5))
    async with closing(connection):
        row = await (
            await connection.execute("SELECT count(*) FROM public.personal_keys WHERE length(wrapped) = 60")
        ).fetchone()
    return int(row[0]) if row else 0


if __name__ == "__main__":
    with cluster() as server:
        for row in run(server, persons=int(sys.argv[1]) if len(sys.argv) > 1 else 250_000):
            print(json.dumps({"ours": row.ours, "other": row.other, "met": row.met, **row.details}, indent=1))
