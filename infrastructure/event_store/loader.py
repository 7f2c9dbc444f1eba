"""Whole streams, read in one round trip for all callers that ask at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, Final, NamedTuple
from uuid import UUID

from application.ports import A, Holder, Unavailable, UnexpectedAggregate
from domain.mailbox import UNTOUCHED
from domain.recorded import Position
from domain.uuids import uuid_of_int
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import RecordedRow
from infrastructure.postgres.batching import BATCH_TIMEOUT, Batcher
from infrastructure.postgres.circumstances import TellingRefusals
from infrastructure.postgres.connection import Connection, ReconnectingConnection
from infrastructure.postgres.cutting import cut_after

# What is asked for, each by its name in `_Request`. Mailboxes and proofs have a row each, found or not, and what is new
# is decoded like what is known: nobody is to learn from the time it takes which there are (docs/security.md, S2).
_PARTS: Final = {
    "streams": """
    SELECT e.originator_id, e.originator_version, e.topic, e.state, e.notification_id
    FROM unnest(%(streams)b::uuid[]) AS asked (id)
    CROSS JOIN LATERAL (
        SELECT * FROM events AS s WHERE s.originator_id = asked.id ORDER BY s.originator_version
    ) AS e
""",
    # The latest event of each.
    "mailboxes": """
    SELECT asked.id, latest.originator_version, latest.topic, latest.state, latest.notification_id
    FROM unnest(%(mailboxes)b::uuid[]) AS asked (id)
    LEFT JOIN LATERAL (
        SELECT * FROM events AS m WHERE m.originator_id = asked.id ORDER BY m.originator_version DESC LIMIT 1
    ) AS latest ON true
""",
    # Of each claim, who holds it, and by which version of its stream it has proven the address (0: not yet).
    "proofs": """
    SELECT asked.id,
           CASE WHEN latest.topic = 'email_claim.email_claimed' THEN coalesce(proof.originator_version, 0) END,
           NULL, uuid_send(named.id), NULL
    FROM unnest(%(proofs)b::uuid[]) AS asked (id)
    LEFT JOIN LATERAL (
        SELECT c.topic, convert_from(c.state, 'UTF8') AS state
        FROM events AS c WHERE c.originator_id = asked.id ORDER BY c.originator_version DESC LIMIT 1
    ) AS latest ON true
    CROSS JOIN LATERAL (
        SELECT (coalesce(
            latest.state, '{"registration_id": "00000000-0000-0000-0000-000000000000"}'
        )::jsonb ->> 'registration_id')::uuid AS id
        OFFSET 0 -- computed once
    ) AS named
    LEFT JOIN LATERAL (
        SELECT p.originator_version FROM events AS p
        WHERE p.originator_id = named.id AND p.originator_version <> 2 -- it begins with two others, or was imported
        AND p.topic IN ('registration.email_verified', 'registration.user_imported') LIMIT 1
    ) AS proof ON true
""",
    # The claims, and the streams of the registrations that hold them now, or did last; the streams of the mailboxes'
    # applicants for an address of these claims. (An applicant is "REGISTRATION CLAIM …", with eight digits of the claim
    # or more.)
    "claims": """
    SELECT e.originator_id, e.originator_version, e.topic, e.state, e.notification_id
    FROM (
        SELECT unnest(%(claims)b::uuid[]) AS id
        UNION SELECT (convert_from(latest.state, 'UTF8')::jsonb ->> 'registration_id')::uuid
        FROM unnest(%(claims)b::uuid[]) AS claim (id)
        CROSS JOIN LATERAL (
            SELECT c.state FROM events AS c WHERE c.originator_id = claim.id
            ORDER BY c.originator_version DESC LIMIT 1
        ) AS latest
        UNION SELECT split_part(applicant.told, ' ', 1)::uuid
        FROM unnest(%(mailboxes)b::uuid[]) AS mailbox (id)
        CROSS JOIN LATERAL (
            SELECT m.state FROM events AS m WHERE m.originator_id = mailbox.id
            ORDER BY m.originator_version DESC LIMIT 1
        ) AS latest
        CROSS JOIN LATERAL jsonb_array_elements_text(
            convert_from(latest.state, 'UTF8')::jsonb -> 'applicants'
        ) AS applicant (told)
        WHERE left(split_part(applicant.told, ' ', 2), 8) IN (
            SELECT left(c.id::text, 8) FROM unnest(%(claims)b::uuid[]) AS c (id))
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT * FROM events AS s WHERE s.originator_id = wanted.id ORDER BY s.originator_version
    ) AS e
    WHERE wanted.id <> ALL (%(streams)b::uuid[])
