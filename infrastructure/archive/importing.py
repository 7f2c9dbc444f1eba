"""An exported log, into an empty store: positions, times and hashes as they were, and verified before they are written.

Blocks are written in batches, a transaction each, so that an import that was interrupted goes on behind the last block
that it wrote. Until it is at its end the store has no head, and takes no append (`archive.sql`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from struct import Struct
from typing import Any, Final

import psycopg

from application.crash_points import crash_point
from application.ports import WrongMasterKey
from domain.recorded import Position
from infrastructure.archive.lines import EventLine, KeyLine
from infrastructure.archive.reading import Block, ExportedLog
from infrastructure.crypto.keyring import ROOT, binding, read_root_secret
from infrastructure.crypto.master_keys import KeyId, MasterKeys, Unopened, names
from infrastructure.event_store.chain import BEFORE_ALL
from infrastructure.postgres.connection import Connection

BATCH_EVENTS: Final = 10_000
"""In one transaction, and in memory twice: one batch is read while the one before is written."""

BATCH_KEYS: Final = 10_000

_NOT_EMPTY: Final = "RGFUL"
"""SQLSTATE of `begin_import` for a store with something in it."""

_LOOKS: Final = 10
_PAUSE: Final = timedelta(milliseconds=100)

_OTHERS: Final = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND application_name LIKE 'registrar %%' AND application_name NOT IN ('registrar setup', 'registrar import')
"""
_LOCK: Final = "SELECT pg_try_advisory_lock(hashtext('registrar import'))"
_REACHED: Final = "SELECT last_position, hash FROM public.blocks ORDER BY last_position DESC LIMIT 1"
_COPY_EVENTS: Final = """
    COPY public.events (originator_id, originator_version, topic, state, notification_id, recorded_at, correlation_id,
                        causation_position, actor, trace_context) FROM STDIN (FORMAT binary)
"""
_COPY_BLOCKS: Final = """
    COPY public.blocks (last_position, first_position, batch_id, lost, hash) FROM STDIN (FORMAT binary)
"""
_COPY_KEYS: Final = "COPY public.personal_keys (registration_id, wrapped) FROM STDIN (FORMAT binary)"


class CannotImport(Exception):
    """The file and this store do not go together; one line, fit to show."""


async def begin_import(connection: Connection) -> Position:
    """Take the store for an import, or for the rest of one that was interrupted; the position that it has reached.

    It is held by this session: a second import is refused for as long as it lasts.

    Raises:
        CannotImport: the store is not empty, or others are using it.
    """
    if not await _one(connection, _LOCK):
        raise CannotImport("Another import into this store is under way.")
    looks = 0
    while await _one(connection, _OTHERS):
        # The session of a command that has just ended is still there for a moment.
        await asyncio.sleep(_PAUSE.total_seconds())
        looks += 1
        if looks == _LOOKS:
            raise CannotImport("Processes of Registrar are connected to this database; stop them, then import.")
    try:
        await connection.execute("SELECT public.begin_import()")
    except psycopg.Error as error:
        if error.sqlstate != _NOT_EMPTY:
            raise
        raise CannotImport(
            "This store is not empty, and an import needs one that is; import into a database of its own "
            "(CREATE DATABASE, or another --data-dir)."
        ) from None
    await connection.execute("SET synchronous_commit = off")  # what a crash of the server loses is imported again
    await connection.execute("SET idle_in_transaction_session_timeout = 0")  # a file may come from far away
    return (await _reached(connection))[0]


async def import_events(connection: Connection, log: ExportedLog, *, on_events: Callable[[Position], None]) -> None:
    """Write all blocks that are not there yet.

    Args:
        on_events: called with the position that is verified and written.

    Raises:
        BadFile, OSError: of the file; what is written by then stays, and is verified.
        CannotImport: the store holds the beginning of another log.
        psycopg.Error: of the database.
    """
    reached, reached_hash = await _reached(connection)
    batches = _batches(log, reached, reached_hash)
    batch = await asyncio.to_thread(next, batches, None)
    while batch is not None:
        following = asyncio.create_task(asyncio.to_thread(next, batches, None))
        try:
            await _write(connection, batch)
        except BaseException:
            following.cancel()  # its thread ends when the file is closed: a pipe may be silent for ever
            raise
        on_events(batch.upto)
        batch = await following
    if log.position < reached:
        raise _other_log()


