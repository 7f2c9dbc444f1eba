"""`registrar projections rebuild` and `verify` as an operator runs them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import connect
from projections import PROJECTIONS
from tests.integration.conftest import Command
from tests.support.facts import MovableClock
from tests.support.log import keep_root_secret, query
from tests.support.read_models import follow_all, recorded_history

MASTER_KEY = "ab" * 32
NAMES = [projection.name for projection in PROJECTIONS]


@pytest.fixture
def projections(dsn: str, command: Command) -> Command:
    """Runs a command about projections, on a database with a log and every read model at its end."""

    async def fill() -> None:
        await keep_root_secret(dsn, MASTER_KEY)
        store = EventStore(dsn, codec=EventCodec(), clock=MovableClock())
        await store.open()
        await recorded_history(store, registrations=25)
        async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
            await follow_all(store, connection)
        await store.close()

    asyncio.run(fill())
    return lambda *words: command("projections", *words, DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)


def rows(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    return asyncio.run(query(dsn, statement))


def test_all_read_models_are_rebuilt_and_each_act_is_in_the_log(projections: Command, dsn: str) -> None:
    done = projections("rebuild", "--all", "--json")

    assert done.code == 0, done.err
    assert [(one["read_model"], one["outcome"], one["differences"]) for one in done.json] == [
        (name, "swapped", 0) for name in NAMES
    ]
    acts = rows(
        dsn,
        "SELECT topic, actor FROM events WHERE notification_id > (SELECT max(position) FROM followers)"
        " ORDER BY notification_id",
    )
    assert acts == [
        (topic, "operator")
        for act in ("begun", "swapped")
        for _ in NAMES
        for topic in ("operator.acted", f"rebuild.{act}")
    ]


def test_read_models_that_are_what_the_log_says_verify(projections: Command, dsn: str) -> None:
    done = projections("verify", "--json")

    assert done.code == 0, done.err
    [(head,)] = rows(dsn, "SELECT position FROM head")
    assert [(one["read_model"], one["outcome"], one["position"]) for one in done.json] == [
        (name, "equal", head) for name in NAMES
    ]
    assert all(one["rows"] for one in done.json)
    assert rows(dsn, "SELECT FROM pg_namespace WHERE nspname LIKE '%\\_\\_%'") == []


def test_every_planted_difference_is_named_and_personal_data_is_masked(projections: Command, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        planted = connection.execute(
            "UPDATE read_mail.mails SET failures = failures + 1 RETURNING registration_id::text, serial, failures"
        ).fetchall()
        connection.execute("UPDATE read_accounts.accounts SET sealed = 'in clear'")

    done = projections("verify", "mail", "accounts", "--json")

    assert done.code == 1
    mail, accounts = done.json
    assert mail["differences"] == len(planted) > 20
    assert {(one["row"], one["column"], one["live"], one["rebuilt"]) for one in mail["found"]} == {
        (f"registration_id={registration} serial={serial}", "failures", failures, failures - 1)
        for registration, serial, failures in planted
    }
    assert accounts["found"]
    assert {(one["column"], one["live"], one["rebuilt"]) for one in accounts["found"]} == {
        ("sealed", "masked", "masked")
    }
    assert "in clear" not in done.out + done.err


def test_differences_wait_for_a_decision_with_exit_code_1(projections: Command, dsn: str) -> None:
    rows(dsn, "UPDATE read_funnel.stages SET count = count + 1 RETURNING 1")

    asked = projections("rebuild", "funnel")
    assert asked.code == 1
    assert "Not swapped: funnel" in asked.err
    assert "count" in asked.out

    repaired = projections("rebuild", "funnel", "--repair", "--json")
    assert (repaired.code, repaired.json[0]["outcome"], repaired.json[0]["resumed"]) == (0, "swapped", True)
    assert projections("verify", "funnel").code == 0
    assert projections("rebuild", "funnel", "--rollback", "--json").json[0]["outcome"] == "rolled back"
    assert projections("verify", "funnel").code == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("rebuild",), "Give the names of read models, or --all"),
        (("rebuild", "mail", "--all"), "Give the names of read models, or --all"),
        (("rebuild", "males"), "'males' is no read model"),
        (("verify", "males"), "'males' is no read model"),
        (("rebuild", "mail", "--accept", "--repair"), "exclude each other"),
        (("rebuild", "mail", "--throttle", "0"), "0 is not in the range"),
        (("rebuild", "mail", "--rollback"), "There is no earlier copy of mail to go back to."),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_with_exit_code_2(
    projections: Command, words: tuple[str, ...], says: str
) -> None:
    done = projections(*words)

    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert done.err.count("\n") == 1


def test_two_at_a_time_are_refused_in_one_line(projections: Command, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('registrar replay'), 0)")

        for words in (("rebuild", "audit"), ("verify", "audit")):
            done = projections(*words)

            assert done.code == 2
            assert "Another rebuild or verification is under way" in done.err
            assert done.err.count("\n") == 1


def test_an_abort_without_a_rebuild_says_so(projections: Command) -> None:
    done = projections("rebuild", "mail", "--abort")

    assert done.code == 0
    assert "nothing to abort" in done.out
