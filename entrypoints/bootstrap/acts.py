"""Operators' acts whose effect is not in the log: recorded there all the same, by commands that need no secret."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from application.ports import Context, entries_of
from domain.operator_act import OperatorAct
from domain.recorded import Actor
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock


async def record_act(dsn: str, act: str, reason: str | None, *, statement_timeout: timedelta) -> None:
    """Record an act, a name of `application.operator_acts`; what cannot be recorded is not done.

    Not one of `Handlers`' commands, which need the keys of the service.

    Raises:
        Unavailable, psycopg.Error: it is not recorded, or whether it is may be unknown.
    """
    clock = DatabaseClock()
    store = EventStore(dsn, codec=EventCodec(), clock=clock, statement_timeout=statement_timeout)
    await store.open()
    try:
        done = OperatorAct.outside(act_id=uuid4(), act=act, reason=reason, now=clock())
        await store.append(entries_of(done.collect_events(), Context(Actor.OPERATOR, uuid4(), reason=reason)))
    finally:
        await store.close()
