"""The event store as commands see it where spans are made: a span for each append."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from application.ports import Checkpoint, Entry, WrappedKey
from domain.recorded import Position
from infrastructure.event_store.store import EventStore
from infrastructure.telemetry.tracing import Kind, Tracing


class TracedLog:
    """Implements `application.ports.Log`."""

    def __init__(self, store: EventStore, tracing: Tracing) -> None:
        self._store = store
        self._tracing = tracing
        self.load = store.load

    async def append(
        self, entries: Sequence[Entry], *, keys: Sequence[WrappedKey] = (), moved: Checkpoint | None = None
    ) -> Position:
        """See `application.ports.Log.append`. Events of what has failed are marked: what follows from them is kept."""
        context = entries[0][1] if entries else None
        if context is None or context.trace is None:
            return await self._store.append(entries, keys=keys, moved=moved)
        kept = self._tracing.kept(context.trace)
        if kept is not context.trace:
            entries = [(event, replace(own, trace=kept)) for event, own in entries]
        attributes = {
            "db.system.name": "postgresql",
            "db.operation.name": "append",
            "db.collection.name": "events",
        }
        with self._tracing.span("append events", parent=kept, kind=Kind.CLIENT, attributes={**attributes}) as span:
            position = await self._store.append(entries, keys=keys, moved=moved)
            span.attributes["registrar.position"] = position
            return position
