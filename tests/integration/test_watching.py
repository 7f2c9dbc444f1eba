"""What the commands that show what goes on print."""

from __future__ import annotations

import asyncio
import csv

import pytest

from projections.funnel import Funnel
from tests.integration.conftest import Command
from tests.support.log import query

SCHEMA = Funnel().schema
STAGES = """
    ('2026-03-01 12:00Z', 'registered', false, 8), ('2026-03-01 12:00Z', 'mail_dispatched', false, 6),
    ('2026-03-01 12:00Z', 'verified', false, 4), ('2026-03-01 12:00Z', 'activated', false, 4),
    ('2026-03-01 13:00Z', 'mail_failed:mailbox-unknown', false, 1), ('2026-03-01 13:00Z', 'registered', true, 2)
"""
DURATIONS = """
    ('2026-03-01 12:00Z', 'registered_to_dispatched', false, 0.5, 5, 500000, 200000),
    ('2026-03-01 12:00Z', 'registered_to_dispatched', false, 60, 1, 31000000, 31000000)
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
    assert first["durations"]["registered_to_dispatched"]["histogram"] == {"0.5": 5, "60": 1}


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
