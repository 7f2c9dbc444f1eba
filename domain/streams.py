"""How events come into being: equal to those that the library makes, in a third of its time.

The library sets a frozen event's fields one by one, and looks up for every event which of them a method names. Both are
known of a class once and for all.
"""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from functools import cache
from inspect import signature
from typing import Any, Final, TypeVar
from uuid import UUID

from eventsourcing.domain import Aggregate, AggregateCreated, AggregateEvent

A = TypeVar("A", bound=Aggregate)
E = TypeVar("E", bound=AggregateEvent)


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
    number = kind.INITIAL_VERSION if version is None else version
    given = {
        "originator_topic": name,
        "originator_id": stream_id,
        "originator_version": number,
        "timestamp": now,
        **fields,
    }
    first = made(created, given)
    aggregate = begun_by(kind, first)
    aggregate.pending_events.append(first)
    return aggregate


def begun_by(kind: type[A], first: AggregateCreated) -> A:
    """What the library's `mutate` does with an aggregate's first event."""
    aggregate = _blank(kind)
    aggregate.__base_init__(first.originator_id, first.originator_version, first.timestamp)
    wanted, given = _wanted_of(kind, type(first)), first.__dict__
    aggregate.__init__(**dict(zip(wanted, map(given.__getitem__, wanted), strict=True)))  # type: ignore[misc]
    first.apply(aggregate)
    return aggregate


def record(aggregate: Aggregate, kind: type[AggregateEvent], /, *, now: datetime, **fields: Any) -> None:
    """What the library's `trigger_event` does: the stream's next event, which changes the aggregate and is pending."""
    identity = {"originator_id": aggregate.id, "originator_version": aggregate.version + 1, "timestamp": now}
    event = made(kind, identity | fields)
    event.mutate(aggregate)
    aggregate.pending_events.append(event)


def made(kind: type[E], given: Mapping[str, Any]) -> E:
    """An event with these fields.

    Raises:
        TypeError: it has others.
    """
    names = _fields_of(kind)
    try:
        fields = dict(zip(names, map(given.__getitem__, names), strict=True))  # in the order in which they are stored
    except KeyError:
        fields = {}
    if len(fields) != len(given):
        raise TypeError(f"{kind.__qualname__} has the fields {', '.join(names)}")
    event = _blank(kind)
    _set(event, "__dict__", fields)
    return event


@cache
def _fields_of(kind: type[AggregateEvent]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@cache
def _wanted_of(kind: type[Aggregate], created: type[AggregateEvent]) -> tuple[str, ...]:
    """The parameters of the aggregate's constructor that are fields of the event."""
    return tuple(name for name in signature(kind.__init__).parameters if name in _fields_of(created))


_blank: Final = object.__new__
_set: Final = object.__setattr__
"""Events are frozen."""
