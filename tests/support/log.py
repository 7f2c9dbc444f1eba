"""The words of the tests that look at the log itself: stored events, its rows, its locks, its hash chain."""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
from eventsourcing.persistence import StoredEvent
from psycopg.conninfo import conninfo_to_dict

from application.ports import Checkpoint, Context, WrappedKey
from domain.recorded import Position
from infrastructure.crypto.keyring import open_root_secret
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import connect
from tests.support.facts import CLIENT, eventually
from tests.support.tcp_proxy import TcpProxy


def happened(
    stream_id: UUID | None = None, version: int = 1, *, topic: str = "test.happened", state: bytes = b"{}"
) -> StoredEvent:
    """An event of no aggregate; without a stream it begins one."""
    return StoredEvent(stream_id or uuid4(), version, topic, state)


async def append(
    store: EventStore,
    *events: StoredEvent,
    context: Context = CLIENT,
    keys: Sequence[WrappedKey] = (),
    moved: Checkpoint | None = None,
) -> Position:
    return await store.append_stored([(event, context) for event in events], keys=keys, moved=moved)


async def query(dsn: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(statement.encode(), parameters or None)
        return await cursor.fetchall() if cursor.description else []


async def keep_root_secret(dsn: str, master_key: str) -> None:
    """What the first start of a service does, so that commands can act. `master_key` is in hexadecimal."""
    async with await connect(dsn, name="setup", statement_timeout=timedelta(seconds=10)) as connection:
        await open_root_secret(connection, bytes.fromhex(master_key))


async def log_of(dsn: str) -> list[tuple[Position, UUID, int]]:
    """Position, stream and version of every event, in the order of positions."""
    return await query(
        dsn, "SELECT notification_id, originator_id, originator_version FROM events ORDER BY notification_id"
    )


def placed(*events: StoredEvent) -> list[tuple[Position, UUID, int]]:
    """What `log_of` answers when exactly these were recorded, in this order."""
    return [
        (position, UUID(str(event.originator_id)), event.originator_version)
        for position, event in enumerate(events, start=1)
    ]


@asynccontextmanager
async def locked(dsn: str, statement: str = "SELECT FROM head FOR UPDATE") -> AsyncIterator[psycopg.AsyncConnection]:
    """Somebody else holds what `statement` locks."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(statement.encode())
        yield connection
        await connection.rollback()


async def until_waiting_for_a_lock(dsn: str, application: str = "registrar append") -> None:
    async def waits() -> bool:
        sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        return bool(await query(dsn, sessions, application))

    await eventually(waits)


async def in_one_batch(
    store: EventStore, dsn: str, *appends: Coroutine[Any, Any, Position]
) -> list[Position | BaseException]:
    """The answers of appends that had to wait for each other, and so went together, after one of our own."""
    async with locked(dsn):
        ours = asyncio.create_task(append(store, happened()))
        await until_waiting_for_a_lock(dsn)
        tasks = [asyncio.create_task(one) for one in appends]
        await eventually(lambda: store.waiting == len(tasks))
    await ours
    return await asyncio.gather(*tasks, return_exceptions=True)


def proxy_to(dsn: str) -> TcpProxy:
    """A proxy, not yet listening, in front of the server of `dsn`."""
    to = conninfo_to_dict(dsn)
    return TcpProxy(f"{to['host']}/.s.PGSQL.{to['port']}")


def by_way_of(proxy: TcpProxy, dsn: str) -> str:
    """The database's URL through the proxy."""
    to = conninfo_to_dict(dsn)
    where = f"127.0.0.1:{proxy.port}/{to['dbname']}"
    return f"postgresql://{to['user']}@{where}?sslmode=disable&gssencmode=disable"


# --- Hash chain -------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


async def broken_blocks(connection: psycopg.AsyncConnection) -> list[Position]:
    """Last positions of the blocks whose hash is not that of their rows, calculated here; -1 for the head."""
    events = await (
        await connection.execute(
            "SELECT notification_id, originator_id, originator_version, topic, state, recorded_at, correlation_id,"
            " causation_position, actor, trace_context FROM events ORDER BY notification_id"
        )
    ).fetchall()
    blocks = await (
        await connection.execute("SELECT first_position, last_position, hash FROM blocks ORDER BY last_position")
    ).fetchall()
    head = await (await connection.execute("SELECT position, hash FROM head")).fetchone()
    broken, before, end = [], hashlib.sha256(b"").digest(), 0
    for first, last, claimed in blocks:
        rows = events[bisect_left(events, first, key=_place) : bisect_right(events, last, key=_place)]
        times = {row[5] for row in rows}
        at = [((time - _EPOCH) // _MICROSECOND).to_bytes(8, "big") for time in times]
        digests = [hashlib.sha256(bytes_of_event(*row[1:5], *row[6:])).digest() for row in rows]
        before = hashlib.sha256(b"".join([before, first.to_bytes(8, "big"), *at, *digests])).digest()
        if first != end + 1 or len(rows) != last - end or len(times) != 1 or before != claimed:
            broken.append(last)
        before, end = claimed, last
    if head != (end, before) or len(events) != end:
        broken.append(-1)
    return broken


def _place(row: Sequence[Any]) -> Position:
    position: Position = row[0]
    return position


def bytes_of_event(
    stream_id: UUID,
    version: int,
    topic: str,
    state: bytes,
    correlation_id: UUID,
    causation_position: Position | None,
    actor: str,
    trace: str | None,
) -> bytes:
    """What the chain keeps of an event, as `event_digest` in log.sql lays it out."""
    return b"".join(
        (
            stream_id.bytes, version.to_bytes(8, "big"), _field(topic.encode()), _field(state), correlation_id.bytes,
            _field(None if causation_position is None else causation_position.to_bytes(8, "big")),
            _field(actor.encode()), _field(None if trace is None else trace.encode()),
        )
    )  # fmt: skip


def _field(value: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if value is None else len(value).to_bytes(4, "big") + value


async def acts_of(dsn: str) -> list[tuple[str, str | None]]:
    """What operators did, and why, in order."""
    state = "convert_from(state, 'UTF8')::jsonb"
    return await query(
        dsn,
        f"SELECT {state} ->> 'act', {state} ->> 'reason' FROM events WHERE topic = 'operator.acted'"
        " ORDER BY notification_id",
    )
