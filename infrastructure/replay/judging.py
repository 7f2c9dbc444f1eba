"""The saga of today asked about stored histories: in this process, or in helpers beside it, which only calculate."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from multiprocessing import get_context
from typing import Any, Final, NamedTuple
from uuid import UUID

from application.what_if import Difference, End, History, differences
from domain.email_claim import EmailClaim
from domain.policy import Policy
from domain.recorded import Position, Recorded
from domain.registration import Registration
from infrastructure.event_store.codec import EventCodec

SLICE: Final = 50
"""Registrations reviewed in one go in this process: in between, the event loop sees to the next reading, and to
Ctrl-C."""

_UNKNOWN: Final = UUID(int=0)


class Row(NamedTuple):
    """An event of which only what is beside it may be needed; see `application.what_if.history.Mark`."""

    version: int
    topic: str
    state: bytes
    position: Position
    recorded_at: datetime
    causation_position: Position | None
    actor: str


@dataclass(frozen=True, slots=True)
class Stored:
    """The streams of a registration, of its saga, and of the claim to its address."""

    registration_id: UUID
    registration: Sequence[Row]
    saga_id: UUID
    saga: Sequence[Row]
    claim_id: UUID
    claim: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Scope:
    """What there is to review, all at one moment; see `application.what_if.End`."""

    head: Position
    at: datetime
    handled: Position
    parked: frozenset[UUID]


class Judges:
    """Reviews some hundred histories at a time."""

    def __init__(self, policy: Policy, scope: Scope, *, helpers: int) -> None:
        """
        Args:
            helpers: processes to do it in; 0: in this one.
        """
        self._policy = policy
        self._scope = scope
        self._pool = (
            ProcessPoolExecutor(helpers, mp_context=get_context("spawn"), initializer=_ignore_ctrl_c)
            if helpers
            else None
        )

    async def review(self, page: Sequence[Stored]) -> list[Difference]:
        if self._pool is not None:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, review, page, self._policy, self._scope)
        found: list[Difference] = []
        for start in range(0, len(page), SLICE):
            found += review(page[start : start + SLICE], self._policy, self._scope)
            await asyncio.sleep(0)
        return found

    async def close(self) -> None:
        if self._pool is not None:
            await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)


def _ignore_ctrl_c() -> None:
    """It reaches all processes of a terminal: the one that reads ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def review(page: Sequence[Stored], policy: Policy, scope: Scope) -> list[Difference]:
    """The differences in these histories."""
    return [one for stored in page for one in _differences(stored, policy, scope)]


def _differences(stored: Stored, policy: Policy, scope: Scope) -> list[Difference]:
    registration_id = stored.registration_id
    try:
        registration = [_decoded(registration_id, row) for row in stored.registration]
        saga = [_decoded(stored.saga_id, row) for row in stored.saga]
        if not isinstance(registration[0].event, Registration.UserRegistered):
            return []
        history = History(registration, saga, stored.claim, _fold_of(stored))
        handled = 0 if registration_id in scope.parked else scope.handled
        return differences(history, policy, End(handled, scope.at))
    except _Unreadable as error:
        return [_unreadable(registration_id, error.row)]


class _Unreadable(Exception):
    def __init__(self, row: Row) -> None:
        super().__init__(row.topic)
        self.row = row


def _decoded(stream_id: UUID, row: Row) -> Recorded:
    version, topic, state, position, recorded_at, causation, actor = row
    try:
        event = _codec().decode(stream_id, version, topic, state)
    except Exception:  # noqa: BLE001 - told with the event's position
        raise _Unreadable(row) from None
    return Recorded(event, position, topic, recorded_at, _UNKNOWN, causation, actor, None)


@cache
def _codec() -> EventCodec:
    return EventCodec()


def _fold_of(stored: Stored) -> Callable[[Position], EmailClaim | None]:
    def fold(upto: Position) -> EmailClaim | None:
        state: Any = None
        for row in stored.claim:
            if row.position > upto:
                break
            state = _decoded(stored.claim_id, row).event.mutate(state)
        folded: EmailClaim | None = state
        return folded

    return fold


def _unreadable(registration_id: UUID, row: Row) -> Difference:
    return Difference(
        registration_id,
        row.position,
        row.topic,
        "recorded",
        "cannot be read by this release: the saga would park the registration",
        f"on {row.topic}: then recorded, now unreadable",
    )
