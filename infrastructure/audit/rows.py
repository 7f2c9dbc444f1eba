"""Events and blocks as they stand in the database, read for a walk along the chain without needless objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from struct import Struct
from typing import Any, Final, NamedTuple

from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

from domain.recorded import Position
from infrastructure.audit.walk import BEGINNING, Block, Ends, Link
from infrastructure.postgres.connection import Connection

CHUNK_EVENTS: Final = 8_000
"""Events in one query, and in memory: more than a stretch has."""

# (Numbers that only the digest needs come as the bytes that it takes.)
_EVENTS: Final = """
    SELECT notification_id, recorded_at, originator_id, int8send(originator_version), topic, state, correlation_id,
           int8send(causation_position), actor, trace_context
    FROM public.events
    WHERE (notification_id > %(after)s OR %(after)s IS NULL) AND notification_id <= %(upto)s
    ORDER BY notification_id LIMIT %(limit)s
"""

# (A superuser can make NULL of what cannot be NULL: that fits nothing, and is to be told, not to end the walk.)
_BLOCKS: Final = """
    SELECT coalesce(first_position, 0), last_position, coalesce(hash, '') FROM public.blocks
    WHERE last_position > %(after)s AND last_position <= %(upto)s ORDER BY last_position
"""

# (In one value: a row for each of a million blocks takes longer to receive than to read. A hash of another length would
# move those behind it.)
_HASHES: Final = """
    SELECT coalesce(string_agg(
        int8send(last_position) || CASE WHEN length(hash) = 32 THEN hash ELSE %(none)s END, '' ORDER BY last_position
    ), '')
    FROM public.blocks WHERE last_position > %(after)s AND last_position <= %(upto)s
"""
_NO_HASH: Final = bytes(32)
_POSITION_AND_HASH: Final = Struct("!q32s")

_RESTORES: Final = "SELECT restored_at, position FROM public.restores WHERE isfinite(restored_at) ORDER BY restored_at"

# In one statement, so at one moment.
_ENDS: Final = """
    SELECT (SELECT position FROM public.head), (SELECT hash FROM public.head), b.last_position, b.hash,
           coalesce((SELECT max(notification_id) FROM public.events), 0)
    FROM (VALUES (1)) AS one (row)
    LEFT JOIN (SELECT last_position, hash FROM public.blocks ORDER BY last_position DESC LIMIT 1) AS b ON true
"""

_BLOCK_FROM: Final = """
    SELECT last_position, coalesce(hash, '') FROM public.blocks
    WHERE last_position >= %(position)s ORDER BY last_position LIMIT 1
"""

_REMEMBERED: Final = """
    SELECT first_position, digests FROM public.event_digests
    WHERE last_position >= %(first)s AND first_position <= %(last)s
"""

_BEHIND: Final = """
    SELECT min(notification_id), max(notification_id) FROM public.events
    WHERE notification_id > %(after)s AND notification_id <= %(upto)s
