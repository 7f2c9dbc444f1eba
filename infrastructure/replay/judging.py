"""Asks the saga of today about stored histories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from application.what_if import Difference, End, History, differences
from domain.email_claim import EmailClaim
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Position, Recorded
from domain.registration import Registration
from infrastructure.event_store.codec import EventCodec

_UNKNOWN: Final = UUID(int=0)


class Row(NamedTuple):
    """An event of which only what is beside it may be needed; see `application.what_if.history.Mark`."""

    stream_id: UUID
    version: int
    topic: str
    state: bytes
    position: Position
    recorded_at: datetime
    causation_position: Position | None
    actor: str


Streams = Mapping[UUID, Sequence[Row]]
"""The streams of registrations, of their sagas, and of the claims to their addresses; each in its order."""


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

    def differences(self, registration_id: UUID, streams: Streams) -> list[Difference]:
        """Those about one registration."""
        try:
            registration = self._decoded(streams.get(registration_id, ()))
            first = registration[0].event if registration else None
            if not isinstance(first, Registration.UserRegistered):
                return []
            saga = self._decoded(streams.get(MailSaga.stream_id(registration_id), ()))
            claim = streams.get(UUID(first.claim_id), ())
            handled = 0 if registration_id in self._scope.parked else self._scope.handled
            history = History(registration, saga, claim, self._fold_of(claim))
            return differences(history, self._policy, End(handled, self._scope.at))
        except _Unreadable as error:
            return [_unreadable(registration_id, error.row)]

    def _decoded(self, rows: Sequence[Row]) -> list[Recorded]:
        decoded = []
        for row in rows:
            stream_id, version, topic, state, position, recorded_at, causation, actor = row
            try:
                event = self._codec.decode(stream_id, version, topic, state)
            except Exception:  # noqa: BLE001 - told with the event's position
                raise _Unreadable(row) from None
            decoded.append(Recorded(event, position, topic, recorded_at, _UNKNOWN, causation, actor, None))
        return decoded

    def _fold_of(self, claim: Sequence[Row]) -> Callable[[Position], EmailClaim | None]:
        def fold(upto: Position) -> EmailClaim | None:
            state: Any = None
            for one in self._decoded([row for row in claim if row.position <= upto]):
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
