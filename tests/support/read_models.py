"""Read models beside a log: folded as a projector does, changed as nobody should, and read as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from domain.recorded import Position, Recorded
from infrastructure.event_store.store import EventStore
from infrastructure.followers.projector import Projection
from infrastructure.postgres.connection import Connection, pipeline
from projections import PROJECTIONS
from tests.support.histories import History

BATCH = 37
"""Events per batch, so that batches begin and end anywhere."""


async def recorded_history(store: EventStore, *, registrations: int, seed: int = 11) -> Position:
    """Record a history; returns the end of the log."""
    history = History(seed=seed, registrations=registrations)
    await store.append([(event, context) for event, context in history.events])
    return await store.head()


async def follow(
    store: EventStore,
    connection: Connection,
    projection: Projection,
    *,
    upto: Position | None = None,
    batch: int = BATCH,
) -> Position:
    """Fold the log into the live read model from where it is, and save its position; returns that."""
    await connection.execute("INSERT INTO followers (name) VALUES (%s) ON CONFLICT DO NOTHING", (projection.name,))
    [(position,)] = await rows(connection, "SELECT position FROM followers WHERE name = %s", projection.name)
    head = await store.head() if upto is None else upto
    into = sql.SQL("SET search_path = {}, public").format(sql.Identifier(projection.schema))
    await connection.execute(into)
    while position < head:
        stored, _ = await store.read(position, min(batch, head - position))
        events = [store.decode(row) for row in stored]
        position = events[-1].position
        await apply(connection, projection, events, position)
    await connection.execute("RESET search_path")
    return int(position)


async def apply(connection: Connection, projection: Projection, events: Sequence[Recorded], position: Position) -> None:
    """Apply those that concern the read model, and move on, in one transaction."""
    wanted = [event for event in events if projection.topics is None or event.topic in projection.topics]
    async with pipeline(connection), connection.transaction():
        if wanted:
            await projection.apply(connection, wanted)
        await connection.execute(
            "UPDATE public.followers SET position = %s, updated_at = clock_timestamp() WHERE name = %s",
            (position, projection.name),
        )


async def follow_all(store: EventStore, connection: Connection, *, batch: int = BATCH) -> None:
    """Every live read model is at the end of the log."""
    for projection in PROJECTIONS:
        await follow(store, connection, projection(), batch=batch)


async def rows(connection: Connection, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query.encode(), parameters)).fetchall()


async def contents(connection: Connection, schema: str) -> dict[str, list[str]]:
    """Everything that a schema holds, in an order of its own."""
    found = {}
    for (table,) in await rows(connection, "SELECT tablename::text FROM pg_tables WHERE schemaname = %s", schema):
        query = sql.SQL("SELECT to_jsonb(t)::text FROM {} AS t").format(sql.Identifier(schema, table))
        found[table] = sorted(row[0] for row in await (await connection.execute(query)).fetchall())
    return found


async def indexes(connection: Connection, schema: str) -> set[str]:
    """Names of the indexes in a schema."""
    return {
        name
        for (name,) in await rows(connection, "SELECT indexname::text FROM pg_indexes WHERE schemaname = %s", schema)
    }
