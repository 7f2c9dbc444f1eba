"""What-if over logs that tests have made: in memory, and in a database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from application.ports import Context
from application.what_if import Difference, End, History, differences
from domain.email_claim import EmailClaim
from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import AnyEvent, Position, Recorded
from infrastructure.replay.what_if import WhatIf
from tests.support.facts import T0


def recorded_as(events: Sequence[tuple[AnyEvent, Context]], *, at: datetime = T0) -> list[Recorded]:
    """Events as a log would have them that has these alone."""
    return [
        Recorded(
            event,
            position,
            type(event).TOPIC,  # type: ignore[attr-defined]
            at,
            context.correlation_id,
            context.causation_position,
            context.actor,
            context.trace,
        )
        for position, (event, context) in enumerate(events, start=1)
    ]


def histories(log: Sequence[Recorded]) -> Iterator[History]:
    """Every registration's."""
    streams: dict[UUID, list[Recorded]] = defaultdict(list)
    for one in log:
        streams[one.event.originator_id].append(one)
    for stream_id, stream in streams.items():
        if stream[0].topic == "registration.user_registered":
            claim = streams.get(UUID(vars(stream[0].event)["claim_id"]), [])
            yield History(stream, streams.get(MailSaga.stream_id(stream_id), []), claim, _fold_of(claim))


def _fold_of(claim: Sequence[Recorded]) -> Callable[[Position], EmailClaim | None]:
    def fold(upto: Position) -> EmailClaim | None:
        state: Any = None
        for one in claim:
            if one.position <= upto:
                state = one.event.mutate(state)
        folded: EmailClaim | None = state
        return folded

    return fold


def differences_in(
    log: Sequence[Recorded],
    policy: Policy | None = None,
    *,
    handled: Position | None = None,
    parked: Collection[UUID] = (),
) -> list[Difference]:
    """
    Args:
        handled: by default the saga has seen all of the log.
    """
    seen = len(log) if handled is None else handled
    found: list[Difference] = []
    for history in histories(log):
        is_parked = history.registration[0].event.originator_id in parked
        end = End(0 if is_parked else seen, log[-1].recorded_at)
        found += differences(history, policy or Policy(), end)
    return found


async def differences_at(
    dsn: str, policy: Policy | None = None, *, since: Position = 0, until: Position | None = None
) -> list[Difference]:
    """In a database."""
    what_if = WhatIf(dsn, statement_timeout=timedelta(seconds=10))
    try:
        pages = what_if.review(policy or Policy(), since=since, until=until)
        return [one async for page in pages for one in page.differences]
    finally:
        await what_if.close()