""",
}


STREAMS: Final = _PARTS["streams"]
"""Reads whole streams, their ids in `streams`: for `LoadedStreams.of_rows`."""


@cache
def _query(*names: str) -> str:
    """Only of the parts that are asked for: to begin one costs as much as to find what it asks for."""
    return "UNION ALL".join(_PARTS[name] for name in names or ("streams",))


class _Request(NamedTuple):
    """What `application.ports.Log.load` was asked for."""

    streams: tuple[UUID, ...]
    claims: tuple[UUID, ...]
    mailboxes: tuple[UUID, ...]
    proofs: tuple[UUID, ...]


_NOBODY: Mapping[UUID, Holder] = {}

_Rows = dict[UUID, list[tuple[int, str, bytes, Position]]]


class LoadedStreams:
    """Loaded rows by stream, turned into aggregates on demand, anew each time."""

    def __init__(self, codec: EventCodec, rows: _Rows, holders: Mapping[UUID, Holder] = _NOBODY) -> None:
        self._codec = codec
        self._rows = rows
        self._holders = holders

    @classmethod
    def of(cls, codec: EventCodec, recorded: Iterable[RecordedRow]) -> LoadedStreams:
        """From events read elsewhere, those of each stream in its order and from its first on."""
        rows: _Rows = {}
        for row in recorded:
            rows.setdefault(row.stream_id, []).append((row.version, row.topic, row.state, row.position))
        return cls(codec, rows)

    @classmethod
    def of_rows(cls, codec: EventCodec, read: Iterable[tuple[UUID, int, str, bytes, Position]]) -> LoadedStreams:
        """From what `STREAMS` has read."""
        rows: _Rows = {}
        for stream_id, version, topic, state, position in read:
            rows.setdefault(stream_id, []).append((version, topic, state, position))
        return cls(codec, rows)

    def get(self, kind: type[A], stream_id: UUID) -> A | None:
        """See `application.ports.Streams`."""
        aggregate: Any = None
        for version, topic, state, _ in self._rows.get(stream_id, ()):
            if not version:
                self._codec.decode(stream_id, 0, topic, state).mutate(None)
                return None
            aggregate = self._codec.decode(stream_id, version, topic, state).mutate(aggregate)
        if aggregate is not None and not isinstance(aggregate, kind):
            raise UnexpectedAggregate(stream_id, type(aggregate), kind)
        return aggregate

    def holder(self, claim_id: UUID) -> Holder | None:
        """See `application.ports.Streams`."""
        return self._holders.get(claim_id)

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
        untouched = codec.encode(UNTOUCHED)
        self._untouched = [(0, untouched.topic, untouched.state, 0)]
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
        self,
        *stream_ids: UUID,
        holders_of: Sequence[UUID] = (),
        mailboxes: Sequence[UUID] = (),
        proofs_of: Sequence[UUID] = (),
    ) -> LoadedStreams:
        """See `application.ports.Log.load`."""
        return await self._loads.do(_Request(stream_ids, tuple(holders_of), tuple(mailboxes), tuple(proofs_of)))

    async def _load_batch(self, requests: Sequence[_Request]) -> Sequence[LoadedStreams | Exception]:
        asked = {
            name: list({one for request in requests for one in getattr(request, name)}) for name in _Request._fields
        }

        async def select(connection: Connection) -> tuple[_Rows, dict[UUID, Holder]]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_query(*filter(asked.get, _PARTS)), asked)
            rows: _Rows = {}
            holders: dict[UUID, Holder] = {}
            for stream_id, version, topic, state, position in await cursor.fetchall():
                if topic is not None:
                    rows.setdefault(stream_id, []).append((version, topic, state, position))
                elif state is None:
                    rows[stream_id] = self._untouched
                else:
                    holder = Holder(uuid_of_int(int.from_bytes(state, "big")), bool(version))
                    if version is not None:
                        holders[stream_id] = holder
            return rows, holders

        try:
            with self._refusals:
                rows, holders = await self._connection.execute_idempotent(select)
        except Unavailable:
            self._on_unavailable()
            raise
        # The rows are shared, but every caller builds its own aggregates from them.
        return [LoadedStreams(self._codec, rows, holders) for _ in requests]
