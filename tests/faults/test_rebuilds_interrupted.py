"""An operator who stops a rebuild or a verification, by Ctrl-C or SIGTERM, at any moment."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import Connection, connect
from infrastructure.replay.rebuild import RebuildAct, Rebuilds
from infrastructure.replay.verification import verify
from projections.registrations import Registrations
from tests.faults.shell import MASTER_KEY, Shell, ended
from tests.support.facts import eventually
from tests.support.interruptions import interrupt, nothing_left_behind
from tests.support.log import keep_root_secret, locked, until_waiting_for_a_lock
from tests.support.read_models import contents, follow, recorded_history, rows

STOPS = [signal.SIGINT, signal.SIGTERM]

THROTTLE = "800"
"""Batches of 200 events, so that there are several."""


@pytest.fixture
async def connection(dsn: str, store: EventStore) -> AsyncIterator[Connection]:
    """On a database with a log, a live read model at its end, and what a first start leaves."""
    await keep_root_secret(dsn, MASTER_KEY)
    await recorded_history(store, registrations=120)
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        await follow(store, connection, Registrations())
        yield connection


async def copies(connection: Connection) -> list[str]:
    """Schemas and followers beside the live ones."""
    found = await rows(
        connection,
        "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE '%%\\_\\_%%'"
        " UNION ALL SELECT name FROM followers WHERE name LIKE '%%\\_\\_%%' ORDER BY 1",
    )
    return [name for (name,) in found]


async def until_filling(connection: Connection) -> None:
    async def filling() -> bool:
        return bool(await rows(connection, "SELECT FROM followers WHERE name = 'registrations__next' AND position > 0"))

    await eventually(filling)


@pytest.mark.slow
@pytest.mark.fault("A19")
@pytest.mark.parametrize("number", STOPS)
async def test_a_rebuild_that_is_stopped_says_so_in_one_line_and_is_taken_up_where_it_was(
    connection: Connection, shell: Shell, number: signal.Signals
) -> None:
    live = await contents(connection, "read_registrations")
    process = shell.begin("rebuild", "registrations", "--json", "--throttle", THROTTLE)
    await until_filling(connection)

    process.send_signal(number)
    stopped = ended(process)

    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.startswith("Interrupted: ")
    assert stopped.err.count("\n") == 1
    assert await contents(connection, "read_registrations") == live

    went_on = shell.rebuild("registrations")

    assert went_on.code == 0, went_on.err
    assert (went_on.report["outcome"], went_on.report["resumed"]) == ("swapped", True)
    assert await contents(connection, "read_registrations") == live


@pytest.mark.slow
@pytest.mark.fault("A19")
async def test_a_rebuild_that_is_stopped_is_gone_after_an_abort(connection: Connection, shell: Shell) -> None:
    live = await contents(connection, "read_registrations")
    process = shell.begin("rebuild", "registrations", "--throttle", THROTTLE)
    await until_filling(connection)
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 130

    aborted = shell.rebuild("registrations", "--abort")

    assert (aborted.code, aborted.report["outcome"]) == (0, "aborted"), aborted.err
    assert await copies(connection) == []
    assert await contents(connection, "read_registrations") == live


@pytest.mark.slow
@pytest.mark.fault("A19")
async def test_a_rebuild_whose_process_does_nothing_any_more_is_ended_by_an_abort(
    connection: Connection, shell: Shell
) -> None:
    live = await contents(connection, "read_registrations")
    process = shell.begin("rebuild", "registrations", "--throttle", THROTTLE)
    await until_filling(connection)
    process.send_signal(signal.SIGSTOP)
    try:
        aborted = shell.rebuild("registrations", "--abort")
    finally:
        process.send_signal(signal.SIGCONT)

    assert (aborted.code, aborted.report["outcome"]) == (0, "aborted"), aborted.err
    assert ended(process).code == 2
    assert await copies(connection) == []
    assert await contents(connection, "read_registrations") == live


@pytest.mark.slow
@pytest.mark.fault("A19")
async def test_a_verification_that_is_stopped_says_so_in_one_line_and_leaves_nothing(
    connection: Connection, shell: Shell, dsn: str
) -> None:
    async with locked(dsn, "SET idle_in_transaction_session_timeout = 0") as holder:
        await holder.execute("LOCK TABLE read_registrations.progress IN ACCESS EXCLUSIVE MODE")
        process = shell.begin("verify", "registrations")
        await until_waiting_for_a_lock(dsn, "registrar compare registrations")
        process.send_signal(signal.SIGINT)
        stopped = ended(process)

    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.startswith("Interrupted: ")
    assert stopped.err.count("\n") == 1
    assert await copies(connection) == []


async def recorded(_: RebuildAct) -> None:
    """Elsewhere."""


@pytest.mark.slow
async def test_a_rebuild_waits_until_the_server_has_ended_its_cleaning_of_the_copy(
    connection: Connection, store: EventStore, dsn: str
) -> None:
    """It does so a second after somebody began to wait."""
    rebuild = asyncio.create_task(Rebuilds(dsn, log=store, record=recorded, throttle=800).rebuild(Registrations))
    await until_filling(connection)
    async with locked(dsn, "SET idle_in_transaction_session_timeout = 0") as cleaning:
        await cleaning.execute("LOCK TABLE read_registrations__next.progress IN SHARE UPDATE EXCLUSIVE MODE")

        async def waits_for_long() -> bool:
            long = "SELECT FROM pg_locks WHERE NOT granted AND clock_timestamp() > waitstart + interval '1.2 s'"
            return rebuild.done() or bool(await rows(connection, long))

        await eventually(waits_for_long)

    assert (await rebuild).swapped


@pytest.mark.slow
@pytest.mark.fault("A19")
async def test_a_rebuild_that_is_cancelled_at_whatever_it_waits_for_changes_nothing_and_goes_on(
    connection: Connection, store: EventStore, dsn: str, monkeypatch: pytest.MonkeyPatch, full_size: bool
) -> None:
    live = await contents(connection, "read_registrations")
    at, step = 1, (1 if full_size else 5)
    with nothing_left_behind(monkeypatch):
        while await interrupt(Rebuilds(dsn, log=store, record=recorded, throttle=4000).rebuild(Registrations), at=at):
            assert await contents(connection, "read_registrations") == live, at
            at += step

    assert at > 50
    assert await contents(connection, "read_registrations") == live
    assert await copies(connection) == ["read_registrations__old", "registrations__old"]


@pytest.mark.slow
@pytest.mark.fault("A19")
async def test_a_verification_that_is_cancelled_at_whatever_it_waits_for_leaves_nothing(
    connection: Connection, store: EventStore, dsn: str, monkeypatch: pytest.MonkeyPatch, full_size: bool
) -> None:
    at, step = 1, (1 if full_size else 9)
    with nothing_left_behind(monkeypatch):
        while await interrupt(verify(dsn, Registrations, log=store), at=at):
            assert await copies(connection) == [], at
            at += step

    assert at > 50
    assert await copies(connection) == []
