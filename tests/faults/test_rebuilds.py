"""A rebuild that is killed at any of its steps leaves the live read model as it was, and is taken up where it was."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import cycle, islice

import pytest

from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, connect
from projections.audit import Audit
from projections.registrations import Registrations
from tests.faults.shell import MASTER_KEY, Shell
from tests.support.log import keep_root_secret
from tests.support.read_models import contents, follow, recorded_history, rows

THROTTLE = "800"
"""Batches of 200 events, so that there are several."""

A_BATCH = 100
SMALL_BATCHES = str(4 * A_BATCH)

COMMITTED = {
    "rebuild.mid_batch:1": 0,
    "rebuild.after_batch:1": 1,
    "rebuild.mid_batch:2": 1,
    "rebuild.after_batch:2": 2,
    "rebuild.mid_batch:3": 2,
    "rebuild.after_batch:3": 3,
}
"""Deaths in a fill, each with the batches that are done by then: all that were begun, but for one."""


def deaths(kills: int) -> list[str]:
    """Where a rebuild dies, life by life: once at each step, and otherwise in its batches."""
    return [
        "rebuild.begun",
        *islice(cycle(COMMITTED), kills - 4),
        "rebuild.indexed",
        "rebuild.before_swap",
        "rebuild.after_swap",
    ]


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[Connection]:
    """On a database with what a first start leaves."""
    await keep_root_secret(dsn, MASTER_KEY)
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        yield connection


@pytest.fixture
async def history(store: EventStore, connection: Connection) -> None:
    """A log, and a live read model at its end."""
    await recorded_history(store, registrations=120)
    await follow(store, connection, Registrations())


async def acts(connection: Connection) -> list[str]:
    """The acts of this test: a history ends with one, too."""
    found = await rows(
        connection,
        "SELECT e.topic FROM events AS e JOIN followers AS f ON e.notification_id > f.position"
        " WHERE f.name IN ('registrations', 'audit') AND e.topic LIKE 'rebuild.%%' ORDER BY e.notification_id",
    )
    return [topic for (topic,) in found]


async def schemas(connection: Connection) -> list[str]:
    """Those of copies."""
    found = await rows(connection, "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE '%%\\_\\_%%' ORDER BY 1")
    return [name for (name,) in found]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fault("A18")
async def test_a_rebuild_that_is_killed_again_and_again_does_at_most_one_batch_twice_and_never_begins_anew(
    store: EventStore, connection: Connection, shell: Shell, full_size: bool
) -> None:
    points = deaths(50 if full_size else 10)
    wanted = A_BATCH * (sum(COMMITTED.get(point, 0) for point in points) + 10)
    head = await recorded_history(store, registrations=wanted // 12 + 60)
    assert head > wanted
    await follow(store, connection, Audit(), batch=1000)
    live = await contents(connection, "read_audit")
    done = 0
    for point in points:
        killed = shell.rebuild("audit", "--throttle", SMALL_BATCHES, dies_at=point)

        assert killed.code == -signal.SIGKILL, f"{point}: {killed}"
        assert await contents(connection, "read_audit") == live
        done += A_BATCH * COMMITTED.get(point, 0)
        reached = await rows(connection, "SELECT position FROM followers WHERE name = 'audit__next'")
        if point in COMMITTED:
            assert reached == [(done,)], point
        elif point != "rebuild.after_swap":
            assert reached[0][0] >= done, point

    went_on = shell.rebuild("audit", "--throttle", SMALL_BATCHES)

    assert went_on.code == 0, went_on.err
    report = went_on.report
    assert (report["outcome"], report["resumed"], report["differences"]) == ("swapped", True, 0)
    assert await contents(connection, "read_audit") == live
    assert await acts(connection) == ["rebuild.begun", "rebuild.swapped"]
    assert await schemas(connection) == ["read_audit__old"]


@pytest.mark.slow
@pytest.mark.usefixtures("history")
@pytest.mark.fault("A18")
async def test_a_swap_that_nobody_could_record_is_recorded_with_the_next_act(
    connection: Connection, shell: Shell
) -> None:
    live = await contents(connection, "read_registrations")

    killed = shell.rebuild("registrations", dies_at="rebuild.after_swap")

    assert killed.code == -signal.SIGKILL, killed.err
    assert await contents(connection, "read_registrations") == live
    assert await acts(connection) == ["rebuild.begun"]

    assert shell.rebuild("registrations", "--rollback").code == 0

    assert await acts(connection) == ["rebuild.begun", "rebuild.swapped", "rebuild.rolled_back"]
    assert await contents(connection, "read_registrations") == live


@pytest.mark.slow
@pytest.mark.usefixtures("history")
@pytest.mark.fault("A18")
async def test_a_rollback_that_is_killed_is_done_once_when_it_is_asked_for_again(
    connection: Connection, shell: Shell
) -> None:
    live = await contents(connection, "read_registrations")
    assert shell.rebuild("registrations").code == 0

    for point in ("rebuild.before_swap", "rebuild.after_swap"):
        killed = shell.rebuild("registrations", "--rollback", dies_at=point)

        assert killed.code == -signal.SIGKILL, f"{point}: {killed}"
        assert await contents(connection, "read_registrations") == live
    again = shell.rebuild("registrations", "--rollback")

    assert (again.code, again.report["outcome"]) == (0, "rolled back"), again.err
    assert await contents(connection, "read_registrations") == live
    assert await acts(connection) == ["rebuild.begun", "rebuild.swapped", "rebuild.rolled_back"]
    assert await schemas(connection) == []


@pytest.mark.slow
@pytest.mark.usefixtures("history")
@pytest.mark.fault("A18")
@pytest.mark.parametrize("point", ["rebuild.mid_batch:2", "rebuild.before_swap"])
async def test_what_a_killed_rebuild_left_is_gone_after_an_abort(
    connection: Connection, shell: Shell, point: str
) -> None:
    live = await contents(connection, "read_registrations")
    assert shell.rebuild("registrations", "--throttle", THROTTLE, dies_at=point).code == -signal.SIGKILL

    ended = shell.rebuild("registrations", "--abort")

    assert (ended.code, ended.report["outcome"]) == (0, "aborted"), ended.err
    assert await schemas(connection) == []
    assert await rows(connection, "SELECT FROM followers WHERE name LIKE 'registrations\\_\\_%%'") == []
    assert await contents(connection, "read_registrations") == live
    assert await acts(connection) == ["rebuild.begun", "rebuild.aborted"]


@pytest.mark.slow
@pytest.mark.usefixtures("history")
@pytest.mark.fault("A18")
async def test_a_verification_that_is_killed_leaves_nothing_once_it_is_done_again(
    connection: Connection, shell: Shell
) -> None:
    killed = shell.projections("verify", "registrations", dies_at="rebuild.mid_batch:2")

    assert killed.code == -signal.SIGKILL, killed.err
    assert await schemas(connection) == ["read_registrations__check"]
    assert shell.projections("verify", "registrations").code == 0
    assert await schemas(connection) == []
