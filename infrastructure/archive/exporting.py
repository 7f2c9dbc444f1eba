"""A log, written as lines: PostgreSQL makes them, so that we only pass them on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import msgspec
import psycopg

from domain.recorded import Position
from infrastructure.archive.lines import FORMAT, VERSION, EndLine, HeadLine
from infrastructure.event_store.reader import UnreadableLog
from infrastructure.postgres.connection import Connection

T = TypeVar("T")

CHUNK_EVENTS: Final = 500
"""Events in one query: with thousands, a database copies more than it gains (our measurement)."""

AT_ONCE: Final = 3
"""So many chunks are asked for at a time, each on a connection of its own: with one, the database waits for us, and we
for it, which takes twice as long (our measurement)."""

_WELL_FORMED: Final = msgspec.json.Decoder(msgspec.Raw)

CHUNK_KEYS: Final = 5000

_HEAD: Final = "SELECT position, hash, clock_timestamp() FROM public.head"
_ROOT: Final = "SELECT wrapped FROM public.service_secrets WHERE name = 'root'"

# Blocks by their index, and for each its events by theirs, however the planner sees it (see `_chunk`). What is the same
# in all lines of a block is written once.
_EVENTS: Final = """
    SELECT count(*), convert_to(coalesce(string_agg(e.line, '' ), ''), 'UTF8')
    FROM (
        SELECT b.first_position, b.last_position,
               ',"block":' || b.last_position || ',"previous_hash":"' || encode(coalesce(
                   (SELECT p.hash FROM public.blocks AS p WHERE p.last_position = b.first_position - 1), sha256('')
               ), 'hex') || '","recorded_at":' || (
                   SELECT to_json(f.recorded_at)::text FROM public.events AS f WHERE f.notification_id = b.first_position
               ) || ',"stream_id":"' AS of_block
        FROM public.blocks AS b
        WHERE b.last_position > %(after)s AND b.last_position <= (
            SELECT min(l.last_position) FROM public.blocks AS l WHERE l.last_position >= %(upto)s)
        ORDER BY b.last_position OFFSET 0
    ) AS b
    CROSS JOIN LATERAL (
        SELECT '{"position":' || e.notification_id || b.of_block || e.originator_id
               || '","version":' || e.originator_version || ',"type":' || to_json(e.topic)::text
               || ',"correlation_id":"' || e.correlation_id
               || '","causation_position":' || coalesce(e.causation_position::text, 'null')
               || ',"actor":' || to_json(e.actor)::text || ',"trace":' || coalesce(to_json(e.trace_context)::text, 'null')
               || {state} || E'}\\n' AS line
        FROM public.events AS e
        WHERE e.notification_id > %(after)s AND e.notification_id <= %(upto)s
            AND e.notification_id BETWEEN b.first_position AND b.last_position
        ORDER BY e.notification_id OFFSET 0
    ) AS e
"""

_AS_IT_IS: Final = """',"state":' || convert_from(e.state, 'UTF8')"""
_AS_BYTES: Final = """',"state_base64":"' || translate(encode(e.state, 'base64'), E'\\n', '') || '"'"""

# Of registrations that are in the file; an erased person's key is gone, whenever the erasure was recorded.
_KEYS: Final = """
    SELECT count(*), max(k.registration_id::text)::uuid, convert_to(coalesce(string_agg(
        '{"registration_id":"' || k.registration_id || '","wrapped":"' || translate(encode(k.wrapped, 'base64'), E'\\n', '')
        || E'"}\\n', '' ORDER BY k.registration_id) FILTER (WHERE EXISTS (
            SELECT FROM public.events AS e
            WHERE e.originator_id = k.registration_id AND e.originator_version = 1 AND e.notification_id <= %(upto)s
        )), ''), 'UTF8')
    FROM (
        SELECT registration_id, wrapped FROM public.personal_keys
        WHERE %(after)s::uuid IS NULL OR registration_id > %(after)s ORDER BY registration_id LIMIT %(limit)s
    ) AS k
