"""An append, and how a batch of them is passed to `append_batch_v2` (`log.sql`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from eventsourcing.persistence import StoredEvent

from application.ports import Checkpoint, Context, WrappedKey
from infrastructure.event_store.chain import digest_of
from infrastructure.postgres.binary_arrays import NULL, Bigints, Byteas, Texts, Uuids, bigint, bytea, uuid, word

StoredEntry = tuple[StoredEvent, Context]
"""An event in stored form, with its context."""


Row = tuple[bytes, ...]
"""An event as it is sent, each value in PostgreSQL's binary form after its length: stream, version, topic, state,
correlation, causation, actor, trace."""


class Append:
    """What is to be recorded atomically.

    All that can be done for one append alone is done with it, while the previous batch is still being recorded.

    Attributes:
        rows: the events.
        digests: of the events.
        before: the streams that it appends to, and their versions until then; as they are sent.
    """

    __slots__ = ("before", "digests", "entries", "keys", "moved", "rows")

    def __init__(
        self, entries: Sequence[StoredEntry], keys: Sequence[WrappedKey] = (), moved: Checkpoint | None = None
    ) -> None:
        self.entries, self.keys, self.moved = entries, keys, moved
        self.rows: list[Row] = []
        self.digests: list[bytes] = []
        self.before: list[tuple[bytes, bytes]] = []
        known: Context | None = None
        latest: dict[bytes, int] = {}
        for event, context in entries:
            if context is not known:
                known, metadata = context, _metadata_of(context)
                said = metadata[0][4:] + b"".join(metadata[1:])
            number, topic, state = event.originator_version, word(event.topic), bytea(event.state)
            stream, version = uuid(_stream_of(event)), bigint(number)
            if number != latest.get(stream, 0) + 1:
                self.before.append((stream, bigint(number - 1)))
            latest[stream] = number
            # A digest is over the same, but for the lengths of what has always the same.
            self.digests.append(digest_of(stream[4:], version[4:], topic, state, said))
            self.rows.append((stream, version, topic, state, *metadata))


def _metadata_of(context: Context) -> Row:
    """See `Row`."""
    causation, trace = context.causation_position, context.trace
    return (
        uuid(context.correlation_id),
        NULL if causation is None else bigint(causation),
        word(context.actor),
        NULL if trace is None else bytea(trace.encode()),
    )


def _stream_of(event: StoredEvent) -> UUID:
    """The library allows text as well; all our streams have UUIDs."""
    assert isinstance(event.originator_id, UUID)  # noqa: S101 - narrows the library's type
    return event.originator_id


def parameters_of(batch_id: UUID, appends: Sequence[Append]) -> tuple[Any, ...]:
    """The arguments of `append_batch_v2`: one array per column, one element per row."""
    sizes = Bigints()
    rows: list[Row] = []
    digests: list[bytes] = []
    before: list[tuple[bytes, bytes]] = []
    moving, followers, since, to = Bigints(), Texts(), Bigints(), Bigints()
    key_append, key_registrations, key_wrapped = Bigints(), Uuids(), Byteas()
    for number, append in enumerate(appends, start=1):
        sizes.append(bigint(len(append.entries)))
        rows += append.rows
        digests += append.digests
        before += append.before
        if append.moved is not None:
            moving.append(bigint(number))
            followers.append(word(append.moved.name))
            since.append(bigint(append.moved.since))
            to.append(bigint(append.moved.to))
        for key in append.keys:
            key_append.append(bigint(number))
            key_registrations.append(uuid(key.registration_id))
            key_wrapped.append(NULL if key.wrapped is None else bytea(key.wrapped))
    streams, versions, topics, states, correlations, causations, actors, traces = zip(*rows, strict=True)
    base_streams, base_versions = zip(*before, strict=True) if before else ((), ())
    return (
        batch_id, sizes, Uuids(streams), Bigints(versions), Texts(topics), Byteas(states), Uuids(correlations),
        Bigints(causations), Texts(actors), Texts(traces), b"".join(digests), Uuids(base_streams),
        Bigints(base_versions), moving, followers, since, to, key_append, key_registrations, key_wrapped,
    )  # fmt: skip