async def end_import(connection: Connection, log: ExportedLog, *, master_key: MasterKeys | None) -> int:
    """Write the personal keys, if wanted, and give the log its head; the number of keys. All of it or nothing.

    Args:
        master_key: that of the file's keys, or those: it may have been written during a rotation. None leaves them out.

    Raises:
        BadFile, OSError, psycopg.Error: see `import_events`.
        WrongMasterKey, CannotImport: see `check_root_secret`; or some of the keys are wrapped by a master key that is
            not here, which is named.
    """
    await connection.execute("SET synchronous_commit = on")
    keys = 0
    wrapped_by = _WrappedBy(master_key, log.head.root_secret) if master_key and log.head.root_secret else None
    async with connection.transaction():
        if master_key is not None and await check_root_secret(connection, log, master_key):
            await connection.execute(
                "INSERT INTO public.service_secrets (name, wrapped) VALUES ('root', %b)", (log.head.root_secret,)
            )
        found = log.personal_keys()
        while portion := await asyncio.to_thread(lambda: [*islice(found, BATCH_KEYS)]):
            if wrapped_by is not None:
                keys += len(portion)
                wrapped_by.check(portion)
                await _copy(connection, _COPY_KEYS, map(_key_row, portion))
        if wrapped_by is not None:
            await wrapped_by.note(connection)
        await connection.execute("SELECT public.end_import(%s, %s)", (log.position, log.hash))
    await connection.execute("ANALYZE public.events, public.blocks")
    return keys


class _WrappedBy:
    """Which master keys wrap what is in the file; all of them are here."""

    def __init__(self, keys: MasterKeys, root: bytes) -> None:
        self._keys = keys
        self._root = root
        self._named = dict.fromkeys(filter(None, (names(root),)))
        self._first: KeyId | None = None

    def check(self, portion: Sequence[KeyLine]) -> None:
        """
        Raises:
            WrongMasterKey: some are wrapped by one that is not here.
        """
        self._named |= dict.fromkeys(filter(None, (names(one.wrapped) for one in portion)))
        missing = [one.hex() for one in self._named if one not in self._keys.ids]
        unnamed = next((one for one in portion if names(one.wrapped) is None), None)
        if unnamed is not None and not missing:
            try:
                self._first = self._keys.opened(unnamed.wrapped, binding(unnamed.registration_id))[0]
            except Unopened:
                missing = ["that has no id yet, as it has never been changed"]
        if missing:
            raise WrongMasterKey(
                f"keys in this file are wrapped by the master key {' and '.join(missing)}, and it is not here; import "
                "with both (REGISTRAR_NEXT_MASTER_KEY): the file was written during a rotation"
            )

    async def note(self, connection: Connection) -> None:
        """Note them as the log's own database has it; the one that wraps the root secret wraps from now on."""
        wraps = names(self._root)
        first = self._first if wraps is not None else self._keys.opened(self._root, ROOT)[0]
        named = sorted(self._named, key=lambda one: one == wraps)
        for number, key in enumerate((first, *named), start=1):
            if key is not None:
                await connection.execute(
                    "INSERT INTO public.master_keys (number, key_id) VALUES (%s, %b) ON CONFLICT DO NOTHING",
                    (number, key),
                )


async def check_root_secret(connection: Connection, log: ExportedLog, master_key: MasterKeys) -> bool:
    """Do the file's keys fit here? True: its root secret is still to be written.

    Raises:
        WrongMasterKey: they are wrapped by another master key.
        CannotImport: this store has another root secret.
    """
    if log.head.root_secret is None:
        return False
    try:
        theirs = master_key.unwrap(log.head.root_secret, ROOT)
    except WrongMasterKey as error:
        raise WrongMasterKey(
            f"the master key is not the one that the keys in this file are wrapped by: {error}"
        ) from None
    ours = await read_root_secret(connection, master_key)
    if ours is not None and ours != theirs:
        raise CannotImport(
            "This store has a root secret of its own, as a service has started on it; "
            "import these keys into a database on which none has."
        )
    return ours is None


# --- Batches ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Batch:
    upto: Position
    events: list[bytes]
    blocks: list[bytes]


def _batches(log: ExportedLog, reached: Position, reached_hash: bytes) -> Iterator[_Batch]:
    """The rows to write; an empty batch now and then while the file is only verified."""
    events: list[bytes] = []
    blocks: list[bytes] = []
    since = 0
    for block in log.blocks():
        if block.last > reached:
            events += _event_rows(block)
            blocks.append(_block_row(block))
        elif block.last == reached and block.hash != reached_hash:
            raise _other_log()
        if block.first <= reached < block.last:
            raise _other_log()
        if block.last - since >= BATCH_EVENTS:
            yield _Batch(block.last, events, blocks)
            events, blocks, since = [], [], block.last
    yield _Batch(log.position, events, blocks)


def _other_log() -> CannotImport:
    return CannotImport(
        "An import of another log was begun in this store; go on with that file, or use another database."
    )


async def _write(connection: Connection, batch: _Batch) -> None:
    if not batch.events:
        return
    async with connection.transaction():
        await _copy(connection, _COPY_EVENTS, batch.events)
        await _copy(connection, _COPY_BLOCKS, batch.blocks)
        crash_point("import.batch")


async def _reached(connection: Connection) -> tuple[Position, bytes]:
    row = await (await connection.execute(_REACHED)).fetchone()
    return (0, BEFORE_ALL) if row is None else (row[0], row[1])


async def _one(connection: Connection, query: str) -> Any:
    row: Any = await (await connection.execute(query.encode())).fetchone()
    return row[0]


# --- Rows as COPY has them in binary ----------------------------------------------------------

_BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END: Final = b"\xff\xff"
_NULL: Final = b"\xff\xff\xff\xff"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_length = Struct("!i").pack
_integer = Struct("!iq").pack
_stream_and_version = Struct("!hi16siqi").pack
_place = Struct("!iqiqi16s").pack
_positions = Struct("!hiqiqi16siiiii32s").pack
_key = Struct("!hi16si").pack


def _event_rows(block: Block) -> list[bytes]:
    recorded_at = (block.recorded_at - _EPOCH) // _MICROSECOND
    return [_event_row(event, state, recorded_at) for event, state in block.events]


def _event_row(event: EventLine, state: bytes, recorded_at: int) -> bytes:
    topic = event.type.encode()
    actor = event.actor.encode()
    trace = None if event.trace is None else event.trace.encode()
    return b"".join(
        (
            _stream_and_version(10, 16, event.stream_id.bytes, 8, event.version, len(topic)),
            *(topic, _length(len(state)), state),
            _place(8, event.position, 8, recorded_at, 16, event.correlation_id.bytes),
            _NULL if event.causation_position is None else _integer(8, event.causation_position),
            *(_length(len(actor)), actor),
            _NULL if trace is None else _length(len(trace)) + trace,
        )
    )


def _block_row(block: Block) -> bytes:
    """Its batch is over: it gets an id that is its own, a UUID of version 8 (RFC 9562) from its hash, and lost none."""
    batch_id = bytearray(block.hash[:16])
    batch_id[6] = batch_id[6] & 0x0F | 0x80
    batch_id[8] = batch_id[8] & 0x3F | 0x80
    no_elements = (12, 0, 0, 23)  # of type integer
    return _positions(5, 8, block.last, 8, block.first, 16, bytes(batch_id), *no_elements, 32, block.hash)


def _key_row(key: KeyLine) -> bytes:
    return _key(2, 16, key.registration_id.bytes, len(key.wrapped)) + key.wrapped


async def _copy(connection: Connection, statement: str, rows: Iterable[bytes]) -> None:
    async with connection.cursor().copy(statement.encode()) as copy:
        await copy.write(b"".join((_BEGIN, *rows, _END)))