"""

_EPOCH: Final = 946_684_800_000_000
"""PostgreSQL counts microseconds since 2000."""

_LATEST: Final = 2**63 - 1
"""The chain has no room for a later time, and a superuser can write `infinity`."""


async def events_between(
    connection: Connection, after: Position | None, upto: Position
) -> list[tuple[Position, int, bytes]]:
    """Those after one position (None: from the very first) and up to another, or the first of them: fewer than
    `CHUNK_EVENTS` are all. Each as an `infrastructure.audit.walk.Event`, without the object."""
    cursor = connection.cursor(binary=True)
    for type_ in ("uuid", "text", "bytea"):
        cursor.adapters.register_loader(type_, ByteaBinaryLoader)
    cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
    await cursor.execute(_EVENTS, {"after": after, "upto": upto, "limit": CHUNK_EVENTS})
    return _with_digests(await cursor.fetchall())


def _with_digests(rows: Iterable[Any]) -> list[tuple[Position, int, bytes]]:
    """`infrastructure.event_store.chain.event_digest` of rows as PostgreSQL sends them, a log of millions of them."""
    found, join = list[tuple[Position, int, bytes]](), b"".join
    for position, at, stream, version, topic, state, correlation, cause, actor, trace in rows:
        caused = _NULL if cause is None else _EIGHT + cause
        traced = _NULL if trace is None else _four(len(trace)) + trace
        try:
            fields = (
                stream,
                version,
                _SIZED[topic],
                _four(len(state)),
                state,
                correlation,
                caused,
                _SIZED[actor],
                traced,
            )
            digest = sha256(join(fields)).digest()
        except TypeError:  # a superuser can make NULL of what cannot be NULL
            digest = b""
        found.append((position, 0 if at is None else min(at + _EPOCH, _LATEST), digest))
    return found


class _Sized(dict[bytes, bytes]):
    """A text's length and bytes; there are few topics and actors, unless somebody alters them."""

    MOST: Final = 1_000

    def __missing__(self, text: bytes) -> bytes:
        sized = _four(len(text)) + text
        if len(self) < self.MOST:
            self[text] = sized
        return sized


_SIZED: Final = _Sized()
_four: Final = Struct("!i").pack
_NULL: Final = _four(-1)
_EIGHT: Final = _four(8)


async def blocks_between(connection: Connection, after: Position, upto: Position) -> Sequence[Block]:
    """Those that end after one position and up to another."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(_BLOCKS, {"after": after, "upto": upto})
    return list(map(Block._make, await cursor.fetchall()))


async def hashes_between(
    connection: Connection, after: Position, upto: Position
) -> tuple[Sequence[Position], Sequence[bytes]]:
    """Of the blocks that end after one position and up to another: where each ends, and its hash; zeros for what cannot
    be one."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(_HASHES, {"after": after, "upto": upto, "none": _NO_HASH})
    row: Any = await cursor.fetchone()
    found = list(_POSITION_AND_HASH.iter_unpack(row[0]))
    return [position for position, _ in found], [hash_ for _, hash_ in found]


async def block_from(connection: Connection, position: Position) -> Link | None:
    """The first block that ends at a position or later."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(_BLOCK_FROM, {"position": position})
    row = await cursor.fetchone()
    return None if row is None else Link(*row)


async def ends(connection: Connection) -> Ends:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_ENDS)
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - of one row of values
    position, hash_, last, last_hash, event = row
    return Ends(
        None if position is None else Link(position, hash_), BEGINNING if last is None else Link(last, last_hash), event
    )


async def digests_remembered(connection: Connection, block: Block) -> list[bytes] | None:
    """Those that the checkpointer noted when it verified a block; None if it did not."""
    cursor = connection.cursor(binary=True)
    await cursor.execute("SELECT to_regclass('public.event_digests') IS NOT NULL")
    if await cursor.fetchone() != (True,):
        return None
    await cursor.execute(_REMEMBERED, {"first": block.first, "last": block.last})
    known = dict[Position, bytes]()
    for first, digests in await cursor.fetchall():
        known |= {first + at // 32: digests[at : at + 32] for at in range(0, len(digests), 32)}
    wanted = range(block.first, block.last + 1)
    return [known[position] for position in wanted] if all(position in known for position in wanted) else None


class Restore(NamedTuple):
    """A restore of the database from a backup, as the database has noted it: that proves nothing.

    Attributes:
        position: where the log that was restored ended.
    """

    restored_at: datetime
    position: Position


async def restores(connection: Connection) -> list[Restore]:
    """All of them, the first one first."""
    return [Restore(*row) for row in await (await connection.execute(_RESTORES)).fetchall()]


async def stretch_behind(connection: Connection, after: Position, upto: Position) -> tuple[Position, Position] | None:
    """The first and the last event after one position and up to another."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(_BEHIND, {"after": after, "upto": upto})
    row = await cursor.fetchone()
    return None if row is None or row[0] is None else (row[0], row[1])
