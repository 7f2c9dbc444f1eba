"""A read model whose fold has changed gets a new version: built beside the one that goes on to serve the release
before, followed on its own, and the former one dropped when nobody reads it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from application.ports import entries_of
from domain.recorded import Told
from infrastructure.event_store.store import EventStore
from infrastructure.event_store.tail import LogTail
from infrastructure.followers.leadership import lead
from infrastructure.followers.projector import Projector, read_scripts
from infrastructure.followers.versions import Behind, Version, behind_others, others_of, version_of
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.notifications import Notifications
from infrastructure.postgres.schema import bring_up_to_date
from infrastructure.replay.comparison import KEY, TABLE, Differences, at_one_moment, compared
from infrastructure.replay.rebuild import RebuildAct, Rebuilds
from infrastructure.replay.superseded import Dropped, drop_superseded
from infrastructure.replay.swap import CannotReplay
from projections import PROJECTIONS
from projections.accounts import Accounts
from projections.funnel import Funnel
from tests.support.facts import CLIENT, REGISTRATION, email_verified, eventually, otp_issued, registered, stream
from tests.support.read_models import contents, follow_all, recorded_history, rows


class CountedFunnel(Funnel):
    """The second version: everything counts twice."""

    name = "funnel_2"

    async def apply(self, connection: Any, events: Sequence[Told]) -> None:
        await super().apply(connection, events)
        await connection.execute("UPDATE stages SET count = count + 1 WHERE stage = 'registered'")


class SecondAccounts(Accounts):
    """The second version, which says the same."""

    name = "accounts_2"


@pytest.fixture
async def live(store: EventStore, connection: Connection) -> None:
    """A log, the release before at its end, and what a first start of the next release makes."""
    await recorded_history(store, registrations=40)
    await follow_all(store, connection)
    for make in (SecondAccounts, CountedFunnel):
        await bring_up_to_date(connection, read_scripts(make()))


@pytest.fixture
def acts() -> list[RebuildAct]:
    return []


@pytest.fixture
def rebuilds(dsn: str, store: EventStore, acts: list[RebuildAct]) -> Rebuilds:
    async def record(act: RebuildAct) -> None:
        acts.append(act)

    return Rebuilds(dsn, log=store, record=record)


@asynccontextmanager
async def followed(dsn: str, store: EventStore, *makes: Any) -> AsyncIterator[None]:
    """Processes lead the projectors of these."""
    notifications = Notifications(dsn)
    projectors = [Projector(make(), store=LogTail(store), notifications=notifications) for make in makes]
    tasks = [asyncio.create_task(work) for work in (notifications.run(), *(lead(one, dsn) for one in projectors))]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def at(connection: Connection, name: str) -> int:
    found = await rows(connection, "SELECT position FROM followers WHERE name = %s", name)
    return int(found[0][0]) if found else 0


# --- Names ------------------------------------------------------------------------------------------


def test_a_name_says_which_version_of_which_read_model_it_is() -> None:
    assert [version_of(name) for name in ("mail", "mail_2", "mail_13", "mail-saga")] == [
        Version("mail", 1), Version("mail", 2), Version("mail", 13), Version("mail-saga", 1)
    ]  # fmt: skip
    assert [version_of(name) for name in ("mail__next", "mail_2__old", "mail_2__at_7", "")] == [None] * 4
    assert others_of(["mail_2", "audit"], ["mail", "mail_2", "mail_3", "mail_2__old", "mail-saga", "audit"]) == [
        "mail", "mail_3"
    ]  # fmt: skip


def test_every_read_model_has_a_name_that_says_its_version_and_there_is_one_of_each() -> None:
    versions = [version_of(projection.name) for projection in PROJECTIONS]

    assert None not in versions
    assert len({version.read_model for version in versions if version is not None}) == len(PROJECTIONS)
    assert [projection().schema for projection in PROJECTIONS] == [f"read_{each.name}" for each in PROJECTIONS]


# --- Built ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("live")
async def test_a_version_that_has_not_served_yet_is_built_beside_the_one_that_does(
    connection: Connection, rebuilds: Rebuilds, acts: list[RebuildAct], dsn: str, store: EventStore
) -> None:
    before, head = await contents(connection, "read_funnel"), await store.head()
    assert await behind_others(connection, ["funnel_2", "mail"]) == [Behind("funnel_2", 0, "funnel", head)]

    built = await rebuilds.rebuild(CountedFunnel)

    assert (built.read_model, built.swapped, built.beside) == ("funnel_2", True, "funnel")
    assert {(one.table, one.column) for one in built.differences.kept} == {("stages", "count")}
    assert built.position == head == await at(connection, "funnel_2")
    assert await contents(connection, "read_funnel") == before
    assert await at(connection, "funnel") == head
    assert await behind_others(connection, ["funnel_2"]) == []
    assert [(act.read_model, act.act, act.decision) for act in acts] == [
        ("funnel_2", "begun", ""), ("funnel_2", "swapped", "built")
    ]  # fmt: skip
    assert await rows(connection, "SELECT nspname FROM pg_namespace WHERE nspname LIKE '%%\\_\\_%%'") == []
    with pytest.raises(CannotReplay, match="no earlier copy"):
        await rebuilds.roll_back(CountedFunnel)

    again = await rebuilds.rebuild(CountedFunnel)  # from now on compared with itself

    assert (again.swapped, again.beside, again.differences.count) == (True, None, 0)


@pytest.mark.usefixtures("live")
async def test_a_new_version_that_says_the_same_is_found_equal_and_goes_on_from_there(
    connection: Connection, rebuilds: Rebuilds, dsn: str, store: EventStore
) -> None:
    async with followed(dsn, store, Accounts):
        built = await rebuilds.rebuild(SecondAccounts)
        assert (built.beside, built.differences.count) == ("accounts", 0)
        assert built.differences.rows > 0

        async with followed(dsn, store, SecondAccounts):
            last = await store.append(entries_of(stream(REGISTRATION, registered(), email_verified()), CLIENT))

            async def both_have_seen_it() -> bool:
                return min(await at(connection, "accounts"), await at(connection, "accounts_2")) >= last

            await eventually(both_have_seen_it)

    assert await contents(connection, "read_accounts_2") == await contents(connection, "read_accounts")
    assert await rows(connection, "SELECT FROM parked_events") == []


@pytest.mark.usefixtures("live")
async def test_a_version_that_nobody_built_is_built_by_its_projector(
    connection: Connection, dsn: str, store: EventStore
) -> None:
    async with followed(dsn, store, Accounts, SecondAccounts):

        async def built() -> bool:
            return not await behind_others(connection, ["accounts_2"])

        await eventually(built)

    assert await contents(connection, "read_accounts_2") == await contents(connection, "read_accounts")


@pytest.mark.usefixtures("live")
async def test_a_projector_that_builds_meanwhile_goes_on_behind_the_copy_and_parks_nothing(
    connection: Connection, rebuilds: Rebuilds, dsn: str, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy overtakes it: what it tells next is in the tables already."""
    begun, overtaken = asyncio.Event(), asyncio.Event()

    class SlowAccounts(SecondAccounts):
        async def apply(self, connection: Any, events: Sequence[Told]) -> None:
            if self.schema == "read_accounts_2" and not overtaken.is_set():
                begun.set()
                await overtaken.wait()
            await super().apply(connection, events)

    monkeypatch.setattr("infrastructure.followers.projector.BATCH_EVENTS", 30)
    await bring_up_to_date(connection, read_scripts(SlowAccounts()))

    async with followed(dsn, store, SlowAccounts):
        await begun.wait()  # it has read the first events, and is about to write them
        assert (await rebuilds.rebuild(SlowAccounts)).beside == "accounts"
        overtaken.set()
        last = await store.append(entries_of(stream(REGISTRATION, registered(), otp_issued()), CLIENT))

        async def seen() -> bool:
            return await at(connection, "accounts_2") >= last

        await eventually(seen)

    async with followed(dsn, store, Accounts):

        async def same() -> bool:
            return await contents(connection, "read_accounts_2") == await contents(connection, "read_accounts")

        await eventually(same)
    assert await rows(connection, "SELECT FROM parked_events") == []


