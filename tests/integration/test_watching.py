"""What the commands that show what goes on print."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from entrypoints.cli.listening import listening
from entrypoints.cli.top import watch
from entrypoints.queries.activity import ActivityQueries
from entrypoints.queries.followers import FollowerQueries
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.pool import QueryPool
from projections.funnel import Funnel
from tests.integration.conftest import Command
from tests.support.commands import Done, clean_environment, ran
from tests.support.facts import eventually
from tests.support.http import Api, open_api
from tests.support.log import by_way_of, proxy_to, query

NOWHERE = "http://127.0.0.1:9"
SCHEMA = Funnel().schema
STAGES = """
    ('2026-03-01 12:00Z', 'registered', false, 8), ('2026-03-01 12:00Z', 'mail_dispatched', false, 6),
    ('2026-03-01 12:00Z', 'verified', false, 4), ('2026-03-01 12:00Z', 'activated', false, 4),
    ('2026-03-01 13:00Z', 'imported', false, 9000),
    ('2026-03-01 13:00Z', 'mail_failed:mailbox-unknown', false, 1), ('2026-03-01 13:00Z', 'registered', true, 2)
"""
DURATIONS = """
    ('2026-03-01 12:00Z', 'registered_to_dispatched', false, 0.5, 3, 500000, 200000),
    ('2026-03-01 12:00Z', 'registered_to_dispatched', false, 60, 3, 31000000, 31000000)
