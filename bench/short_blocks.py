"""A long log in as many blocks as one has that grew by one registration after the other: `bench.history` writes a
hundred of them at once, which is one block."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from itertools import pairwise
from uuid import UUID

import uvloop

from infrastructure.audit.rows import blocks_between, ends, events_between
from infrastructure.audit.walk import BEGINNING, Link
from infrastructure.event_store.chain import block_hash_at
from infrastructure.postgres.connection import Connection, closing, connect

EVENTS_EACH = 3
"""Those of a new registration."""


async def cut(dsn: str) -> int:
    """Put the events of a log into blocks of three, chained anew; answers the number of blocks."""
    connection = await connect(dsn, name="bench", statement_timeout=timedelta(minutes=10))
    async with closing(connection):
        blocks = await _chain(connection)
        await connection.execute("ALTER TABLE blocks DISABLE TRIGGER ALL")  # they refuse to change history
        await connection.execute("TRUNCATE blocks")
        into = "COPY blocks (last_position, first_position, batch_id, lost, hash) FROM STDIN (FORMAT binary)"
        async with connection.cursor() as cursor, cursor.copy(into) as copy:
            copy.set_types(["int8", "int8", "uuid", "int4[]", "bytea"])
            for before, (last, hash_) in pairwise(blocks):
                await copy.write_row((last, before.position + 1, UUID(int=last), [], hash_))
        await connection.execute("UPDATE head SET hash = %b", (blocks[-1].hash,))
        await connection.execute("VACUUM ANALYZE blocks")
    return len(blocks) - 1


async def _chain(connection: Connection) -> list[Link]:
    """The last position and the hash of each block, after the beginning."""
    blocks = [BEGINNING]
    for long in await blocks_between(connection, 0, (await ends(connection)).block.position):
        events = await events_between(connection, long.first - 1, long.last)
        for at in range(0, len(events), EVENTS_EACH):
            positions, times, digests = zip(*events[at : at + EVENTS_EACH], strict=True)
            blocks.append(Link(positions[-1], block_hash_at(blocks[-1].hash, positions[0], times[0], digests)))
    return blocks


def main() -> None:
    """Run as a process of its own."""
    print(json.dumps({"blocks": uvloop.run(cut(json.loads(sys.argv[1])["dsn"]))}))


if __name__ == "__main__":
    main()
