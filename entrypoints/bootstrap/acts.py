"""Operators' acts whose effect is not in the log: recorded there all the same, by commands that need no secret."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from uuid import UUID, uuid4

from application.ports import Conflict, Context, entries_of
from domain.operator_act import OperatorAct
from domain.recorded import Actor
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock


async def record_act(
    dsn: str, act: str, reason: str | None, *, statement_timeout: timedelta, act_id: UUID | None = None
) -> None:
    """Record an act, a name of `application.operator_acts`; what cannot be recorded is not done.

    Not one of `Handlers`' commands, which need the keys of the service.

    Args:
        act_id: tells the act from others, where it may be tried again: it is recorded once.

    Raises:
        Unavailable, psycopg.Error: it is not recorded, or whether it is may be unknown.
    """
    clock = DatabaseClock()
    store = EventStore(dsn, codec=EventCodec(), clock=clock, statement_timeout=statement_timeout)
    await store.open()
    try:
        done = OperatorAct.outside(act_id=act_id or uuid4(), act=act, reason=reason, now=clock())
        entries = entries_of(done.collect_events(), Context(Actor.OPERATOR, uuid4(), reason=reason))
        with suppress(Conflict):  # it is recorded
            await store.append(entries)
    finally:
        await store.close()
