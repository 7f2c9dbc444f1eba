"""A database that refuses what we ask, for a reason that an operator can remove: that is said, and it is no bug."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from entrypoints.cli.session import explain
from infrastructure.postgres.circumstances import REFUSALS, why_unusable
from projections import PROJECTIONS
from tests.integration.conftest import Command
from tests.support.facts import eventually
from tests.support.http import MASTER_KEY, open_api, problem_of
from tests.support.log import keep_root_secret, query

REFUSED = {
    "no right to append": ("REVOKE INSERT ON events FROM {role}", "GRANT INSERT ON events TO {role}"),
    "no right to read the log": ("REVOKE SELECT ON events FROM {role}", "GRANT SELECT ON events TO {role}"),
    "no right to send": ("REVOKE INSERT ON send_claims FROM {role}", "GRANT INSERT ON send_claims TO {role}"),
    "no right to a read model": (
        "REVOKE ALL ON read_registrations.registrations FROM {role}",
        "GRANT ALL ON read_registrations.registrations TO {role}",
    ),
    "no right to a schema": (
        "REVOKE USAGE ON SCHEMA read_registrations FROM {role}",
        "GRANT USAGE ON SCHEMA read_registrations TO {role}",
    ),
    "the log is gone": ("ALTER TABLE events RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO events"),
    "a function is gone": (
        "ALTER FUNCTION append_batch_v2 RENAME TO elsewhere",
        "ALTER FUNCTION elsewhere RENAME TO append_batch_v2",
    ),
    "a read model is gone": (
        "ALTER TABLE read_registrations.registrations RENAME TO elsewhere",
        "ALTER TABLE read_registrations.elsewhere RENAME TO registrations",
    ),
    "a column is gone": (
        "ALTER TABLE read_registrations.progress RENAME status TO elsewhere",
        "ALTER TABLE read_registrations.progress RENAME elsewhere TO status",
    ),
}


@pytest.fixture
def role(dsn: str, administration: psycopg.Connection) -> Iterator[str]:
    """Of every session of the database: it may use what is there, and owns nothing."""
    name = conninfo_to_dict(dsn)["dbname"]
    role = f"user_of_{name}"
    schemas = ", ".join(["public", *(projection().schema for projection in PROJECTIONS)])

    def grant(statement: str) -> None:
        asyncio.run(query(dsn, statement))

    grant(f"CREATE ROLE {role}")
    grant(f"GRANT USAGE ON SCHEMA {schemas} TO {role}")
    grant(f"GRANT ALL ON ALL TABLES IN SCHEMA {schemas} TO {role}")
    grant(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schemas} TO {role}")
    administration.execute(f"ALTER DATABASE {name} SET role = {role}".encode())
    yield role
    administration.execute(f"ALTER DATABASE {name} RESET ALL".encode())
    grant(f"DROP OWNED BY {role}")
    grant(f"DROP ROLE {role}")


async def as_owner(dsn: str, statement: str, role: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, options="-c role=none", autocommit=True) as connection:
        await connection.execute(statement.format(role=role).encode())


def errors_in(log: io.StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in lines if line["level"] == "error"]


@pytest.mark.parametrize(("refuses", "mends"), REFUSED.values(), ids=REFUSED)
async def test_what_the_database_refuses_is_unavailable_and_said_and_done_once_it_can_be(
    dsn: str, role: str, log: io.StringIO, refuses: str, mends: str
) -> None:
    async with open_api(dsn) as api:
        before = await api.registered("before@example.com")
        await as_owner(dsn, refuses, role)

        refused = set[str]()

        async def said() -> bool:
            answers = [await api.register(f"{len(refused)}@example.com"), await api.look(before)]
            assert {answer.status_code for answer in answers} <= {202, 200, 503}, [one.text for one in answers]
            refused.update(problem_of(answer) for answer in answers if answer.status_code == 503)
            return bool(errors_in(log))

        await eventually(said, within=30)
        await as_owner(dsn, mends, role)

        async def taken() -> str | None:
            answer = await api.register("after@example.com")
            return answer.json()["registration_id"] if answer.status_code == 202 else None

        await api.becomes(str(await eventually(taken, within=60)), mail="SENT")
        assert await query(dsn, "SELECT DISTINCT follower FROM parked_events") == []

    assert refused <= {"unavailable"}
    for line in errors_in(log):
        assert "bug" not in line["hint"], line
        assert "grant it" in line["hint"] or "restore it" in line["hint"], line
        assert "example.com" not in str(line)
    assert "SELECT" not in log.getvalue()


async def test_a_missing_right_is_said_once_by_who_appends(dsn: str, role: str, log: io.StringIO) -> None:
    async with open_api(dsn, follows=False) as api:
        for email in ("ada@example.com", "eve@example.com"):
            await as_owner(dsn, "REVOKE INSERT ON events FROM {role}", role)
            assert [problem_of(await api.register(email)) for _ in range(3)] == ["unavailable"] * 3
            assert (await api.http.get("/health/ready")).status_code == 503
            await as_owner(dsn, "GRANT INSERT ON events TO {role}", role)
            assert (await api.register(email)).status_code == 202

    lines = errors_in(log)
    assert [(line["event"], line["session"], line["error"]) for line in lines] == [
        ("database.refused", "append", "InsufficientPrivilege")
    ] * 2
    assert "permission denied for table events" in lines[0]["hint"]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_nothing_that_an_operator_can_remove_is_called_a_bug(refusal: type[psycopg.Error]) -> None:
    error = refusal(f"{'x' * 300}\nLINE 1: SELECT 'ada@example.com'")
    said = why_unusable(error)

    assert said is not None
    assert "ada@" not in said
    assert explain(error) == (said, 2)


@pytest.mark.parametrize(
    "words",
    [
        ("projections", "verify", "mail"),
        ("projections", "rebuild", "mail"),
        ("projections", "as-of", "mail", "0"),
        ("projections", "diff", "mail", "0", "0"),
    ],
    ids=" ".join,
)
def test_a_command_that_makes_copies_says_which_right_it_lacks(
    command: Command, dsn: str, role: str, words: tuple[str, ...]
) -> None:
    asyncio.run(keep_root_secret(dsn, MASTER_KEY))

    done = command(*words, DATABASE_URL=dsn, MASTER_KEY=MASTER_KEY)

    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert "permission denied" in done.err
