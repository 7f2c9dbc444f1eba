"""Several leaders of a process on one session: each in its turn, and each with a leadership of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import pytest

from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers import leadership
from infrastructure.followers.leadership import LeaderSession, SharedSession, lead
from infrastructure.followers.projector import Projector, read_scripts
from infrastructure.postgres.connection import connect
from infrastructure.postgres.notifications import Notifications
from infrastructure.postgres.schema import bring_up_to_date
from tests.integration.test_follower import Tally, claimed, end
from tests.support.facts import eventually
from tests.support.log import append, query

PATIENCE = timedelta(seconds=10)

LEADERS = """
    SELECT n, a.application_name, a.pid
    FROM unnest('{one,two}'::text[]) AS n
    JOIN pg_locks AS l ON l.objid = hashtext(n)::oid AND l.classid = hashtext('registrar follower')::oid AND l.granted
    JOIN pg_stat_activity AS a USING (pid)
    WHERE a.datname = current_database() ORDER BY n
"""


class Task:
    """Leads until it is told to fail."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fails = asyncio.Event()

    async def work(self, session: LeaderSession) -> None:
        await self.fails.wait()
        raise ZeroDivisionError


class Touching(Task):
    """Leads until it loses the session."""

    async def work(self, session: LeaderSession) -> None:
        await leadership.while_touching(session, asyncio.Event().wait())


@asynccontextmanager
async def process(dsn: str, name: str, *tasks: leadership.LeaderTask) -> AsyncIterator[None]:
    """A process whose leaders share a session of this name."""
    shared = SharedSession(dsn, name=name, statement_timeout=PATIENCE)
    works = [asyncio.create_task(lead(one, dsn, shared=shared)) for one in tasks]
    yield
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)


async def until_led(dsn: str, **by: str) -> dict[str, int]:
    """Wait until the tasks are led by the processes named; answers the sessions."""

    async def led() -> dict[str, int] | None:
        found = await query(dsn, LEADERS)
        return {n: pid for n, _, pid in found} if {n: name for n, name, _ in found} == expected else None

    expected = {task: f"registrar {process}" for task, process in by.items()}
    found: dict[str, int] = await eventually(led)
    return found


async def test_who_fails_lets_another_process_lead_while_who_shares_its_session_leads_on(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "STAND_BY", timedelta(milliseconds=50))
    one, two = Task("one"), Task("two")
    async with process(dsn, "first", one, two):
        before = await until_led(dsn, one="first", two="first")
        assert before["one"] == before["two"]
        async with process(dsn, "second", Task("one"), Task("two")):
            monkeypatch.setattr(leadership, "STAND_BY", timedelta(seconds=20))  # for who begins again
            one.fails.set()

            after = await until_led(dsn, one="second", two="first")

            assert after["two"] == before["two"]


@pytest.mark.fault("B21")
async def test_who_loses_a_shared_session_leads_in_nothing_any_more(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leadership, "STAND_BY", timedelta(milliseconds=50))
    monkeypatch.setattr(leadership, "TOUCH", timedelta(milliseconds=50))

    async with process(dsn, "first", Touching("one"), Touching("two")):
        before = await until_led(dsn, one="first", two="first")
        await end(dsn, "registrar first")

        async def led_anew() -> bool:
            found = {n: pid for n, _, pid in await query(dsn, LEADERS)}
            return len(found) == 2 and not {*found.values()} & {*before.values()} and len({*found.values()}) == 1

        await eventually(led_anew)


async def test_a_session_in_which_one_fails_again_is_given_up_by_all(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leadership, "STAND_BY", timedelta(milliseconds=50))
    monkeypatch.setattr(leadership, "TOUCH", timedelta(milliseconds=50))
    one = Task("one")
    async with process(dsn, "first", one, Touching("two")):
        before = await until_led(dsn, one="first", two="first")
        one.fails.set()

        async def led_anew() -> bool:
            return any(n == "two" and pid != before["two"] for n, _, pid in await query(dsn, LEADERS))

        await eventually(led_anew)


async def test_a_statement_is_never_part_of_anothers_transaction(dsn: str) -> None:
    await query(dsn, "CREATE TABLE written (by text)")
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def fail(session: LeaderSession) -> None:
        async with session.turn() as connection, connection.transaction():
            await connection.execute("INSERT INTO written VALUES ('who fails')")
            begun.set()
            await goes_on.wait()
            raise ZeroDivisionError

    async with await connect(dsn, name="shared", statement_timeout=PATIENCE) as connection:
        session = LeaderSession(connection)
        failing = asyncio.create_task(fail(session))
        await begun.wait()
        writing = asyncio.create_task(session.execute("INSERT INTO written VALUES ('another')"))
        goes_on.set()
        await asyncio.wait({failing, writing})

        assert isinstance(failing.exception(), ZeroDivisionError)
    assert await query(dsn, "SELECT by FROM written") == [("another",)]


async def test_a_session_that_was_left_in_the_middle_is_used_by_nobody_else(dsn: str) -> None:
    await query(dsn, "CREATE TABLE written (by text)")
    begun = asyncio.Event()

    async def be_interrupted(session: LeaderSession) -> None:
        async with session.turn() as connection:
            await connection.execute("BEGIN")
            begun.set()
            await asyncio.Event().wait()

    async with await connect(dsn, name="shared", statement_timeout=PATIENCE) as connection:
        session = LeaderSession(connection)
        interrupted = asyncio.create_task(be_interrupted(session))
        await begun.wait()
        interrupted.cancel()
        await asyncio.wait({interrupted})

        with pytest.raises(psycopg.OperationalError):
            await session.execute("INSERT INTO written VALUES ('another')")


async def test_read_models_that_share_a_session_write_to_their_own_tables_each(dsn: str, store: EventStore) -> None:
    class Other(Tally):
        name = "other"
        schema = "read_other"

    async with await connect(dsn, name="tables", statement_timeout=PATIENCE) as connection:
        for tally in (Tally(), Other()):
            await bring_up_to_date(connection, read_scripts(tally))
    notifications, tail = Notifications(dsn), LogTail(store)
    projectors = [Projector(tally, store=tail, notifications=notifications) for tally in (Tally("a"), Other("b"))]
    listening = asyncio.create_task(notifications.run())
    async with process(dsn, "shared", *projectors):
        for position in range(1, 8):  # more than it takes until statements are prepared
            await append(store, claimed())

            async def are_there(position: int = position) -> bool:
                found = await query(dsn, "SELECT position FROM followers WHERE name = ANY ('{tally,other}')")
                return found == [(position,)] * 2

            await eventually(are_there)
    listening.cancel()
    for schema, who in (("read_tally", "a"), ("read_other", "b")):
        found = await query(dsn, f"SELECT position, who FROM {schema}.seen ORDER BY number")
        assert found == [(position, who) for position in range(1, 8)]
