"""The database goes away amid a rebuild, its copy's disk is full, the projector's leader changes: the live read model
is never half of anything, and the rebuild goes on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql

from application.crash_points import CrashPoint, armed
from application.ports import entries_of
from entrypoints.bootstrap.database import create_schema
from entrypoints.bootstrap.replay import READ_MODELS, Rebuilder, Verifier
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import LogReader
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection, ReconnectingConnection, connect
from infrastructure.replay.progress import nobody_watches
from infrastructure.replay.rebuild import RebuildAct, Rebuilds
from infrastructure.replay.swap import CannotReplay
from projections.audit import Audit
from projections.registrations import Registrations
from tests.faults.armed import at
from tests.faults.conftest import Arm
from tests.faults.fleet import kill_postmaster
from tests.faults.scene import Scene
from tests.faults.shell import MASTER_KEY, Shell, ended
from tests.support.facts import CLIENT, REGISTRATION, eventually, registered, stream
from tests.support.filesystems import small_filesystem
from tests.support.log import keep_root_secret, query
from tests.support.postgres import SURVIVES_KILLS, database_of, server
from tests.support.read_models import contents, follow, recorded_history

THROTTLE: Final = "800"
"""Batches of 200 events, so that there are several."""

_numbers = count(1)


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server that may be killed; `own_dsn` revives it for the next test."""
    with server(SURVIVES_KILLS) as postgres:
        yield postgres


@pytest.fixture
async def own_dsn(own_server: EmbeddedPostgres) -> str:
    """A fresh database on it, with a log, live read models at its end, and what a first start leaves."""
    own_server.start()  # the test before may have left it dead
    name = f"rebuilds_{next(_numbers)}"
    async with await psycopg.AsyncConnection.connect(own_server.dsn, autocommit=True) as administration:
        await administration.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    dsn = database_of(own_server, name)
    async with session(dsn) as connection:
        await create_schema(connection)
        async with store_on(dsn) as store:
            await recorded_history(store, registrations=120)
            for projection in (Registrations(), Audit()):
                await follow(store, connection, projection)
    await keep_root_secret(dsn, MASTER_KEY)
    return dsn


@asynccontextmanager
async def session(dsn: str) -> AsyncIterator[Connection]:
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        yield connection


@asynccontextmanager
async def store_on(dsn: str) -> AsyncIterator[EventStore]:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    yield store
    await store.close()


async def live_rows(dsn: str, read_model: str = "registrations") -> dict[str, list[str]]:
    async with session(dsn) as connection:
        return await contents(connection, f"read_{read_model}")


async def copies(dsn: str) -> list[str]:
    found = await query(dsn, "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE '%\\_\\_%' ORDER BY 1")
    return [name for (name,) in found]


async def recorded(_: RebuildAct) -> None:
    """Elsewhere."""


# --- The database goes away -----------------------------------------------------------------------


def restart(postgres: EmbeddedPostgres) -> None:
    postgres.stop()
    postgres.start()


def kill(postgres: EmbeddedPostgres) -> None:
    assert postgres.pid is not None
    kill_postmaster(postgres.pid)
    postgres.start()


@pytest.mark.slow
@pytest.mark.fault("B24")
@pytest.mark.parametrize("harm", [restart, kill])
async def test_a_rebuild_whose_database_goes_away_ends_in_one_line_and_is_taken_up_once_it_is_back(
    own_server: EmbeddedPostgres, own_dsn: str, reached_directory: Path, harm: Callable[[EmbeddedPostgres], None]
) -> None:
    shell, live, pid = Shell(own_dsn, reached_directory), await live_rows(own_dsn), own_server.pid
    process = shell.begin("rebuild", "registrations", "--throttle", THROTTLE)
    await eventually(
        lambda: query(own_dsn, "SELECT 1 FROM followers WHERE name = 'registrations__next' AND position > 0")
    )

    harm(own_server)
    broken = ended(process)

    assert own_server.pid != pid
    assert (broken.code, broken.out) == (2, ""), broken
    assert broken.err.count("\n") == 1, broken.err
    assert await live_rows(own_dsn) == live

    went_on = shell.rebuild("registrations")

    assert went_on.code == 0, went_on.err
    assert (went_on.report["outcome"], went_on.report["resumed"]) == ("swapped", True)
    assert await live_rows(own_dsn) == live


@pytest.mark.slow
@pytest.mark.fault("B24")
@pytest.mark.parametrize("point", ["rebuild.mid_batch", "rebuild.indexed", "rebuild.before_swap", "rebuild.after_swap"])
async def test_whenever_the_server_is_killed_amid_a_rebuild_either_read_model_serves_whole_and_it_goes_on(
    own_server: EmbeddedPostgres, own_dsn: str, arm: Arm, point: CrashPoint
) -> None:
    live, pid = await live_rows(own_dsn), own_server.pid
    assert pid is not None
    arm(point, lambda: kill_postmaster(pid))
    async with store_on(own_dsn) as store:
        rebuilds = Rebuilds(own_dsn, log=store, record=recorded)
        with pytest.raises(CannotReplay):
            await rebuilds.rebuild(Registrations)
        own_server.start()
        assert own_server.pid != pid
        assert await live_rows(own_dsn) == live

        rebuilt = await rebuilds.rebuild(Registrations)

    assert (rebuilt.swapped, rebuilt.resumed, rebuilt.differences.count) == (True, True, 0)
    assert await live_rows(own_dsn) == live
    assert await copies(own_dsn) == ["read_registrations__old"]


