"""Checkpoints of a log in a database, as the checkpointer makes them, but by the definitions."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from hashlib import sha256

from infrastructure.postgres.connection import Connection
from tests.support.proofs import ORIGIN, Signer, tree_root
from tests.support.read_models import rows

FULL = 256


def tiles_of(leaves: Sequence[bytes]) -> dict[tuple[int, int], bytes]:
    """As https://c2sp.org/tlog-tiles has them: level by level, of full tiles of the level below."""
    found: dict[tuple[int, int], bytes] = {}
    level = 0
    while leaves:
        for first in range(0, len(leaves), FULL):
            found[level, first // FULL] = b"".join(leaves[first : first + FULL])
        full = range(0, len(leaves) - FULL + 1, FULL)
        leaves, level = [tree_root(leaves[first : first + FULL]) for first in full], level + 1
    return found


async def make_checkpoint(connection: Connection, *, signer: Signer | None = None, size: int | None = None) -> str:
    """Write the checkpoint of the first `size` blocks, or of all, and the tiles of their tree; the signed note."""
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS tree_tiles (level int, index bigint, hashes bytea, PRIMARY KEY (level, index))"
    )
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS checkpoints (size bigint PRIMARY KEY, position bigint, note text)"
    )
    blocks = await rows(connection, "SELECT hash, last_position FROM blocks ORDER BY last_position")
    blocks = blocks[:size]
    leaves = [sha256(b"\0" + one).digest() for one, _ in blocks]
    text = f"{ORIGIN}\n{len(leaves)}\n{base64.b64encode(tree_root(leaves)).decode()}\nposition {blocks[-1][1]}\n"
    note = f"{text}\n{(signer or Signer()).line(text)}"
    for (level, index), hashes in tiles_of(leaves).items():
        await connection.execute(
            "INSERT INTO tree_tiles (level, index, hashes) VALUES (%s, %s, %b)"
            " ON CONFLICT (level, index) DO UPDATE SET hashes = excluded.hashes",
            (level, index, hashes),
        )
    await connection.execute(
        "INSERT INTO checkpoints (size, position, note) VALUES (%s, %s, %s)", (len(leaves), blocks[-1][1], note)
    )
    return note
