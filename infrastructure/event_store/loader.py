"""Whole streams, read in one round trip for all callers that ask at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from application.ports import A, Unavailable, UnexpectedAggregate
from domain.recorded import Position
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import RecordedRow
from infrastructure.postgres.batching import BATCH_TIMEOUT, Batcher
from infrastructure.postgres.circumstances import TellingRefusals
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.postgres.cutting import cut_after

# The streams asked for; the claims, and the streams of the registrations that hold them now; the latest event of each
# mailbox, and the streams of its applicants for an address of these claims. (An applicant is "REGISTRATION CLAIM …".)
_LOAD = """
    WITH mailbox AS MATERIALIZED (
        SELECT latest.*
        FROM unnest(%(mailboxes)b::uuid[]) AS asked (id)
        CROSS JOIN LATERAL (
            SELECT m.originator_id, m.originator_version, m.topic, m.state, m.notification_id
            FROM events AS m WHERE m.originator_id = asked.id
            ORDER BY m.originator_version DESC LIMIT 1
        ) AS latest
    )
    SELECT e.originator_id, e.originator_version, e.topic, e.state, e.notification_id
    FROM (
        SELECT unnest(%(streams)b::uuid[]) AS id
        UNION SELECT unnest(%(claims)b::uuid[])
        UNION SELECT (convert_from(latest.state, 'UTF8')::jsonb ->> 'registration_id')::uuid
        FROM unnest(%(claims)b::uuid[]) AS claim (id)
        CROSS JOIN LATERAL (
            SELECT c.state FROM events AS c WHERE c.originator_id = claim.id
            ORDER BY c.originator_version DESC LIMIT 1
        ) AS latest
        UNION SELECT split_part(applicant.told, ' ', 1)::uuid
        FROM mailbox
        CROSS JOIN LATERAL jsonb_array_elements_text(
            convert_from(mailbox.state, 'UTF8')::jsonb -> 'applicants'
        ) AS applicant (told)
        WHERE split_part(applicant.told, ' ', 2)::uuid = ANY (%(claims)b::uuid[])
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT * FROM events AS s WHERE s.originator_id = wanted.id ORDER BY s.originator_version
    ) AS e
    UNION ALL SELECT * FROM mailbox
"""

_Request = tuple[tuple[UUID, ...], tuple[UUID, ...], tuple[UUID, ...]]
"""Streams, claims and mailboxes."""

_Rows = dict[UUID, list[tuple[int, str, bytes, Position]]]


class LoadedStreams:
    """Loaded rows by stream, turned into aggregates on demand. Belongs to one caller."""

    def __init__(self, codec: EventCodec, rows: _Rows) -> None:
        self._codec = codec
        self._rows = rows

    @classmethod
    def of(cls, codec: EventCodec, recorded: Iterable[RecordedRow]) -> LoadedStreams:
        """From events read elsewhere, those of each stream in its order and from its first on."""
        rows: _Rows = {}
        for row in recorded:
            rows.setdefault(row.stream_id, []).append((row.version, row.topic, row.state, row.position))
        return cls(codec, rows)

    def get(self, kind: type[A], stream_id: UUID) -> A | None:
        """See `application.ports.Streams`."""
        aggregate: Any = None
        for version, topic, state, _ in self._rows.get(stream_id, ()):
            aggregate = self._codec.decode(stream_id, version, topic, state).mutate(aggregate)
        if aggregate is not None and not isinstance(aggregate, kind):
            raise UnexpectedAggregate(stream_id, type(aggregate), kind)
        return aggregate

    def position(self, stream_id: UUID) -> Position:
        """Position of the stream's last event, 0 if it has none."""
        rows = self._rows.get(stream_id)
        return rows[-1][3] if rows else 0

    def position_at(self, stream_id: UUID, version: int) -> Position:
        """See `application.ports.Streams`."""
        return self._rows[stream_id][version - 1][3]


class StreamLoader:
    """Reads streams over one connection; requests are gathered while the previous query is running."""

    def __init__(
        self,
        connection: ReconnectingConnection,
        codec: EventCodec,
        *,
        max_waiting: int,
        pace: timedelta,
        on_unavailable: Callable[[], None],
    ) -> None:
        """
        Args:
            max_waiting: loads that may wait; beyond it callers get `Overloaded`.
            pace: see `infrastructure.postgres.batching.Batcher`.
            on_unavailable: called when a load finds the database unavailable.
        """
        self._connection = connection
        self._codec = codec
        self._on_unavailable = on_unavailable
        self._refusals = TellingRefusals("load")
        self._loads: Batcher[_Request, LoadedStreams] = Batcher(
            self._load_batch, name="load", max_batch=200, max_waiting=max_waiting, pace=pace
        )

    @property
    def stuck(self) -> bool:
        """Does a query take longer than it should? See `infrastructure.postgres.batching.Batcher`."""
        return self._loads.stuck

    async def close(self) -> None:
        """Finish the loads already accepted, then close the connection."""
        await self._loads.close()
        await self._connection.close()

    async def touch(self) -> None:
        """Use the connection, or make a new one.

        Raises:
            Unavailable: the database is away.
        """

        async def ask(connection: Connection) -> None:
            with cut_after(BATCH_TIMEOUT, connection):
                await connection.execute("SELECT 1")

        await self._connection.execute_idempotent(ask)

    async def load(
        self, *stream_ids: UUID, holders_of: Sequence[UUID] = (), mailboxes: Sequence[UUID] = ()
    ) -> LoadedStreams:
        """See `application.ports.Log.load`."""
        return await self._loads.do((stream_ids, tuple(holders_of), tuple(mailboxes)))

    async def _load_batch(self, requests: Sequence[_Request]) -> Sequence[LoadedStreams | Exception]:
        streams = list({one for stream_ids, _, _ in requests for one in stream_ids})
        claims = list({one for _, claim_ids, _ in requests for one in claim_ids})
        mailboxes = list({one for _, _, mailbox_ids in requests for one in mailbox_ids})

        async def select(connection: Connection) -> _Rows:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_LOAD, {"streams": streams, "claims": claims, "mailboxes": mailboxes})
            rows: _Rows = {}
            for stream_id, version, topic, state, position in await cursor.fetchall():
                rows.setdefault(stream_id, []).append((version, topic, state, position))
            return rows

        try:
            with self._refusals:
                rows = await self._connection.execute_idempotent(select)
        except Unavailable:
            self._on_unavailable()
            raise
        # The rows are shared, but every caller builds its own aggregates from them.
        return [LoadedStreams(self._codec, rows) for _ in requests]
