"""`registrar webhooks`: what operators see of the endpoints, and do to them."""

from __future__ import annotations

import asyncio
import json
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import standardwebhooks

from infrastructure.postgres.connection import connect
from tests.integration.conftest import Command
from tests.support.commands import Done
from tests.support.endpoint_stub import SECRET, EndpointStub
from tests.support.log import acts_of
from tests.support.webhook_stub import Call

PRIVATE = f"whsk_{b64encode(bytes(range(32))).decode()}"


@dataclass(frozen=True)
class Shop:
    """What an operator types about the endpoint `app`, which answers on a thread of its own."""

    command: Command
    dsn: str
    settings: Mapping[str, str]

    def __call__(self, *arguments: str) -> Done:
        return self.command("webhooks", *arguments, DATABASE_URL=self.dsn, **self.settings)


@pytest.fixture
def answers() -> list[str]:
    """What the endpoint answers; the last of them for good."""
    return ["204 Yes"]


@pytest.fixture
def taken() -> list[Call]:
    return []


@pytest.fixture
def shop(command: Command, dsn: str, answers: list[str], taken: list[Call]) -> Iterator[Shop]:
    """Commands run on event loops of their own: the endpoint has one, too."""
    ended, port, ready = asyncio.Event(), [0], threading.Event()

    async def serve() -> None:
        async with EndpointStub() as stub:
            stub.calls, stub.answer = taken, lambda _: answers.pop(0) if len(answers) > 1 else answers[0]
            port[0], loops[0] = stub.port, asyncio.get_running_loop()
            ready.set()
            await ended.wait()

    loops: list[asyncio.AbstractEventLoop] = [asyncio.new_event_loop()]
    loops[0].close()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(10)
    url = f"http://127.0.0.1:{port[0]}/hook?key=canary-7f"
    yield Shop(
        command,
        dsn,
        {"WEBHOOKS": f"app={url}", "WEBHOOK_SECRETS": f"app={SECRET},app={PRIVATE}", "WEBHOOK_NETWORKS": "127.0.0.0/8"},
    )
    loops[0].call_soon_threadsafe(ended.set)
    thread.join(10)


def test_a_test_is_signed_and_recorded(shop: Shop, taken: list[Call], dsn: str) -> None:
    done = shop("test", "app", "--reason", "first day")

    assert (done.code, done.out) == (0, "app has taken it.\n")
    [call] = taken
    assert standardwebhooks.Webhook(SECRET).verify(call.body, dict(call.headers))["type"] == "registrar.test.v1"
    assert asyncio.run(acts_of(dsn)) == [("test-webhook", "app: first day")]


def test_a_test_says_what_went_wrong_and_shows_no_secret(shop: Shop, answers: list[str]) -> None:
    answers[:] = ["302 Elsewhere\r\nLocation: http://127.0.0.1/"]
    done = shop("test", "app")

    assert done.code == 1
    assert done.out.startswith("app has not taken it: status 302. Redirects are not followed")
    listed = shop("list", "--json")
    assert listed.code == 0
    for printed in (done, listed):
        assert "canary-7f" not in printed.out + printed.err
        assert SECRET not in printed.out + printed.err
        assert PRIVATE not in printed.out + printed.err


def test_the_list_shows_how_each_endpoint_fares_and_the_public_key(shop: Shop, dsn: str) -> None:
    asyncio.run(
        execute(
            dsn,
            "INSERT INTO webhooks (name, position, failing_since, failure, failures, disabled_at, disabled_by)"
            " VALUES ('old', 0, now(), 'status 500', 7, NULL, NULL), ('left', 0, NULL, NULL, 0, now(), 'endpoint')",
        )
    )
    table = shop("list")
    assert [line.split()[:2] for line in table.out.splitlines() if " now " in line] == [["old", "failing"]]
    done = shop("list", "--json")

    found = {one["name"]: one for one in json.loads(done.out)}
    assert done.code == 1
    assert {name: one["state"] for name, one in found.items()} == {"app": "new", "old": "failing", "left": "gone"}
    assert (found["old"]["failure"], found["old"]["failures"], found["old"]["where"]) == ("status 500", 7, None)
    assert found["app"]["public_keys"] == ["whpk_A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="]


def test_the_doctor_says_which_endpoint_cannot_be_reached_and_calls_none(shop: Shop, taken: list[Call]) -> None:
    settings = {**shop.settings, "WEBHOOKS": f"{shop.settings['WEBHOOKS']},away=https://127.0.0.1:9/canary-7f"}
    settings["WEBHOOK_SECRETS"] += f",away={SECRET}"
    done = shop.command("doctor", "--json", DATABASE_URL=shop.dsn, MASTER_KEY="ab" * 32, **settings)

    found = [(one["state"], one["says"]) for one in json.loads(done.out)["checks"] if one["check"] == "webhooks"]
    assert [state for state, _ in found] == ["ok", "fail"]
    assert found[1][1] == "away, 127.0.0.1:9: no connection"
    assert "listen at that address" in done.out
    assert "canary-7f" not in done.out
    assert not taken