# --- Compared where the shapes agree ------------------------------------------------------------------


async def shape_of(connection: Connection, dsn: str, one: str, other: str) -> Differences:
    for schema, tables in (("read_one", one), ("read_other", other)):
        await connection.execute(
            f"CREATE SCHEMA {schema}; SET search_path = {schema}; {tables}; RESET search_path".encode()
        )
    async with (
        await connect(dsn, name="look", statement_timeout=timedelta(seconds=10)) as looker,
        at_one_moment(looker, "one", "other") as position,
    ):
        assert position is not None
        return await compared(looker, "one", "read_one", "read_other", position)


async def test_columns_of_other_types_and_columns_that_one_side_lacks_are_named_and_the_rest_is_compared(
    connection: Connection, dsn: str
) -> None:
    found = await shape_of(
        connection,
        dsn,
        "CREATE TABLE t (id int PRIMARY KEY, a text, b int, gone int); INSERT INTO t VALUES (1, 'x', 2, 3)",
        "CREATE TABLE t (id int PRIMARY KEY, a text, b bigint, new int); INSERT INTO t VALUES (1, 'y', 2, 3)",
    )

    assert [(one.row, one.column, one.live, one.rebuilt) for one in found.kept] == [
        (TABLE, "b", "integer", "bigint"),
        (TABLE, "gone", "there", "missing"),
        (TABLE, "new", "missing", "there"),
        ("id=1", "a", "x", "y"),
    ]


