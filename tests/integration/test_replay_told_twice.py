"""What a verification tells a second time is told as a projector would, and has to be refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.followers.leadership import lead
from infrastructure.postgres.connection import Connection, connect
from infrastructure.replay import verification
from infrastructure.replay.background import BackgroundVerification
from infrastructure.replay.copies import ToldTwice, fill_together
from infrastructure.replay.verification import verify
from projections import PROJECTIONS
from projections.funnel import Funnel
from tests.integration.conftest import Command
from tests.support.facts import MovableClock, eventually
from tests.support.log import keep_root_secret
from tests.support.read_models import contents, follow, follow_all, recorded_history, rows

MASTER_KEY = "ab" * 32
LEFT = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE '%%\\_\\_%%'"


@pytest.fixture
async def live(store: EventStore, connection: Connection) -> None:
    """A log, and every read model at its end."""
    await recorded_history(store, registrations=20)
    await follow_all(store, connection)


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("make", PROJECTIONS, ids=lambda make: make.name)
async def test_the_first_batch_of_each_half_reaches_the_fold_twice_and_the_rows_once(
    dsn: str, store: EventStore, connection: Connection, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    told: list[int] = []

    class Watched(make):  # type: ignore[misc]
        async def apply(self, connection: Any, events: Any) -> None:
            told.extend(event.position for event in events)
            await super().apply(connection, events)

    before = await contents(connection, make().schema)
    monkeypatch.setattr(verification, "fill_together", partial(fill_together, limit=20))

    found = await verify(dsn, Watched, log=store)

    assert found.kept == []
    twice = [position for position, times in Counter(told).items() if times == 2]
    assert len(told) == len(set(told)) + len(twice)
    middle = await store.head() // 2
    for half in ([one for one in twice if one <= middle], [one for one in twice if one > middle]):
        assert 0 < len(half) <= 20
    assert await contents(connection, make().schema) == before


class Remembering(Funnel):
    """Counts in memory what is in its tables, and does not notice when that is undone."""

    def __init__(self, schema: str | None = None) -> None:
        super().__init__(schema)
        self._told: int | None = None

    async def apply(self, connection: Any, events: Any) -> None:
        await super().apply(connection, events)
        if self._told is None:
            found = await rows(connection, "SELECT coalesce(sum(count), 0)::int FROM stages WHERE stage = 'told'")
            [(self._told,)] = found
        self._told += len(events)
        await connection.execute(
            "INSERT INTO stages VALUES ('epoch', 'told', false, %s)"
            " ON CONFLICT (hour, stage, duplicate) DO UPDATE SET count = excluded.count",
            (self._told,),
        )


async def test_a_fold_that_does_not_notice_that_it_was_undone_differs(
    dsn: str, store: EventStore, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await recorded_history(store, registrations=20)
    await follow(store, connection, Remembering())
    monkeypatch.setattr(verification, "fill_together", partial(fill_together, limit=20))

    found = await verify(dsn, Remembering, log=store)

    assert [one.column for one in found.kept] == ["count"]


async def break_guard(connection: Connection) -> None:
    """The database takes a position from whoever has read one."""
    await connection.execute(
        "CREATE OR REPLACE FUNCTION public.move_on_v2(follower text, since bigint, upto bigint, announced boolean)"
        " RETURNS void LANGUAGE sql AS 'UPDATE public.followers SET position = upto WHERE name = follower'"
    )


@pytest.mark.usefixtures("live")
async def test_a_database_that_takes_events_twice_is_found_and_nothing_is_left(
    dsn: str, store: EventStore, connection: Connection
) -> None:
    await break_guard(connection)

    with pytest.raises(ToldTwice, match=r"^funnel would take events twice: .* move_on_v2 .*\?$"):
        await verify(dsn, Funnel, log=store)

    assert await rows(connection, LEFT) == []


@pytest.mark.usefixtures("live")
async def test_the_same_in_the_background_is_an_error_line_and_nothing_is_called_different(
    dsn: str, connection: Connection
) -> None:
    await break_guard(connection)
    work = BackgroundVerification(
        [Funnel],
        dsn=dsn,
        every=timedelta(days=1),
        statement_timeout=timedelta(seconds=10),
        first=timedelta(0),
        share=1.0,
    )

    with capture_logs() as logs:
        task = asyncio.create_task(lead(work, dsn))
        try:
            found = await eventually(lambda: [line for line in logs if line["event"].startswith("verification.")])
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    assert [(line["event"], line["log_level"], line["projection"]) for line in found] == [
        ("verification.told_twice", "error", "funnel")
    ]
    assert "move_on_v2" in found[0]["hint"]
    assert not [line for line in logs if line["event"] in {"follower.failed", "projection.differs"}]


def test_an_operator_is_told_in_one_line(dsn: str, command: Command) -> None:
    async def fill() -> None:
        await keep_root_secret(dsn, MASTER_KEY)
        async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
            store = EventStore(dsn, codec=EventCodec(), clock=MovableClock())
            await store.open()
            await recorded_history(store, registrations=5)
            await follow_all(store, connection)
            await store.close()
            await break_guard(connection)

    asyncio.run(fill())

    done = command("projections", "verify", "funnel", DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)

    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "funnel would take events twice" in done.err
    assert "bug" not in done.err
