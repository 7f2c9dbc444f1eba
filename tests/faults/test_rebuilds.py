"""A rebuild that is killed at any of its steps leaves the live read model as it was, and is taken up where it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, connect
from projections.registrations import Registrations
from tests.support.commands import clean_environment
from tests.support.log import keep_root_secret
from tests.support.read_models import contents, follow, recorded_history, rows

ROOT = Path(__file__).parents[2]
MASTER_KEY = "ab" * 32
THROTTLE = "800"
"""Batches of 200 events, so that there are several."""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """Runs the rebuild of a read model in a process of its own."""

    def __init__(self, dsn: str, reached: Path) -> None:
        self._environment = clean_environment(DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)
        self._reached = reached

    def rebuild(self, *options: str, dies_at: str | None = None) -> Ran:
        command = [str(Path(sys.executable).with_name("registrar"))]
        if dies_at is not None:
            command = [sys.executable, "-m", "tests.faults.armed", dies_at, str(self._reached), "--"]
        words = ["projections", "rebuild", "registrations", "--json", *options]
        ran = subprocess.run(
            [*command, *words], cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture
async def connection(dsn: str, store: EventStore) -> AsyncIterator[Connection]:
    """On a database with a log, a live read model at its end, and what a first start leaves."""
    await keep_root_secret(dsn, MASTER_KEY)
    await recorded_history(store, registrations=120)
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        await follow(store, connection, Registrations())
        yield connection


@pytest.fixture
def shell(dsn: str, reached_directory: Path) -> Shell:
    return Shell(dsn, reached_directory)


async def acts(connection: Connection) -> list[str]:
    """What was recorded since the live read model stands still."""
    found = await rows(
        connection,
        "SELECT e.topic FROM events AS e JOIN followers AS f ON e.notification_id > f.position"
        " WHERE f.name = 'registrations' ORDER BY e.notification_id",
    )
    return [topic for (topic,) in found]


KILLS = [
    "rebuild.begun",
    "rebuild.mid_batch:1",
    "rebuild.mid_batch:2",
    "rebuild.mid_batch:3",
    "rebuild.after_batch:1",
    "rebuild.after_batch:2",
    "rebuild.indexed",
    "rebuild.before_swap",
]


@pytest.mark.slow
@pytest.mark.fault("A18")
@pytest.mark.parametrize("point", KILLS)
async def test_a_rebuild_that_is_killed_is_taken_up_where_it_was(
    connection: Connection, shell: Shell, point: str
) -> None:
    live = await contents(connection, "read_registrations")

    killed = shell.rebuild("--throttle", THROTTLE, dies_at=point)

    assert killed.code == -signal.SIGKILL, killed.err
    assert await contents(connection, "read_registrations") == live
    [(reached,)] = await rows(connection, "SELECT position FROM followers WHERE name = 'registrations__next'")
    batches = {"rebuild.mid_batch:2": 1, "rebuild.mid_batch:3": 2, "rebuild.after_batch:1": 1}
    assert reached >= 200 * batches.get(point, 0)

    went_on = shell.rebuild("--throttle", THROTTLE)

    assert went_on.code == 0, went_on.err
    [report] = json.loads(went_on.out)
    assert (report["outcome"], report["resumed"], report["differences"]) == ("swapped", True, 0)
    assert await contents(connection, "read_registrations") == live
    assert await acts(connection) == ["rebuild.begun", "rebuild.swapped"]


@pytest.mark.slow
@pytest.mark.fault("A18")
async def test_a_swap_that_nobody_could_record_is_recorded_with_the_next_act(
    connection: Connection, shell: Shell
) -> None:
    live = await contents(connection, "read_registrations")

    killed = shell.rebuild(dies_at="rebuild.after_swap")

    assert killed.code == -signal.SIGKILL, killed.err
    assert await contents(connection, "read_registrations") == live
    assert await acts(connection) == ["rebuild.begun"]

    assert shell.rebuild("--rollback").code == 0

    assert await acts(connection) == ["rebuild.begun", "rebuild.swapped", "rebuild.rolled_back"]
    assert await contents(connection, "read_registrations") == live


@pytest.mark.slow
@pytest.mark.fault("A18")
@pytest.mark.parametrize("point", ["rebuild.mid_batch:2", "rebuild.before_swap"])
async def test_what_a_killed_rebuild_left_is_gone_after_an_abort(
    connection: Connection, shell: Shell, point: str
) -> None:
    live = await contents(connection, "read_registrations")
    assert shell.rebuild("--throttle", THROTTLE, dies_at=point).code == -signal.SIGKILL

    ended = shell.rebuild("--abort")

    assert (ended.code, json.loads(ended.out)[0]["outcome"]) == (0, "aborted"), ended.err
    assert await rows(connection, "SELECT FROM pg_namespace WHERE nspname LIKE 'read_registrations\\_\\_%%'") == []
    assert await rows(connection, "SELECT FROM followers WHERE name LIKE 'registrations\\_\\_%%'") == []
    assert await contents(connection, "read_registrations") == live
    assert await acts(connection) == ["rebuild.begun", "rebuild.aborted"]
