"""An append, and how a batch of them is passed to `append_batch_v2` (`log.sql`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from eventsourcing.persistence import StoredEvent

from application.ports import Checkpoint, Context, WrappedKey
from infrastructure.event_store.chain import digest_before, metadata_of
from infrastructure.postgres.binary_arrays import Bigints, Byteas, Texts, Uuids

StoredEntry = tuple[StoredEvent, Context]
"""An event in stored form, with its context."""


@dataclass(frozen=True, slots=True)
class Append:
    """What is to be recorded atomically.

    Attributes:
        digests: of the events; computed with the append, while the previous batch is still being recorded.
    """

    entries: Sequence[StoredEntry]
    keys: Sequence[WrappedKey] = ()
    moved: Checkpoint | None = None
    digests: Sequence[bytes] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", _digests(self.entries))


def _digests(entries: Iterable[StoredEntry]) -> list[bytes]:
    digests = []
    known: Context | None = None
    for event, context in entries:
        if context is not known:
            known = context
            metadata = metadata_of(context.correlation_id, context.causation_position, context.actor, context.trace)
        digests.append(digest_before(metadata, _stream_of(event), event.originator_version, event.topic, event.state))
    return digests


def _stream_of(event: StoredEvent) -> UUID:
    """The library allows text as well; all our streams have UUIDs."""
    assert isinstance(event.originator_id, UUID)  # noqa: S101 - narrows the library's type
    return event.originator_id


def parameters_of(batch_id: UUID, appends: Sequence[Append]) -> tuple[Any, ...]:
    """The arguments of `append_batch_v2`: one array per column, one element per row.

    One pass fills all twenty arrays, because this is on the path of every append.
    """
    sizes, streams, versions, topics, states = Bigints(), Uuids(), Bigints(), Texts(), Byteas()
    correlations, causations, actors, traces = Uuids(), Bigints(), Texts(), Texts()
    digests: list[bytes] = []
    base_streams, base_versions = Uuids(), Bigints()
    moving, followers, since, to = Bigints(), Texts(), Bigints(), Bigints()
    key_append, key_registrations, key_wrapped = Bigints(), Uuids(), Byteas()
    for number, append in enumerate(appends, start=1):
        sizes.append(len(append.entries))
        digests += append.digests
        latest: dict[UUID, int] = {}
        for event, context in append.entries:
            stream, version = _stream_of(event), event.originator_version
            if version != latest.get(stream, 0) + 1:
                base_streams.append(stream)
                base_versions.append(version - 1)
            latest[stream] = version
            streams.append(stream)
            versions.append(version)
            topics.append(event.topic)
            states.append(event.state)
            correlations.append(context.correlation_id)
            causations.append(context.causation_position)
            actors.append(context.actor)
            traces.append(context.trace)
        if append.moved is not None:
            moving.append(number)
            followers.append(append.moved.name)
            since.append(append.moved.since)
            to.append(append.moved.to)
        for key in append.keys:
            key_append.append(number)
            key_registrations.append(key.registration_id)
            key_wrapped.append(key.wrapped)
    return (
        batch_id, sizes, streams, versions, topics, states, correlations, causations, actors, traces,
        b"".join(digests), base_streams, base_versions, moving, followers, since, to,
        key_append, key_registrations, key_wrapped,
    )  # fmt: skip
