"""Asks the saga of today about stored histories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from application.what_if import Difference, End, History, differences
from domain.email_claim import EmailClaim
from domain.policy import Policy
from domain.recorded import Position, Recorded
from domain.registration import BEGINNINGS
from infrastructure.event_store.codec import EventCodec
from infrastructure.postgres.connection import ReconnectingConnection
from infrastructure.replay.histories import Row, Stored, Window, histories

_UNKNOWN: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Scope:
    """What there is to review, all at one moment; see `application.what_if.End`."""

    head: Position
    at: datetime
    handled: Position
    parked: frozenset[UUID]


class Judge:
    """Compares the decisions of one policy with recorded ones."""

    def __init__(self, policy: Policy, scope: Scope) -> None:
        self._policy = policy
        self._scope = scope
        self._codec = EventCodec()

    async def review(self, connection: ReconnectingConnection, window: Window) -> tuple[int, list[Difference]]:
        """How many registrations are met in a window, and the differences about them.

        Raises:
            Unavailable: the database is away.
        """
        found = await histories(connection, window)
        return len(found), [difference for stored in found for difference in self.differences(stored)]

    def differences(self, stored: Stored) -> list[Difference]:
        """Those about one registration."""
        registration_id = stored.registration_id
        try:
            registration = self._decoded(registration_id, stored.registration)
            first = registration[0].event if registration else None
            if not isinstance(first, BEGINNINGS):
                return []
            saga = self._decoded(stored.saga_id, stored.saga)
            history = History(registration, saga, stored.claim, self._fold_of(UUID(first.claim_id), stored.claim))
            handled = 0 if registration_id in self._scope.parked else self._scope.handled
            return differences(history, self._policy, End(handled, self._scope.at))
        except _Unreadable as error:
            return [_unreadable(registration_id, error.row)]

    def _decoded(self, stream_id: UUID, rows: Sequence[Row]) -> list[Recorded]:
        decoded = []
        for row in rows:
            version, topic, state, position, recorded_at, causation, actor = row
            try:
                event = self._codec.decode(stream_id, version, topic, state)
            except Exception:  # noqa: BLE001 - told with the event's position
                raise _Unreadable(row) from None
            decoded.append(Recorded(event, position, topic, recorded_at, _UNKNOWN, causation, actor, None))
        return decoded

    def _fold_of(self, claim_id: UUID, claim: Sequence[Row]) -> Callable[[Position], EmailClaim | None]:
        def fold(upto: Position) -> EmailClaim | None:
            state: Any = None
            for one in self._decoded(claim_id, [row for row in claim if row.position <= upto]):
                state = one.event.mutate(state)
            folded: EmailClaim | None = state
            return folded

        return fold


class _Unreadable(Exception):
    def __init__(self, row: Row) -> None:
        super().__init__(row.topic)
        self.row = row


def _unreadable(registration_id: UUID, row: Row) -> Difference:
    return Difference(
        registration_id,
        row.position,
        row.topic,
        "recorded",
        "cannot be read by this release: the saga would park the registration",
        f"on {row.topic}: then recorded, now unreadable",
    )
