"""How a stream starts: with a name for its aggregate that does not depend on the class's path."""

from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from eventsourcing.domain import Aggregate, AggregateCreated

A = TypeVar("A", bound=Aggregate)


def begin(
    kind: type[A],
    created: type[AggregateCreated],
    /,
    *,
    name: str,
    stream_id: UUID,
    now: datetime,
    version: int | None = None,
    **fields: Any,
) -> A:
    """Create an aggregate from its first event, or from a later one that has its whole state, which is then pending.

    The library's own `_create` would write the class's path into the event (`originator_topic`); `name` is registered
    for the class instead, so the class can move.
    """
    first = created(
        originator_topic=name,
        originator_id=stream_id,
        originator_version=kind.INITIAL_VERSION if version is None else version,
        timestamp=now,
        **fields,
    )
    aggregate: A | None = first.mutate(None)
    assert aggregate is not None  # noqa: S101 - narrows the library's Optional
    aggregate.pending_events.append(first)
    return aggregate