"""
SINCE = ("--since", "2026-03-01")


@pytest.fixture
def counted(dsn: str) -> str:
    """A database whose funnel has counted two hours."""
    asyncio.run(query(dsn, f"INSERT INTO {SCHEMA}.stages VALUES {STAGES}"))
    asyncio.run(query(dsn, f"INSERT INTO {SCHEMA}.durations VALUES {DURATIONS}"))
    return dsn


def test_the_funnel_is_drawn_with_what_reached_each_stage_and_how_fast(command: Command, counted: str) -> None:
    done = command("funnel", *SINCE, DATABASE_URL=counted)

    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert ["registered", "8", "100.0%", "█" * 40] in lines
    assert ["mail", "sent", "6", "75.0%", "█" * 30] in lines
    assert ["mail", "failed:", "mailbox-unknown", "1", "12.5%", "█" * 5] in lines
    assert ["imported", "9,000", "-"] in lines
    assert ["registered", "to", "mail", "sent", "6", "5.25", "s", "0.5", "s", "60", "s", "31", "s"] in lines
    assert ["2026-03-01", "13:00Z", "0", "0"] in lines
    assert done.err == "Besides, 2 for addresses that had an account already.\n"


def test_the_funnel_by_day_adds_the_hours_of_a_day_up(command: Command, counted: str) -> None:
    done = command("funnel", *SINCE, "--bucket", "day", DATABASE_URL=counted)

    assert ["2026-03-01", "8", "4", "█" * 40] in [line.split() for line in done.out.splitlines()]


def test_programs_get_the_funnel_as_the_api_tells_it(command: Command, counted: str) -> None:
    found = command("funnel", *SINCE, "--json", DATABASE_URL=counted).json

    assert [bucket["start"] for bucket in found["items"]] == ["2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z"]
    first = found["items"][0]["registrations"]
    assert first["stages"]["mail_dispatched"] == 6
    assert first["durations"]["registered_to_dispatched"]["histogram"] == {"0.5": 3, "60": 3}


def test_spreadsheets_get_the_funnel_a_count_a_line(command: Command, counted: str) -> None:
    rows = list(csv.DictReader(command("funnel", *SINCE, "--csv", DATABASE_URL=counted).out.splitlines()))

    assert [row["count"] for row in rows if row["of"] == "duplicates"] == ["2"]
    [took] = [row for row in rows if row["mean_seconds"]]
    assert (took["name"], took["count"], took["mean_seconds"]) == ("registered_to_dispatched", "6", "5.250000")


def test_a_funnel_in_which_nothing_happened_says_so(command: Command, dsn: str) -> None:
    done = command("funnel", DATABASE_URL=dsn)

    assert (done.code, done.out, done.err) == (0, "", "Nothing happened.\n")


def test_a_funnel_is_printed_in_one_format(command: Command, dsn: str) -> None:
    done = command("funnel", "--csv", "--json", DATABASE_URL=dsn)

    assert done.code == 2
    assert "--csv and --json exclude each other" in done.err


# --- top ----------------------------------------------------------------------------------------


async def top(dsn: str, *arguments: str, **variables: str) -> Done:
    """`registrar top`, in a process beside this one, which serves."""
    environment = {**clean_environment(DATABASE_URL=dsn), **variables}
    return await asyncio.to_thread(ran, "top", *arguments, environment=environment)


async def test_what_goes_on_is_told_from_the_log_and_from_what_processes_say(dsn: str) -> None:
    async with (
        open_api(dsn, port="0") as api,
        listening(api.service.api, api.service.settings) as addresses,
    ):
        await api.active()
        await api.register("somebody@synthetic.registrar.example", key=synthetic(api))
        done = await top(dsn, "--json", "--metrics", addresses.public, "--metrics", NOWHERE)

    assert done.code == 0, done.err
    told = done.json
    assert (told["registered"], told["verified"], told["activated"]) == (1, 1, 1)
    assert (told["window_seconds"], told["dead_letters"], told["synthetic"]) == (60.0, 0, None)
    assert {one["name"] for one in told["followers"]} >= {"registrations", "mail-saga", "relay"}
    serving, silent = told["processes"]
    assert serving["limits"]["mails"]["passed"] >= 1
    assert (silent["trouble"], silent["requests"]) == ("no connection", 0)


def synthetic(api: Api) -> str:
    return api.service.keyring.synthetic_key("register", "somebody@synthetic.registrar.example")


async def test_who_does_not_look_at_a_terminal_gets_one_look_in_plain_text(dsn: str) -> None:
    await query(dsn, "INSERT INTO circuits (name, state) VALUES ('mail.example:25', 'opened')")

    done = await top(dsn, "--metrics", NOWHERE)

    lines = [line.split() for line in done.out.splitlines()]
    assert (done.code, "\x1b" in done.out) == (0, False)
    assert ["a", "second", *["0.0"] * 7] in lines
    assert ["mail.example:25", "opened"] in lines
    assert [NOWHERE, "no", "connection"] in lines


async def test_on_a_terminal_looks_take_each_others_place(dsn: str) -> None:
    looks = ("--count", "2", "--interval", "0.1", "--metrics", NOWHERE)
    done = await top(dsn, *looks, FORCE_COLOR="1", COLUMNS="120", LINES="40")

    assert done.code == 0
    assert done.out.startswith("\x1b[?1049h")  # another screen, left at the end
    assert done.out.endswith("\x1b[?25h\x1b[?1049l")
    assert done.out.count("registrar top") == 2


async def test_while_the_database_is_away_looks_go_on_and_say_so(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[Any] = []

    def shows(what: Callable[[Any], bool]) -> bool:
        printed.extend(json.loads(line) for line in capsys.readouterr().out.splitlines())
        return any(map(what, printed))

    async with proxy_to(dsn) as proxy, AsyncExitStack() as stack:
        pool = QueryPool(by_way_of(proxy, dsn), statement_timeout=timedelta(seconds=1), read_only=True)
        stack.push_async_callback(pool.close)
        await pool.open()
        queries = ActivityQueries(pool, FollowerQueries(pool, DatabaseClock(), ["registrations"]))
        watching = asyncio.create_task(watch(queries, [], interval=0.05, count=10_000, as_json=True))
        stack.push_async_callback(asyncio.wait, [watching])
        stack.callback(watching.cancel)
        await eventually(lambda: shows(lambda look: look["at"] is not None))
        proxy.refuse()
        proxy.reset()
        await eventually(lambda: shows(lambda look: look["at"] is None))


def test_once_without_a_database_is_an_error(command: Command) -> None:
    done = command("top", DATABASE_URL="postgresql://127.0.0.1:9/none")

    assert done.code != 0
    assert len(done.err.splitlines()) == 1
