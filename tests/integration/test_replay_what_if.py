"""What the saga would decide today, over logs in a real database: from the command line, and about real scenes."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
from datetime import timedelta

import psycopg
import pytest

from domain.mail_saga import MailSaga
from domain.policy import Policy
from domain.recorded import Position
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.followers.releases import note_release
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import ReconnectingConnection, connect
from infrastructure.replay import what_if
from infrastructure.replay.swap import CannotReplay
from tests.integration.conftest import Command
from tests.support.commands import clean_environment, started
from tests.support.facts import eventually
from tests.support.histories import History
from tests.support.log import append, happened, query
from tests.support.what_if import differences_at, differences_in, recorded_as

OTP_TTL = Policy(otp_ttl=timedelta(seconds=300))


async def write(store: EventStore, dsn: str, history: History) -> Position:
    """The history in the log, all of it seen by the saga."""
    for begin in range(0, len(history.events), 500):
        head = await store.append(history.events[begin : begin + 500])
    await query(dsn, "INSERT INTO followers (name, position) VALUES ('mail-saga', %s)", head)
    return head


@pytest.fixture
def history() -> History:
    return History(seed=1128, registrations=150)


def with_a_saga(history: History) -> int:
    return len({event.originator_id for event, _ in history.events if isinstance(event, MailSaga.Event)})


async def test_unchanged_code_and_settings_decide_the_same(store: EventStore, dsn: str, history: History) -> None:
    await write(store, dsn, history)

    assert await differences_at(dsn) == []


async def test_differences_are_those_of_the_same_events_in_memory(
    store: EventStore, dsn: str, history: History
) -> None:
    await write(store, dsn, history)

    found = await differences_at(dsn, OTP_TTL)

    assert found
    assert sorted(found, key=lambda one: one.position) == sorted(
        differences_in(recorded_as(history.events), OTP_TTL), key=lambda one: one.position
    )


async def test_windows_of_any_size_and_helpers_find_the_same(
    store: EventStore, dsn: str, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, dsn, history)
    at_once = await differences_at(dsn, OTP_TTL)
    monkeypatch.setattr(what_if, "WINDOW", 37)
    assert await differences_at(dsn, OTP_TTL) == at_once

    monkeypatch.setattr(what_if, "MANY_EVENTS", 1)
    assert await differences_at(dsn, OTP_TTL) == at_once


ASKING = """
import asyncio, sys
from datetime import timedelta
from domain.mail_saga import MailSaga
from domain.policy import Policy
from infrastructure.replay import what_if

async def ask(dsn):
    what_if.MANY_EVENTS = what_if.WINDOW = 100
    asked = what_if.WhatIf(dsn, statement_timeout=timedelta(seconds=10))
    async for _ in asked.review(Policy(), since=0, until=None):
        print("reviewed", flush=True)
        await asyncio.Event().wait()

