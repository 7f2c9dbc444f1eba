"""The audit log on the command line: a registration explained, what happened searched and exported."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from domain.recorded import Position
from infrastructure.event_store.chain import BEFORE_ALL
from tests.integration.conftest import Command
from tests.support.facts import eventually
from tests.support.http import ADMIN, MASTER_KEY, Api, open_api
from tests.support.log import query

NOBODY = "019cab10-0000-7000-8000-00000000dead"
FORMULA = '=HYPERLINK("http://evil")'
PERSONAL = ("ada@example.com", "Ada", "Lovelace", "eve@example.com")


@dataclass(frozen=True)
class Played:
    """What has happened in a database: an active account, and a registration that an operator looked at and
    cancelled."""

    dsn: str
    active: str
    cancelled: str
    request: str
    message_id: str
    head: Position


async def _play(dsn: str) -> Played:
    async with open_api(dsn) as api:
        active = await api.active()
        [mail] = (await api.http.get("/mailbox/messages", params={"to": "ada@example.com"})).json()
        begun = await api.register("eve@example.com")
        cancelled = begun.json()["registration_id"]
        await api.becomes(cancelled, mail="SENT")
        reason = {"X-Reason": quote("Anruf: möchte nicht")}
        await api.http.get(f"/v1/admin/registrations/{cancelled}", headers=ADMIN | reason)
        await api.http.post(f"/v1/admin/registrations/{cancelled}/cancel", headers=ADMIN | {"X-Reason": quote(FORMULA)})
        head = await _settled(api)
    return Played(
        dsn, active, cancelled, begun.headers["registrar-request-id"], mail["headers"]["Message-ID"].strip(), head
    )


async def _settled(api: Api) -> Position:
    """The end of the log, once the saga has ended and the audit log tells of it."""

    async def told() -> Position | None:
        found = (await api.http.get("/v1/admin/audit", params={"type": "mail_saga.ended"}, headers=ADMIN)).json()
        if len(found["items"]) < 2:
            return None
        [[head, position]] = await query(
            api.service.dsn,
            "SELECT h.position, f.position FROM head AS h, followers AS f WHERE f.name = 'audit'",
        )
        return head if head == position else None

    head: Position = await eventually(told)
    return head


@pytest.fixture
def played(dsn: str) -> Played:
    return asyncio.run(_play(dsn))


@pytest.fixture
def audit(command: Command, played: Played) -> Any:
    def run(*arguments: str) -> Any:
        return command("audit", *arguments, DATABASE_URL=played.dsn, MASTER_KEY=MASTER_KEY)

    return run


# --- Explain --------------------------------------------------------------------------------------


def test_a_registration_is_explained_by_whatever_is_known_of_it(audit: Any, played: Played) -> None:
    by_id = audit("explain", played.active)

    assert by_id.code == 0, by_id.err
    assert by_id.out.startswith("Why did this person not get the mail? It was sent: at ")
    assert "accepted it with 250" in by_id.out.splitlines()[0]
    assert not any(word in by_id.out + by_id.err for word in PERSONAL)
    for known in ("ada@example.com", " ADA@example.com", played.message_id, played.message_id.strip("<>")):
        assert audit("explain", known).out == by_id.out
    assert played.cancelled in audit("explain", played.request).out
    assert audit("explain", played.request).out == audit("explain", played.cancelled).out


def test_an_address_need_not_be_an_argument(audit: Any, played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(line: str, *words: str) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(line))
        return audit(*words)

    by_address = ("search", "--json", "--email")
    assert typed("ada@example.com\n", "explain", "-").out == audit("explain", played.active).out
    assert typed("ada@example.com\n", *by_address, "-").json == audit(*by_address, "ada@example.com").json
    empty = typed("", "explain", "-")
    assert (empty.code, empty.err.count("\n")) == (2, 1)
    assert "standard input is empty" in empty.err


def test_the_acts_of_operators_are_in_the_story_with_their_reasons(audit: Any, played: Played) -> None:
    told = audit("explain", played.cancelled).out.splitlines()

    rows = [line.split("  ", 1)[-1].strip() for line in told]
    looked = next(i for i, row in enumerate(rows) if "shown address and name in clear, with all about it" in row)
    assert 'because "Anruf: möchte nicht"' in rows[looked]
    acted = next(i for i, row in enumerate(rows) if "An operator cancelled the registration, because" in row)
    assert f'because "{FORMULA}"' in rows[acted]
    assert rows[acted + 1].endswith("Undone: the registration was cancelled, because an operator cancelled it.")
    assert looked < acted


def test_the_story_is_a_tree_of_causes(audit: Any, played: Played) -> None:
    [story] = json.loads(audit("explain", played.active, "--json").out)

    assert (story["registration_id"], story["status"]) == (played.active, "ACTIVE")
    assert story["question"] == "Why did this person not get the mail?"
    registered = story["acts"][0]
    assert (registered["actor"], registered["cause"]) == ("client", None)
    assert [one["type"] for one in registered["events"]] == [
        "registration.user_registered",
        "registration.otp_issued",
        "mailbox.mail_decided",
    ]
    [_, asked] = registered["consequences"]
    [sent] = asked["consequences"]
    assert [one["type"] for one in sent["events"]] == ["registration.email_dispatched"]
    assert (sent["actor"], sent["cause"]) == ("mail-worker", asked["events"][0]["position"])
    assert (story["unreadable"], story["behind"], story["parked"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        (NOBODY, "No registration and no request has this id"),
        ("nobody@example.com", "Nobody has registered with this address"),
        (f"<{'0' * 32}@example.com>", "None of the 2 mails that were ever due has this Message-ID."),
        ("what", "This is no id, mail address or Message-ID."),
        ("a@b@c", "This is no mail address."),
    ],
)
def test_what_is_not_known_is_said_in_one_line(audit: Any, subject: str, says: str) -> None:
    done = audit("explain", subject)

    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert says in done.err


def test_an_id_needs_no_secret_and_an_address_does(command: Command, played: Played) -> None:
    assert command("audit", "explain", played.active, DATABASE_URL=played.dsn).code == 0
    assert command("audit", "search", "--actor", "operator", DATABASE_URL=played.dsn).code == 0
    for arguments in (("explain", "ada@example.com"), ("search", "--email", "ada@example.com")):
        done = command("audit", *arguments, DATABASE_URL=played.dsn)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "MASTER_KEY" in done.err


# --- Search ---------------------------------------------------------------------------------------


def test_filters_are_combined_freely(audit: Any, played: Played) -> None:
    def positions(*arguments: str) -> list[int]:
        done = audit("search", "--json", "--limit", "1000", *arguments)
        assert done.code == 0, done.err
        return [one["position"] for one in json.loads(done.out)["items"]]

    everything = json.loads(audit("search", "--json", "--limit", "1000").out)["items"]
    assert [one["position"] for one in everything] == [*range(played.head, 0, -1)]

    def those(**wanted: Any) -> list[int]:
        return [one["position"] for one in everything if all(one[name] == value for name, value in wanted.items())]

    mine = those(registration_id=played.cancelled)
    assert mine
    assert positions("--registration", played.cancelled) == mine
    assert positions("--email", "EVE@example.com") == mine
    acts = those(actor="operator")
    assert positions("--actor", "operator") == acts
    assert positions("--type", "operator.acted") == those(topic="operator.acted")
    assert positions("--email", "eve@example.com", "--actor", "operator", "--type", "operator.personal_data_read") == (
        those(topic="operator.personal_data_read")
    )
    assert positions("--email", "ada@example.com", "--type", "operator.acted") == []
    assert positions("--correlation", played.request, "--actor", "client") == those(
        correlation_id=played.request, actor="client"
    )
    middle = everything[len(everything) // 2]
    late = [one["position"] for one in everything if one["recorded_at"] >= middle["recorded_at"]]
    assert positions("--since", middle["recorded_at"]) == late
    assert positions("--until", middle["recorded_at"]) == [p for p in [*range(played.head, 0, -1)] if p not in late]
    assert positions("--since", "0001-01-01", "--until", "9999-12-31T23:59:59Z") == [*range(played.head, 0, -1)]
    assert positions("--since", "2100-01-01") == positions("--until", "2000-01-01") == []


def test_pages_go_on_where_they_ended(audit: Any, played: Played) -> None:
    found: list[int] = []
    cursor: list[str] = []
    while True:
        page = json.loads(audit("search", "--json", "--limit", "7", *cursor).out)
        found += [one["position"] for one in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = ["--cursor", page["next_cursor"]]

    assert found == [*range(played.head, 0, -1)]
    table = audit("search", "--limit", "1")
    assert "--cursor" in table.err
    assert audit("search", "--cursor", "nonsense").code == 2
    assert audit("search", "--type", "operator.act").code == 2
    assert audit("search", "--email", "nobody").code == 2
    assert audit("search", "--since", "2026-02-01", "--until", "2026-02-01").code == 2
    assert "client, operator, mail-saga" in audit("search", "--actor", "operater").err


# --- Export ---------------------------------------------------------------------------------------


def test_every_line_has_its_place_in_the_chain(audit: Any, played: Played, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"

    done = audit("export", str(file))

    assert done.code == 0, done.err
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["position"] for line in lines] == [*range(1, played.head + 1)]
    blocks = asyncio.run(query(played.dsn, "SELECT first_position, last_position, hash FROM blocks ORDER BY 1"))
    previous = BEFORE_ALL
    for first, last, this in blocks:
        for line in lines[first - 1 : last]:
            assert (line["block"], line["previous_hash"]) == (last, previous.hex())
        previous = this
    assert not any(word in file.read_text() for word in PERSONAL)
    act = next(line for line in lines if line["type"] == "operator.acted")
    assert (act["registration_id"], act["actor"]) == (played.cancelled, "operator")
    assert act["details"] == {"act": "cancel-registration", "reason": FORMULA}


def test_a_spreadsheet_runs_nothing_of_it(audit: Any, played: Played) -> None:
    done = audit("export", "--format", "csv", "--actor", "operator", "-")

    assert done.code == 0, done.err
    header, *rows = csv.reader(io.StringIO(done.out, newline=""))
    assert header[:3] == ["position", "block", "previous_hash"]
    assert all(not cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row)
    [details] = [row[-1] for row in rows if row[4] == "operator.acted"]
    assert json.loads(details)["reason"] == f"'{FORMULA}"
    assert {row[8] for row in rows} == {"operator"}


def test_more_than_one_piece_is_exported_in_order(
    audit: Any, played: Played, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("entrypoints.queries.audit.EXPORTED_AT_ONCE", 4)

    for wanted in ([], ["--actor", "mail-saga"], ["--email", "ada@example.com"]):
        assert audit("export", str(tmp_path / "some"), *wanted).code == 0
        lines = [json.loads(line) for line in (tmp_path / "some").read_text().splitlines()]
        found = json.loads(audit("search", "--json", "--limit", "1000", *wanted).out)["items"]
        assert [line["position"] for line in lines] == [one["position"] for one in reversed(found)]


# --- Reasons on the command line ------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("mail", "retry", NOBODY),
        ("mail", "discard", NOBODY),
        ("mail", "allow", NOBODY),
        ("projections", "rebuild", "funnel"),
        ("projections", "drop", "funnel"),
        ("projections", "parked", "retry", NOBODY),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("reason", ["asked by ada@example.com", "a\nb", "x" * 501], ids=["address", "lines", "long"])
def test_a_reason_that_must_not_stay_is_wrong_usage(command: Command, arguments: tuple[str, ...], reason: str) -> None:
    done = command(*arguments, "--reason", reason)

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "a reason " in done.err
    assert "ada@example.com" not in done.err


def test_what_operators_do_to_read_models_has_a_reason_too(audit: Any, command: Command, played: Played) -> None:
    done = command(
        *("projections", "rebuild", "funnel", "--json", "--reason", "ticket 4711"),
        DATABASE_URL=played.dsn,
        MASTER_KEY=MASTER_KEY,
    )
    assert done.code == 0, done.err

    topics = (
        "SELECT topic, convert_from(state, 'UTF8')::jsonb ->> 'act', convert_from(state, 'UTF8')::jsonb ->> 'reason'"
    )
    recorded = asyncio.run(
        query(played.dsn, f"{topics} FROM events WHERE notification_id > {played.head} ORDER BY notification_id")
    )
    assert recorded == [
        ("operator.acted", "rebuild-begun", "ticket 4711"),
        ("rebuild.begun", None, None),
        ("operator.acted", "rebuild-swapped", "ticket 4711"),
        ("rebuild.swapped", None, None),
    ]
