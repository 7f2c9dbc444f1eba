"""A log for those who judge logs: written event by event, as it would be recorded."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from domain.recorded import Recorded
from tests.support.facts import T0, Fact, stream

REQUEST: Final = UUID("c0000000-0000-4000-8000-00000000000a")
"""Of which everything came that names no other request."""


class History:
    """A log that is written event by event, a second apart."""

    def __init__(self) -> None:
        self.log: list[Recorded] = []
        self._versions: dict[UUID, int] = {}

    def add(
        self,
        stream_id: UUID,
        *facts: Fact,
        actor: str = "client",
        because_of: UUID = REQUEST,
        decided: timedelta = timedelta(0),
        caused_by: int | None = None,
    ) -> History:
        for fact in facts:
            position = len(self.log) + 1
            recorded_at = at(position)
            after = self._versions.get(stream_id, 0)
            [event] = stream(stream_id, Fact(fact.event, fact.fields, recorded_at - decided), after=after)
            self._versions[stream_id] = after + 1
            topic: str = fact.event.TOPIC  # type: ignore[attr-defined]
            self.log.append(Recorded(event, position, topic, recorded_at, because_of, caused_by, actor, None))
        return self


def at(second: float) -> datetime:
    return T0 + timedelta(seconds=second)
