"""Operators' acts whose effect is not in the log: recorded there all the same, by commands that need no secret."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4, uuid5

from application.ports import Conflict, Context, entries_of
from domain.operator_act import OperatorAct
from domain.recorded import Actor
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock

_ACTS: Final = UUID("5b0c7f6e-9a43-5d0e-8a0f-6c6f67206b65")
"""Namespace of acts that are recorded once."""


async def record_act(
    dsn: str, act: str, reason: str | None, *, statement_timeout: timedelta, once_for: str | None = None
) -> None:
    """Record an act, a name of `application.operator_acts`; what cannot be recorded is not done.

    Not one of `Handlers`' commands, which need the keys of the service.

    Args:
        once_for: what it is done to, if it is recorded once for that, however often it is tried.

    Raises:
        Unavailable, psycopg.Error: it is not recorded, or whether it is may be unknown.
    """
    clock = DatabaseClock()
    store = EventStore(dsn, codec=EventCodec(), clock=clock, statement_timeout=statement_timeout)
    await store.open()
    try:
        act_id = uuid4() if once_for is None else uuid5(_ACTS, f"{act} {once_for}")
        done = OperatorAct.outside(act_id=act_id, act=act, reason=reason, now=clock())
        entries = entries_of(done.collect_events(), Context(Actor.OPERATOR, uuid4(), reason=reason))
        with suppress(Conflict):  # it is recorded
            await store.append(entries)
    finally:
        await store.close()