@pytest.mark.slow
@pytest.mark.fault("B24")
async def test_a_command_that_cannot_reach_the_database_finds_no_difference(
    own_server: EmbeddedPostgres, own_dsn: str, reached_directory: Path
) -> None:
    shell, pid = Shell(own_dsn, reached_directory), own_server.pid
    assert pid is not None
    kill_postmaster(pid)

    for words in (("verify",), ("rebuild", "audit"), ("as-of", "audit", "5"), ("diff", "audit", "1", "5")):
        done = shell.projections(*words)

        assert (done.code, done.out) == (2, ""), done  # 1 would be a difference
        assert done.err.count("\n") == 1, done.err


# --- A full disk ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault("B25")
async def test_a_full_disk_of_the_copys_tablespace_costs_the_live_one_nothing_and_the_rebuild_goes_on_with_more_room(
    own_server: EmbeddedPostgres, own_dsn: str, reached_directory: Path
) -> None:
    live = await live_rows(own_dsn, "audit")
    place = own_server.directory / f"small-{next(_numbers)}"
    place.mkdir()
    with small_filesystem(place, "300k", (own_server.directory / "postgres").stat()) as resize:
        await query(own_server.dsn, f"CREATE TABLESPACE copies LOCATION '{place}'")
        shell = Shell(f"{own_dsn}&options=-c%20default_tablespace%3Dcopies", reached_directory)

        for _ in range(2):  # it may be tried again, to the same effect
            full = shell.rebuild("audit", "--throttle", THROTTLE)

            assert (full.code, full.out) == (2, ""), full
            assert "No space left on device" in full.err
            assert full.err.count("\n") == 1, full.err
            assert await query(own_dsn, "SELECT 1 FROM followers WHERE name = 'audit__next' AND position > 0")
            assert await live_rows(own_dsn, "audit") == live
        async with store_on(own_dsn) as store, session(own_dsn) as connection:  # the service goes on
            await store.append(entries_of(stream(REGISTRATION, registered()), CLIENT))
            await follow(store, connection, Audit())
            live = await contents(connection, "read_audit")

        resize("64m")
        went_on = shell.rebuild("audit")

        assert went_on.code == 0, went_on.err
        assert (went_on.report["outcome"], went_on.report["resumed"]) == ("swapped", True)
        assert await live_rows(own_dsn, "audit") == live

        resize(f"{shutil.disk_usage(place).used // 1024 + 300}k")
        assert shell.rebuild("audit", "--throttle", THROTTLE).code == 2
        assert shell.rebuild("audit", "--abort").report["outcome"] == "aborted"
        assert await copies(own_dsn) == ["read_audit__old"]
        assert await live_rows(own_dsn, "audit") == live
        own_server.stop()  # it has files open there
    own_server.start()


# --- Another leader ---------------------------------------------------------------------------------

LEADER = """
    SELECT l.pid FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objid = hashtext('registrations')::oid
        AND l.classid = hashtext('registrar follower')::oid
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.fault("B26")
async def test_whenever_another_process_takes_the_lead_amid_a_rebuild_nothing_is_folded_twice_or_left_out(
    scene: Scene, dsn: str
) -> None:
    first, second = await scene.fleet.process(), await scene.fleet.process()
    await scene.fleet.until_it_leads()
    async with scene.within() as service:
        client = await scene.client_within()
        for number in range(10):
            await scene.accepted(client, f"before{number}@example.com")
        log = LogReader(ReconnectingConnection(dsn, name="log", statement_timeout=timedelta(seconds=10)), EventCodec())
        rebuilds = Rebuilder(dsn, log, service.handlers).rebuilds(nobody_watches)
        leaders, deaths = [first, second], 0
        points: list[CrashPoint] = ["rebuild.mid_batch", "rebuild.indexed", "rebuild.before_swap"]

        def die() -> None:
            """The leader dies; while the swap's locks are held, in the last case."""
            nonlocal deaths
            os.kill(leaders[0].pid, signal.SIGKILL)
            deaths += 1

        for number, point in enumerate(points):
            [(before,)] = await eventually(lambda: query(dsn, LEADER))
            scene.faults.begin(f"{leaders[0].name} dies", "process", node=leaders[0].name)
            with armed(at(point, 1, die)):
                await scene.accepted(client, f"amid{number}@example.com")
                rebuilt = await rebuilds.rebuild(READ_MODELS["registrations"])
            await leaders[0].dies()

            assert deaths == number + 1
            assert (rebuilt.swapped, rebuilt.differences.kept) == (True, [])
            await scene.accepted(client, f"after{number}@example.com")
            [(after,)] = await eventually(lambda: query(dsn, LEADER))
            assert after != before
            await leaders[0].start()
            leaders.reverse()
        await scene.fleet.until_caught_up()
        assert (await Verifier(dsn, log).verify("registrations", nobody_watches)).kept == []
        await log.close()
    await scene.must_hold(refold=True)
