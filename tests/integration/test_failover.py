"""When the primary is gone and its standby takes over: two real servers, one streaming from the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap import database as bootstrap
from entrypoints.bootstrap.database import SCHEMA
from entrypoints.cli.checks.database import look_at_database
from entrypoints.cli.checks.finding import Finding
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.postgres import schema
from infrastructure.postgres.connection import closing, connect
from infrastructure.postgres.schema import Script, WrongSchema, bring_up_to_date
from tests.support.facts import eventually
from tests.support.http import open_api, settings
from tests.support.log import query
from tests.support.postgres import SURVIVES_KILLS, database_of_either, server, standby_of, stopped
from tests.support.releases import make_as_former


@dataclass(frozen=True)
class Pair:
    primary: EmbeddedPostgres
    standby: EmbeddedPostgres

    @property
    def dsn(self) -> str:
        return database_of_either(self.primary, self.standby, "registrar")

    def fall_silent(self) -> AbstractContextManager[None]:
        return stopped(self.primary)

    def end(self) -> AbstractContextManager[None]:
        self.primary.stop()
        return nullcontext()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with server(SURVIVES_KILLS) as primary, standby_of(primary, SURVIVES_KILLS) as standby:
        yield Pair(primary, standby)


@pytest.mark.parametrize("how", [Pair.fall_silent, Pair.end])
async def test_after_a_failover_whoever_is_ready_takes_registrations(
    pair: Pair, how: Callable[[Pair], AbstractContextManager[None]]
) -> None:
    async with open_api(pair.dsn, follows=False) as api:
        assert (await api.register("before@example.com")).status_code == 202
        await eventually(lambda: caught_up(pair))
        with how(pair):

            async def not_ready() -> bool:
                return (await api.http.get("/health/ready")).status_code == 503

            await eventually(not_ready)
            await query(pair.standby.dsn, "SELECT pg_promote()")

            async def ready() -> bool:
                return (await api.http.get("/health/ready")).status_code == 200

            await eventually(ready, within=60)
            answer = await api.register("after@example.com")

        assert answer.status_code == 202, answer.text
        assert await query(pair.standby.dsn, "SELECT count(DISTINCT originator_id) > 3 FROM events") == [(True,)]


async def caught_up(pair: Pair) -> bool:
    try:
        ends = [await query(one.dsn, "SELECT position FROM head") for one in (pair.primary, pair.standby)]
    except psycopg.errors.UndefinedTable:
        return False
    return ends[0] == ends[1]


async def test_a_start_on_a_standby_is_refused_in_one_line(pair: Pair) -> None:
    async with open_api(pair.primary.dsn, follows=False):
        await eventually(lambda: caught_up(pair))
    with pytest.raises(CannotStart, match=r"it is a standby, .* at the primary\.$"):
        async with open_api(pair.standby.dsn, follows=False):
            pass


async def test_the_doctor_says_in_time_that_no_commit_is_confirmed(tmp_path: Path) -> None:
    with server(SURVIVES_KILLS) as postgres:
        async with open_api(postgres.dsn, follows=False):
            pass
        assert (await appends(postgres.dsn, tmp_path)).state == "ok"
        await without_its_standby(postgres.dsn)

        async def found() -> bool:
            return (await appends(postgres.dsn, tmp_path)).state == "fail"

        await eventually(found, within=60)
        said = await appends(postgres.dsn, tmp_path)
    assert "no commit is confirmed" in said.says
    assert "synchronous_standby_names" in (said.advice or "")


async def test_an_upgrade_while_the_synchronous_standby_is_away_ends_and_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schema, "CONFIRM_WITHIN", timedelta(seconds=1))
    with server(SURVIVES_KILLS) as postgres:
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            make_as_former(connection)
        await upgrade(postgres.dsn, SCHEMA[:1])  # what records the scripts has its column
        await without_its_standby(postgres.dsn)
        with pytest.raises(WrongSchema, match=r"synchronous_standby_names"):
            await upgrade(postgres.dsn, SCHEMA)


async def test_a_first_start_while_the_synchronous_standby_is_away_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "CONFIRM_WITHIN", timedelta(seconds=1))
    with server(SURVIVES_KILLS) as postgres:
        await upgrade(postgres.dsn, SCHEMA)
        await without_its_standby(postgres.dsn)
        with pytest.raises(CannotStart):
            async with open_api(postgres.dsn, follows=False):
                pass


async def upgrade(dsn: str, scripts: Sequence[Script]) -> None:
    connection = await connect(dsn, name="setup", statement_timeout=timedelta(seconds=10))
    async with closing(connection):
        await bring_up_to_date(connection, scripts)


async def without_its_standby(dsn: str) -> None:
    """From now on every commit waits for a standby that is away."""
    await query(dsn, "ALTER SYSTEM SET synchronous_standby_names = 'gone'")
    await query(dsn, "SELECT pg_reload_conf()")
    await eventually(lambda: a_commit_waits(dsn))


async def a_commit_waits(dsn: str) -> bool:
    """Tried, not read from the setting: that is in every session at once, but commits go by what the checkpointer makes
    of it, and on a busy machine it gets its turn later."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        commit = asyncio.create_task(connection.execute("SELECT pg_logical_emit_message(true, 'test', '')"))
        state = f"SELECT wait_event FROM pg_stat_activity WHERE pid = {connection.info.backend_pid}"

        async def waits_or_is_done() -> bool:
            return commit.done() or await query(dsn, state) == [("SyncRep",)]

        await eventually(waits_or_is_done)
        waits = not commit.done()
        await connection.cancel_safe()
        await commit
        return waits


async def appends(dsn: str, directory: Path) -> Finding:
    (found,) = [one async for one in look_at_database(settings(dsn, str(directory))) if one.check == "appends"]
    return found