asyncio.run(ask(sys.argv[1]))
"""


async def test_helpers_end_with_the_process_that_they_help_however_it_ends(
    store: EventStore, dsn: str, history: History
) -> None:
    await write(store, dsn, history)

    async def sessions() -> int:
        [(count,)] = await query(
            dsn, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'registrar what-if'"
        )
        return int(count)

    with started(sys.executable, "-c", ASKING, dsn, until="reviewed", environment=clean_environment()) as (process, _):
        assert await sessions() > 1
        process.kill()

        async def are_gone() -> bool:
            return await sessions() == 0

        await eventually(are_gone)


async def test_a_helper_that_is_killed_is_told_in_one_line(
    store: EventStore, dsn: str, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, dsn, history)
    monkeypatch.setattr(what_if, "MANY_EVENTS", 1)
    monkeypatch.setattr(what_if, "WINDOW", 50)
    asked = what_if.WhatIf(dsn, statement_timeout=timedelta(seconds=10))

    async def ask() -> None:
        async for _ in asked.review(Policy(), since=0, until=None):
            for helper in multiprocessing.active_children():
                helper.kill()

    with pytest.raises(CannotReplay, match="was ended"):
        await ask()
    await asked.close()


async def test_a_stretch_of_the_log_has_the_differences_that_lie_in_it(
    store: EventStore, dsn: str, history: History
) -> None:
    head = await write(store, dsn, history)
    everything = await differences_at(dsn, OTP_TTL)

    for since, until in ((0, head // 2), (head // 2, head), (head // 3, 2 * head // 3), (head - 1, head), (1, head)):
        found = await differences_at(dsn, OTP_TTL, since=since, until=until)
        assert {one.position for one in found} == {one.position for one in everything if since < one.position <= until}
        assert len(found) == len({one.position for one in found})


async def test_an_event_that_this_release_cannot_read_is_a_difference(
    store: EventStore, dsn: str, history: History
) -> None:
    head = await write(store, dsn, history)
    registration = next(event for event, _ in history.events if type(event).__name__ == "UserRegistered")
    versions = [
        event.originator_version for event, _ in history.events if event.originator_id == registration.originator_id
    ]
    future = happened(registration.originator_id, max(versions) + 1, topic="registration.from_the_future")
    await append(store, future)

    [found] = await differences_at(dsn)

    assert (found.registration_id, found.position) == (registration.originator_id, head + 1)
    assert "cannot be read" in found.now


async def test_nothing_is_written(store: EventStore, dsn: str, history: History) -> None:
    await write(store, dsn, history)
    line = ReconnectingConnection(dsn, name="what-if", statement_timeout=timedelta(seconds=10), read_only=True)

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await line.execute(lambda connection: connection.execute("DELETE FROM followers"))
    await line.close()


# --- The command ------------------------------------------------------------------------------


@pytest.fixture
def replay(dsn: str, history: History, command: Command) -> Command:
    """The command on a database with a history."""

    async def fill() -> None:
        store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
        await store.open()
        await write(store, dsn, history)
        await store.close()

    asyncio.run(fill())
    return lambda *options: command("events", "replay", *options, DATABASE_URL=dsn)


def test_no_difference_is_exit_code_0(replay: Command, history: History) -> None:
    code, out, err = replay("--dry-run")

    assert (code, out) == (0, "")
    assert f"0 differences about {with_a_saga(history)} registrations" in err


def test_each_difference_is_shown_then_and_now_with_its_id_and_position(replay: Command, history: History) -> None:
    expected = differences_in(recorded_as(history.events), OTP_TTL)

    code, out, err = replay("--dry-run", "--set", "OTP_TTL=300")

    assert code == 1
    for one in expected:
        shown = f"{one.position}  {one.registration_id}  on {one.on}\n    then {one.then}\n    now  {one.now}\n"
        assert shown in out
    assert f"{len(expected)} differences about {with_a_saga(history)} registrations" in err
    for kind in {one.kind for one in expected}:
        assert kind in out


def test_programs_read_json(replay: Command, history: History) -> None:
    expected = differences_in(recorded_as(history.events), OTP_TTL)

    code, out, _ = replay("--dry-run", "--set", "REGISTRAR_OTP_TTL=5m", "--json", "--limit", "1")

    found = json.loads(out)
    assert code == 1
    assert (found["since"], found["until"], found["registrations"]) == (0, len(history.events), with_a_saga(history))
    assert found["differences"] == sum(found["kinds"].values()) == len(expected)
    [listed] = found["listed"]
    assert listed.keys() == {"registration_id", "position", "on", "then", "now", "kind"}


def test_a_gate_looks_at_what_the_release_that_runs_has_decided(replay: Command, dsn: str, history: History) -> None:
    code, _, err = replay("--dry-run", "--since-release")
    assert (code, "No release is noted yet" in err) == (0, True)

    middle = len(history.events) // 2

    async def note() -> None:
        async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
            await note_release(connection, "1.0.0", 0)
            await note_release(connection, "1.1.0", middle)
            await note_release(connection, "1.1.0", middle + 100)  # it was restarted

    asyncio.run(note())

    _, out, err = replay("--dry-run", "--since-release", "--set", "OTP_TTL=300", "--json")

    assert f"Release 1.1.0 has decided since position {middle + 1:,}." in err
    expected = [one for one in differences_in(recorded_as(history.events), OTP_TTL) if one.position > middle]
    assert json.loads(out)["differences"] == len(expected)

    for until in (str(middle), str(middle - 1), "2020-01-01"):
        code, out, err = replay("--dry-run", "--since-release", "--until", until)
        assert (code, out) == (2, "")
        assert "What --since-release means is later than --until" in err


def test_a_release_that_has_decided_nothing_yet_differs_in_nothing(replay: Command, dsn: str, history: History) -> None:
    async def note() -> None:
        async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
            await note_release(connection, "1.0.0", 0)
            await note_release(connection, "1.1.0", len(history.events))

    asyncio.run(note())

    code, out, err = replay("--dry-run", "--since-release", "--set", "OTP_TTL=300")

    assert (code, out) == (0, "")
    assert f"Release 1.1.0 has decided since position {len(history.events) + 1:,}." in err
    assert "0 differences about 0 registrations" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--dry-run"),
        (["--dry-run", "--set", "RESEND_COOLDOWN=5"], "OTP_TTL=VALUE, REGISTRATION_TTL=VALUE"),
        (["--dry-run", "--set", "OTP_TTL"], "OTP_TTL=VALUE, REGISTRATION_TTL=VALUE"),
        (["--dry-run", "--set", "OTP_TTL=soon"], "REGISTRAR_OTP_TTL"),
        (["--dry-run", "--since", "yesterday"], "neither a position of the log nor a time"),
        (["--dry-run", "--since", "5", "--since-release"], "exclude each other"),
        (["--dry-run", "--since", "5", "--until", "4"], "--since is later than --until"),
        (["--dry-run", "--since", "5", "--until", "5"], "--since is later than --until, or the same"),
        (["--dry-run", "--since", "2999-01-02", "--until", "2999-01-01"], "--since is later than --until"),
        (["--dry-run", "--since", "2020-01-01", "--until", "2020-01-01"], "--since is later than --until, or the same"),
        (["--dry-run", "--since", "5", "--until", "2020-01-01"], "--since is later than --until"),
        (["--dry-run", "--since", "1000000"], "The log ends at position"),
        (["--dry-run", "--until", "1000000"], "The log ends at position"),
        (["--dry-run", "--since", "9" * 5000], "neither a position of the log nor a time"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(options: list[str], says: str, replay: Command) -> None:
    code, out, err = replay(*options)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_a_time_is_a_moment_of_the_log(replay: Command, history: History) -> None:
    code, out, _ = replay("--dry-run", "--json", "--since", "2020-01-01", "--until", "2020-01-02")
    assert (code, json.loads(out)["since"], json.loads(out)["until"]) == (0, 0, 0)

    _, out, _ = replay("--dry-run", "--json", "--until", "2999-01-01T00:00:00Z")
    assert json.loads(out)["until"] == len(history.events)