@pytest.mark.parametrize(("since", "state"), [("1 minute", "warn"), ("7 minutes", "fail")])
def test_the_doctor_says_that_an_endpoint_that_can_be_reached_is_failing(
    shop: Shop, dsn: str, since: str, state: str
) -> None:
    asyncio.run(
        execute(
            dsn,
            "INSERT INTO webhooks (name, position, failing_since, failure)"
            f" VALUES ('app', 0, now() - interval '{since}', 'status 401')",
        )
    )
    done = shop.command("doctor", "--json", DATABASE_URL=shop.dsn, MASTER_KEY="ab" * 32, **shop.settings)

    found = [(one["state"], one["says"]) for one in json.loads(done.out)["checks"] if one["check"] == "webhooks"]
    assert [one for one, _ in found] == [state, "ok"]
    assert "status 401" in found[0][1]


@pytest.mark.parametrize(
    ("arguments", "act", "told", "row"),
    [
        (("replay", "app", "--from", "1"), "replay-webhook", "app from 1", (0, 2, None)),
        (("disable", "app"), "disable-webhook", "app", (0, 2, "operator")),
        (("enable", "app"), "enable-webhook", "app", (0, 2, None)),
    ],
)
def test_what_an_operator_does_is_recorded_and_begins_a_new_term(
    shop: Shop, dsn: str, arguments: tuple[str, ...], act: str, told: str, row: tuple[object, ...]
) -> None:
    asyncio.run(
        execute(dsn, "INSERT INTO webhooks (name, position, retry_at, next_try_at) VALUES ('app', 0, now(), now())")
    )
    done = shop(*arguments, "--reason", "why not")

    assert done.code == 0
    assert asyncio.run(acts_of(dsn)) == [(act, f"{told}: why not")]
    columns = "position, term, disabled_by, coalesce(retry_at, next_try_at)"
    assert asyncio.run(execute(dsn, f"SELECT {columns} FROM webhooks")) == [(*row, None)], "no try is announced"


@pytest.mark.parametrize(
    ("row", "answer", "woken"),
    [
        ("now(), NULL, NULL", "204 Yes", True),
        ("now(), NULL, NULL", "500 No", False),
        ("now(), now(), 'operator'", "204 Yes", False),
        ("NULL, NULL, NULL", "204 Yes", False),
    ],
)
def test_a_test_that_is_taken_ends_the_rest_of_an_endpoint_that_was_failing(
    shop: Shop, dsn: str, answers: list[str], row: str, answer: str, *, woken: bool
) -> None:
    asyncio.run(
        execute(
            dsn,
            "INSERT INTO webhooks (name, position, retry_at, next_try_at, failing_since, disabled_at, disabled_by)"
            f" VALUES ('app', 0, now() + interval '1 hour', now(), {row})",
        )
    )
    answers[:] = [answer]
    done = shop("test", "app", "--json")

    assert json.loads(done.out)["wakes"] is woken
    [found] = asyncio.run(execute(dsn, "SELECT retry_at IS NULL, next_try_at IS NULL, term FROM webhooks"))
    assert found == (woken, woken, 2 if woken else 1)


@pytest.mark.parametrize(("code", "arguments"), [(2, ("enable", "ap")), (2, ("test", "ap")), (1, ("enable", "app"))])
def test_an_endpoint_that_is_unknown_or_new_is_said_to_be(shop: Shop, code: int, arguments: tuple[str, ...]) -> None:
    done = shop(*arguments)
    assert done.code == code
    assert ("known are app" if code == 2 else "No process has sent to app yet") in done.err


def test_a_replay_says_what_it_leaves_out_and_does_not_begin_beyond_the_end(shop: Shop, dsn: str) -> None:
    shop("test", "app", "--reason", "recorded in the log, at 1")
    asyncio.run(execute(dsn, "INSERT INTO webhooks (name, position) VALUES ('app', 0)"))

    beyond, next_one = shop("replay", "app", "--from", "3"), shop("replay", "app", "--from", "2")
    again = shop("replay", "app", "--from", "1", "--json")

    assert (beyond.code, "the log ends at 1; 2 sends what is recorded from now on" in beyond.err) == (2, True), beyond
    assert (next_one.code, "all of 1 to 1, which is left out now; --from 1" in next_one.err) == (0, True), next_one
    assert json.loads(again.out) == {"endpoint": "app", "from": 1, "skipped": None}
    assert [act for act, _ in asyncio.run(acts_of(dsn))] == ["test-webhook", "replay-webhook", "replay-webhook"]


async def execute(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []
