"""The event store: group commit into one PostgreSQL log, and reading back from it.

Positions are 1, 2, 3, … in commit order without gaps: a reader that saw N has seen everything up to N. The SQL side,
with the hash chain and everything that is committed together, is `log.sql`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

from application.ports import Checkpoint, Entry, WrappedKey
from domain.recorded import Position, Recorded
from infrastructure.event_store.appender import Appender
from infrastructure.event_store.batch import Stretch
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.loader import LoadedStreams, StreamLoader
from infrastructure.event_store.parameters import Append, StoredEntry
from infrastructure.event_store.reader import LogReader, RecordedRow
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import ReconnectingConnection


class EventStore:
    """Appends and reads events, over one writing, one loading and one tailing connection."""

    def __init__(
        self,
        dsn: str,
        *,
        codec: EventCodec,
        clock: DatabaseClock,
        statement_timeout: timedelta = timedelta(seconds=10),
        max_waiting: int = 2000,
        pace: timedelta = timedelta(0),
        on_batch: Callable[[int], None] = lambda _: None,
        on_append: Callable[[float], None] = lambda _: None,
    ) -> None:
        """
        Args:
            max_waiting: appends that may wait for the next batch; beyond it callers get `Overloaded`.
            pace: of the batches of appends and loads; see `infrastructure.postgres.batching.Batcher`.
            on_batch: called with the number of appends of every batch.
            on_append: called with the duration of every append in seconds, including its wait.
        """
        self._codec = codec
        self._clock = clock
        self._on_append = on_append

        connection = partial(ReconnectingConnection, dsn, statement_timeout=statement_timeout)
        self._writing, self._tailing = connection(name="append", plan_once=True), connection(name="tail")
        self._appender = Appender(self._writing, clock, max_waiting=max_waiting, pace=pace, on_batch=on_batch)
        # Every command starts with a load: if that finds the database unavailable, an append would, too.
        self._loader = StreamLoader(
            connection(name="load", plan_once=True),
            codec,
            max_waiting=max_waiting,
            pace=pace,
            on_unavailable=self._appender.note_unavailable,
        )
        self._reader = LogReader(self._tailing, codec)

    async def open(self) -> None:
        """Read the database's time.

        Raises:
            Unavailable: the database is away.
        """
        await self.ask_time()

    async def close(self) -> None:
        """Finish the appends and loads already accepted, then close the connections."""
        await self._appender.close()
        await self._loader.close()
        await self._reader.close()

    async def ask_time(self) -> None:
        """Set the clock by the database."""
        await self._clock.set_by(self._tailing)

    # --- Writing ------------------------------------------------------------------------------

    async def append(
        self, entries: Sequence[Entry], *, keys: Sequence[WrappedKey] = (), moved: Checkpoint | None = None
    ) -> Position:
        """See `application.ports.Log.append`."""
        stored = [(self._codec.encode(event), context) for event, context in entries]
        return await self.append_stored(stored, keys=keys, moved=moved)

    async def append_stored(
        self, entries: Sequence[StoredEntry], *, keys: Sequence[WrappedKey] = (), moved: Checkpoint | None = None
    ) -> Position:
        """`append` for events that are already in stored form.

        Raises:
            ValueError: there is no event.
        """
        if not entries:
            raise ValueError("an append needs an event")
        started = time.monotonic()
        try:
            return await self._appender.record(Append(entries, keys, moved))
        finally:
            self._on_append(time.monotonic() - started)

    async def settled(self) -> None:
        """Return when every append that was accepted up to now is recorded, or is not."""
        await self._appender.settled()

    @property
    def waiting(self) -> int:
        """How many appends wait for the next batch."""
        return self._appender.waiting

    @property
    def refuses(self) -> bool:
        """Does the database not respond, or was it unavailable to the latest batch or a load within the last 2 s?"""
        return self._loader.stuck or self._appender.refuses

    @property
    def accepts(self) -> bool:
        """Was the latest batch recorded, less than a second ago?"""
        return self._appender.accepts

    async def try_append(self) -> None:
        """Do what a registration does, on the very connections that it would use, and record nothing: load, and take
        the locks of an append. Another connection could find a server that these have lost, or have yet to lose.

        Raises:
            Unavailable, psycopg.Error: an append would fail, too.
        """
        await self._loader.touch()
        await self._appender.try_locks()

    # --- Reading ------------------------------------------------------------------------------

    async def load(
        self,
        *stream_ids: UUID,
        holders_of: Sequence[UUID] = (),
        mailboxes: Sequence[UUID] = (),
        proofs_of: Sequence[UUID] = (),
    ) -> LoadedStreams:
        """See `application.ports.Log.load`."""
        return await self._loader.load(*stream_ids, holders_of=holders_of, mailboxes=mailboxes, proofs_of=proofs_of)

    @property
    def end_seen(self) -> Position:
        """The end of the log as the latest `read` found it."""
        return self._reader.end_seen

    async def read(
        self, after: Position, limit: int, topics: Sequence[str] | None = None
    ) -> tuple[list[RecordedRow], Position]:
        """See `infrastructure.event_store.reader.LogReader.read`."""
        return await self._reader.read(after, limit, topics)

    async def head(self) -> Position:
        """Position of the last event."""
        return await self._reader.head()

    def decode(self, row: RecordedRow) -> Recorded:
        """See `infrastructure.event_store.reader.LogReader.decode`."""
        return self._reader.decode(row)

    async def stretch(
        self, after: Position, limit: int, topics: Sequence[str] | None = None, *, metadata: bool = True
    ) -> Stretch:
        """See `infrastructure.event_store.reader.LogReader.stretch`."""
        return await self._reader.stretch(after, limit, topics, metadata=metadata)