"""


class Asks(Protocol):
    """`infrastructure.postgres.pool.QueryPool`."""

    async def ask(self, select: Callable[[Connection], Awaitable[T]]) -> T: ...


async def exported(
    database: Asks,
    *,
    release: str,
    with_keys: bool,
    on_events: Callable[[Position, Position], None],
    at_once: int = AT_ONCE,
) -> AsyncGenerator[bytes, None]:
    """The log up to its end of now, in pieces of whole lines; the next ones are made while one is used.

    What was recorded does not change, so that it can be read in many short transactions.

    Args:
        release: of Registrar, for the file.
        with_keys: the personal keys and the root secret as well, wrapped by the master key as they are stored.
        on_events: called with the position that is reached, and that of the end.
        at_once: chunks that are asked for at a time; fewer where others need the connections, too.

    Raises:
        UnreadableLog: positions are missing.
        Unavailable, one of `AWAY`: the database is away.
    """
    digest = sha256()
    end, end_hash, now, root = await database.ask(partial(_begin, with_keys=with_keys))
    head = HeadLine(FORMAT, VERSION, release, now, end, end_hash.hex(), root)
    keys = 0

    async def parts() -> AsyncGenerator[bytes, None]:
        nonlocal keys
        yield msgspec.json.encode(head) + b"\n"
        async with aclosing(_chunks(database, end, at_once)) as chunks:
            async for upto, lines in chunks:
                yield lines
                on_events(upto, end)
        latest, found = None, CHUNK_KEYS if with_keys else 0
        while found == CHUNK_KEYS:
            found, latest, lines = await database.ask(partial(_keys, after=latest, upto=end))
            keys += lines.count(b"\n")
            yield lines

    async with aclosing(parts()) as pieces:
        async for piece in pieces:
            digest.update(piece)
            yield piece
    yield msgspec.json.encode(EndLine(end, end_hash.hex(), keys, digest.hexdigest())) + b"\n"


async def _chunks(database: Asks, end: Position, at_once: int) -> AsyncGenerator[tuple[Position, bytes], None]:
    """The lines of all events in order, and the position that they reach; the next ones are asked for before these are
    used."""

    def ask(after: Position) -> tuple[Position, asyncio.Task[bytes]]:
        upto = min(after + CHUNK_EVENTS, end)
        return upto, asyncio.ensure_future(database.ask(partial(_chunk, after=after, upto=upto)))

    begins = iter(range(0, end, CHUNK_EVENTS))
    asked = deque(ask(after) for after in islice(begins, at_once))
    try:
        while asked:
            upto, task = asked.popleft()
            lines = await task
            asked.extend(ask(after) for after in islice(begins, 1))
            yield upto, lines
    finally:
        await asyncio.gather(*(task for _, task in asked), return_exceptions=True)  # to cut them off takes longer


async def _begin(connection: Connection, *, with_keys: bool) -> tuple[Position, bytes, datetime, bytes | None]:
    cursor = connection.cursor(binary=True)
    row: Any = await (await cursor.execute(_HEAD)).fetchone()
    root = await (await cursor.execute(_ROOT)).fetchone() if with_keys else None
    return *row, None if root is None else root[0]


async def _chunk(connection: Connection, *, after: Position, upto: Position) -> bytes:
    try:
        found, lines = await _lines(connection, _AS_IT_IS, after, upto)
        whole = _are_whole(lines, found)
    except (psycopg.errors.CharacterNotInRepertoire, psycopg.errors.UntranslatableCharacter):
        whole = False
    if not whole:
        found, lines = await _lines(connection, _AS_BYTES, after, upto)
    if found != upto - after:
        raise UnreadableLog(f"positions are missing between {after} and {upto}")
    return lines


def _are_whole(lines: bytes, found: int) -> bool:
    """Is each line one JSON value? It is not where an event's state is none, or has lines of its own."""
    try:
        return len([_WELL_FORMED.decode(line) for line in lines.splitlines()]) == found
    except msgspec.DecodeError:
        return False


async def _lines(connection: Connection, state: str, after: Position, upto: Position) -> tuple[int, bytes]:
    async with connection.transaction():
        # A table of unknown contents, as after an import, must not be read from its beginning for each thousand events.
        await connection.execute("SET LOCAL enable_seqscan = off")
        cursor = connection.cursor(binary=True)
        await cursor.execute(_EVENTS.replace("{state}", state).encode(), {"after": after, "upto": upto})
        row: Any = await cursor.fetchone()
        return row[0], row[1]


async def _keys(connection: Connection, *, after: Any, upto: Position) -> tuple[int, Any, bytes]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_KEYS.encode(), {"after": after, "upto": upto, "limit": CHUNK_KEYS})
    row: Any = await cursor.fetchone()
    return row[0], row[1], row[2]
