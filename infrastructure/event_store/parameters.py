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


class Append:
    """What is to be recorded atomically.

    All that can be done for one append alone is done with it, while the previous batch is still being recorded.

    Attributes:
        digests: of the events.
        columns: of the events, their elements as they are sent: stream, version, topic, state, correlation, causation,
            actor, trace.
        base_streams, base_versions: the streams that it appends to, and their versions before.
    """

    __slots__ = ("base_streams", "base_versions", "columns", "digests", "entries", "keys", "moved")

    def __init__(
        self, entries: Sequence[StoredEntry], keys: Sequence[WrappedKey] = (), moved: Checkpoint | None = None
    ) -> None:
        self.entries, self.keys, self.moved = entries, keys, moved
        self.digests: list[bytes] = []
        self.columns: tuple[list[bytes], ...] = ([], [], [], [], [], [], [], [])
        self.base_streams: list[bytes] = []
        self.base_versions: list[bytes] = []
        self._write()

    def _write(self) -> None:
        """One pass fills all columns, because this is on the path of every append."""
        digests = self.digests
        streams, versions, topics, states, correlations, causations, actors, traces = self.columns
        known: Context | None = None
        latest: dict[bytes, int] = {}
        for event, context in self.entries:
            if context is not known:
                known = context
                correlation, actor = uuid(context.correlation_id), word(context.actor)
                causation = NULL if context.causation_position is None else bigint(context.causation_position)
                trace = NULL if context.trace is None else bytea(context.trace.encode())
                metadata = correlation[4:] + causation + actor + trace
            number, topic, state = event.originator_version, word(event.topic), bytea(event.state)
            stream, version = uuid(_stream_of(event)), bigint(number)
            if number != latest.get(stream, 0) + 1:
                self.base_streams.append(stream)
                self.base_versions.append(bigint(number - 1))
            latest[stream] = number
            # What a digest is over is the same, but for the lengths of what has always the same.
            digests.append(digest_of(stream[4:], version[4:], topic, state, metadata))
            streams.append(stream)
            versions.append(version)
            topics.append(topic)
            states.append(state)
            correlations.append(correlation)
            causations.append(causation)
            actors.append(actor)
            traces.append(trace)


def _stream_of(event: StoredEvent) -> UUID:
    """The library allows text as well; all our streams have UUIDs."""
    assert isinstance(event.originator_id, UUID)  # noqa: S101 - narrows the library's type
    return event.originator_id


def parameters_of(batch_id: UUID, appends: Sequence[Append]) -> tuple[Any, ...]:
    """The arguments of `append_batch_v2`: one array per column, one element per row."""
    sizes = Bigints()
    columns = streams, versions, topics, states, correlations, causations, actors, traces = (
        Uuids(), Bigints(), Texts(), Byteas(), Uuids(), Bigints(), Texts(), Texts(),
    )  # fmt: skip
    digests: list[bytes] = []
    base_streams, base_versions = Uuids(), Bigints()
    moving, followers, since, to = Bigints(), Texts(), Bigints(), Bigints()
    key_append, key_registrations, key_wrapped = Bigints(), Uuids(), Byteas()
    for number, append in enumerate(appends, start=1):
        sizes.append(bigint(len(append.entries)))
        for column, part in zip(columns, append.columns, strict=True):
            column.extend(part)
        digests += append.digests
        base_streams += append.base_streams
        base_versions += append.base_versions
        if append.moved is not None:
            moving.append(bigint(number))
            followers.append(word(append.moved.name))
            since.append(bigint(append.moved.since))
            to.append(bigint(append.moved.to))
        for key in append.keys:
            key_append.append(bigint(number))
            key_registrations.append(uuid(key.registration_id))
            key_wrapped.append(NULL if key.wrapped is None else bytea(key.wrapped))
    return (
        batch_id, sizes, streams, versions, topics, states, correlations, causations, actors, traces,
        b"".join(digests), base_streams, base_versions, moving, followers, since, to,
        key_append, key_registrations, key_wrapped,
    )  # fmt: skip