async def test_tables_with_other_keys_are_not_compared_and_that_is_said(connection: Connection, dsn: str) -> None:
    found = await shape_of(
        connection,
        dsn,
        "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL)",
        "CREATE TABLE t (id int, a int, PRIMARY KEY (id, a))",
    )

    assert [(one.row, one.column, one.live, one.rebuilt) for one in found.kept] == [(TABLE, KEY, "id", "id, a")]


# --- Dropped -------------------------------------------------------------------------------------------


@pytest.fixture
def dropped() -> list[Dropped]:
    return []


@pytest.fixture
def drop(dsn: str, dropped: list[Dropped]) -> Any:
    async def record(one: Dropped) -> None:
        dropped.append(one)

    async def drop(make: Any) -> list[str]:
        return [one.name for one in await drop_superseded(dsn, make, record=record)]

    return drop


@pytest.mark.usefixtures("live")
async def test_a_superseded_version_is_dropped_with_everything_of_it_once_nobody_follows_it(
    connection: Connection, rebuilds: Rebuilds, dsn: str, store: EventStore, drop: Any, dropped: list[Dropped]
) -> None:
    with pytest.raises(CannotReplay, match="accounts is ahead of accounts_2, which is at 0"):
        await drop(SecondAccounts)
    await rebuilds.rebuild(Accounts)
    await rebuilds.rebuild(SecondAccounts)
    async with followed(dsn, store, Accounts):

        async def led() -> bool:
            held = await rows(
                connection, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = hashtext('accounts')::oid"
            )
            return bool(held)

        await eventually(led)
        with pytest.raises(CannotReplay, match="A process of an earlier release follows accounts"):
            await drop(SecondAccounts)
    kept = await contents(connection, "read_accounts_2")
    await connection.execute("CREATE VIEW public.ours AS SELECT FROM read_accounts.accounts")
    with pytest.raises(CannotReplay, match=r"tables that are to go: view ours\."):
        await drop(SecondAccounts)
    await connection.execute("DROP VIEW public.ours")

    assert await drop(SecondAccounts) == ["accounts"]

    assert dropped == [Dropped("accounts", await store.head())]
    assert await rows(
        connection, "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, 'read_accounts')"
    ) == [("read_accounts_2",)]
    assert await rows(connection, "SELECT name FROM followers WHERE starts_with(name, 'accounts')") == [("accounts_2",)]
    assert await contents(connection, "read_accounts_2") == kept
    assert await drop(SecondAccounts) == []
    assert await drop(Accounts) == []  # a later version is not superseded


@pytest.mark.usefixtures("live")
async def test_the_release_before_can_start_again_and_builds_what_was_dropped(
    connection: Connection, rebuilds: Rebuilds, dsn: str, store: EventStore, drop: Any
) -> None:
    await rebuilds.rebuild(SecondAccounts)
    before = await contents(connection, "read_accounts")
    await drop(SecondAccounts)

    await bring_up_to_date(connection, read_scripts(Accounts()))
    assert [one.name for one in await behind_others(connection, ["accounts"])] == ["accounts"]
    async with followed(dsn, store, Accounts):

        async def built() -> bool:
            return not await behind_others(connection, ["accounts"])

        await eventually(built)

    assert await contents(connection, "read_accounts") == before
