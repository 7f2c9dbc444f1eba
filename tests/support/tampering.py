"""A superuser who alters the log in every way that we can think of, and what `audit verify` has to say to it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from domain.recorded import Position
from infrastructure.audit.roots import Checkpoint, Frontier, leaf_of
from infrastructure.audit.walk import Block
from infrastructure.event_store.chain import BEFORE_ALL
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection
from tests.support.histories import History
from tests.support.read_models import rows

TABLES = ("events", "blocks", "head")


async def record_blocks(store: EventStore, *, registrations: int, seed: int = 7) -> Position:
    """Record a history in blocks of one to seven events; returns the end of the log."""
    chance = random.Random(seed)  # noqa: S311 - repeatable
    events = History(seed=seed, registrations=registrations).events
    while events:
        size = chance.randint(1, 7)
        await store.append(events[:size])
        events = events[size:]
    return await store.head()


async def checkpoint_at(connection: Connection, share: float = 1.0) -> Checkpoint:
    """As it would be signed when the log was that share of what it is."""
    blocks = await rows(connection, "SELECT last_position, hash FROM blocks ORDER BY last_position")
    blocks = blocks[: max(1, int(len(blocks) * share))]
    tree = Frontier()
    for _, hash_ in blocks:
        tree.add(leaf_of(hash_))
    return Checkpoint(len(blocks), blocks[-1][0], tree.root())


async def remember_digests(connection: Connection, *, every: int = 50) -> None:
    """Note the digests of all events, some in a row, as the checkpointer does."""
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS event_digests"
        " (first_position bigint PRIMARY KEY, last_position bigint, digests bytea)"
    )
    await connection.execute(
        "INSERT INTO event_digests SELECT min(notification_id), max(notification_id),"
        " string_agg(event_digest(e), ''::bytea ORDER BY notification_id)"
        " FROM events AS e GROUP BY notification_id / %s",
        (every,),
    )


@dataclass(frozen=True, slots=True)
class Alteration:
    """What was done.

    Attributes:
        first: the first position that is not what was recorded.
        of: the block in which that is.
        needs_checkpoint: all hashes were computed anew, so that nothing in the database tells of it.
    """

    what: str
    first: Position
    of: Block
    needs_checkpoint: bool = False


class Superuser:
    """Alters a log, with its triggers disabled, and puts it back as it was.

    Attributes:
        connection: a session without triggers.
    """

    def __init__(self, connection: Connection, chance: random.Random) -> None:
        self.connection = connection
        self._chance = chance
        self._ways: dict[str, Callable[[], Awaitable[Alteration]]] = {
            **{column: self._column(column) for column in _COLUMNS},
            "swapped neighbours": self._swap_neighbours,
            "swapped pair": self._swap_any,
            "deleted in the middle": self._delete,
            "deleted and closed up": self._delete_and_close_up,
            "deleted block": self._delete_block,
            "moved end of a block": self._move_end,
            "hash of a block": self._alter_hash,
            "cut tail": self._cut,
            "cut tail, blocks too": self._cut_blocks,
            "cut tail, head too": self._cut_all,
            "added at the end": self._add,
            "rewritten chain": self._rewrite,
        }

    @property
    def ways(self) -> list[str]:
        return list(self._ways)

    async def prepare(self) -> None:
        """Disable what refuses, and keep a copy of all."""
        await self.connection.execute("SET session_replication_role = replica")
        for table in TABLES:
            for statement in (
                "ALTER TABLE {0} DISABLE TRIGGER ALL",
                "CREATE TABLE {1} AS TABLE {0}",
            ):
                await self._do(statement, table, f"kept_{table}")

    async def alter(self, way: str) -> Alteration:
        async with self.connection.transaction():
            return await self._ways[way]()

    async def put_back(self) -> None:
        async with self.connection.transaction():
            for table in TABLES:
                await self._do("DELETE FROM {0}", table)
                await self._do("INSERT INTO {0} TABLE {1}", table, f"kept_{table}")

    async def _do(self, statement: str, *names: str) -> None:
        await self.connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    # --- Where --------------------------------------------------------------------------------

    async def _blocks(self) -> list[Block]:
        found = await rows(self.connection, "SELECT first_position, last_position, hash FROM blocks ORDER BY 2")
        return [Block(*row) for row in found]

    async def _somewhere(self) -> tuple[Position, Block]:
        """A position and its block, neither the first nor the last one."""
        block = self._chance.choice((await self._blocks())[1:-1])
        return self._chance.randint(block.first, block.last), block

    async def _run(self, statement: str, **parameters: Any) -> int:
        return (await self.connection.execute(statement.encode(), parameters)).rowcount

    # --- What ---------------------------------------------------------------------------------

    def _column(self, column: str) -> Callable[[], Awaitable[Alteration]]:
        async def alter() -> Alteration:
            position, block = await self._somewhere()
            done = await self._run(f"UPDATE events SET {_COLUMNS[column]} WHERE notification_id = %(at)s", at=position)
            assert done == 1
            return Alteration(column, position, block)

        return alter

    async def _swap(self, one: Position, other: Position) -> None:
        move = "UPDATE events SET notification_id = %(to)s WHERE notification_id = %(at)s"
        for at, to in ((one, -1), (other, one), (-1, other)):
            await self._run(move, at=at, to=to)

    async def _swap_neighbours(self) -> Alteration:
        position, block = await self._somewhere()
        await self._swap(position, position + 1)
        return Alteration("swapped neighbours", position, block)

    async def _swap_any(self) -> Alteration:
        (one, of_one), (other, of_other) = await self._somewhere(), await self._somewhere()
        if one == other:
            return await self._swap_any()
        await self._swap(one, other)
        return Alteration("swapped pair", *min((one, of_one), (other, of_other)))

    async def _delete(self) -> Alteration:
        position, block = await self._somewhere()
        await self._run("DELETE FROM events WHERE notification_id = %(at)s", at=position)
        return Alteration("deleted in the middle", position, block)

    async def _delete_and_close_up(self) -> Alteration:
        position, block = await self._somewhere()
        await self._run("DELETE FROM events WHERE notification_id = %(at)s", at=position)
        for sign in (-1, 1):  # not twice the same position meanwhile
            await self._run(
                "UPDATE events SET notification_id = %(sign)s * (abs(notification_id) - %(step)s)"
                " WHERE abs(notification_id) > %(at)s",
                sign=sign,
                step=0 if sign < 0 else 1,
                at=position,
            )
        return Alteration("deleted and closed up", position, block)

    async def _delete_block(self) -> Alteration:
        _, block = await self._somewhere()
        await self._run("DELETE FROM blocks WHERE last_position = %(last)s", last=block.last)
        return Alteration("deleted block", block.first, block)

    async def _move_end(self) -> Alteration:
        blocks = await self._blocks()
        at = self._chance.choice([at for at in range(1, len(blocks) - 1) if blocks[at].last > blocks[at].first])
        block = blocks[at]
        await self._run(
            "UPDATE blocks SET last_position = %(to)s WHERE last_position = %(last)s",
            last=block.last,
            to=block.last - 1,
        )
        await self._run(
            "UPDATE blocks SET first_position = %(to)s WHERE first_position = %(first)s",
            first=block.last + 1,
            to=block.last,
        )
        return Alteration("moved end of a block", block.first, block)

    async def _alter_hash(self) -> Alteration:
        _, block = await self._somewhere()
        await self._run("UPDATE blocks SET hash = sha256(hash) WHERE last_position = %(last)s", last=block.last)
        return Alteration("hash of a block", block.first, block)

    async def _cut_from(self) -> Block:
        _, block = await self._somewhere()
        await self._run("DELETE FROM events WHERE notification_id >= %(first)s", first=block.first)
        return block

    async def _cut(self) -> Alteration:
        block = await self._cut_from()
        return Alteration("cut tail", block.first, block)

    async def _cut_blocks(self) -> Alteration:
        block = await self._cut_from()
        await self._run("DELETE FROM blocks WHERE first_position >= %(first)s", first=block.first)
        return Alteration("cut tail, blocks too", block.first, block)

    async def _cut_all(self) -> Alteration:
        altered = await self._cut_blocks()
        await self._run(
            "UPDATE head SET position = b.last_position, hash = b.hash"
            " FROM (SELECT last_position, hash FROM blocks ORDER BY last_position DESC LIMIT 1) AS b"
        )
        return Alteration("cut tail, head too", altered.first, altered.of, needs_checkpoint=True)

    async def _add(self) -> Alteration:
        last = (await self._blocks())[-1].last
        await self._run(
            "INSERT INTO events SELECT gen_random_uuid(), 1, topic, state, %(to)s, recorded_at, correlation_id,"
            " causation_position, actor, trace_context FROM events WHERE notification_id = %(last)s",
            last=last,
            to=last + 1,
        )
        return Alteration("added at the end", last + 1, Block(last + 1, last + 1, b""))

    async def _rewrite(self) -> Alteration:
        """An event is altered, and every hash from there on computed anew, the head's too."""
        position, block = await self._somewhere()
        await self._run("UPDATE events SET actor = 'nobody' WHERE notification_id = %(at)s", at=position)
        previous = BEFORE_ALL
        for one in await self._blocks():
            if one.last >= position:
                await self._run(
                    "UPDATE blocks SET hash = block_hash(%(previous)s, first_position, e.recorded_at, e.digests)"
                    " FROM (SELECT min(recorded_at) AS recorded_at,"
                    "   string_agg(event_digest(e), ''::bytea ORDER BY notification_id) AS digests FROM events AS e"
                    "   WHERE notification_id BETWEEN %(first)s AND %(last)s) AS e WHERE last_position = %(last)s",
                    previous=previous,
                    first=one.first,
                    last=one.last,
                )
            [(previous,)] = await rows(self.connection, "SELECT hash FROM blocks WHERE last_position = %s", one.last)
        await self._run("UPDATE head SET hash = %(hash)s", hash=previous)
        return Alteration("rewritten chain", position, block, needs_checkpoint=True)


_COLUMNS = {
    "byte of the state": "state = set_byte(state, length(state) / 2, (get_byte(state, length(state) / 2) + 1) %% 256)",
    "topic": "topic = topic || 's'",
    "actor": "actor = 'nobody'",
    "correlation id": "correlation_id = gen_random_uuid()",
    "causation": "causation_position = coalesce(causation_position, 0) + 1",
    "no causation": "causation_position = CASE WHEN causation_position IS NULL THEN 1 END",
    "trace": "trace_context = coalesce(trace_context, '') || 'x'",
    "time": "recorded_at = recorded_at + interval '1 microsecond'",
    "version": "originator_version = originator_version + 1000",
    "stream": "originator_id = gen_random_uuid()",
}
"""What is set, of one event."""
