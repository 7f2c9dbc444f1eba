"""What a follower has put aside: shown with the code that refused it, and tried again at once when an operator asks."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from application.commands import RetryParkedStream
from application.handlers import Handlers
from application.ports import Context
from domain.policy import Policy
from domain.recorded import Position, Told
from entrypoints.api import responses
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.reader import RecordedRow
from infrastructure.event_store.store import EventStore
from infrastructure.followers import parked as parking
from infrastructure.followers.leadership import lead
from infrastructure.followers.projector import Projector
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.notifications import Notifications
from projections.accounts import Accounts
from tests.integration.conftest import Command
from tests.support.commands import clean_environment
from tests.support.facts import REGISTRATION, Fact, account_activated, eventually, registered, stream
from tests.support.http import ADMIN, open_api, problem_of
from tests.support.log import append, happened, keep_root_secret, query

FOLLOWER = "accounts"
OTHER = UUID("019cab10-0000-7000-8000-0000000000aa")


class Refusing(Accounts):
    """The real read model, with a bug about one registration until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.mended = False

    async def apply(self, connection: Connection, events: Sequence[Told]) -> None:
        if not self.mended and any(one.event.originator_id == REGISTRATION for one in events):
            await connection.execute("SELECT 1 / 0 AS ada_at_example_com")
        await super().apply(connection, events)


@asynccontextmanager
async def following(dsn: str, projection: Refusing) -> AsyncIterator[EventStore]:
    store = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await store.open()
    notifications = Notifications(dsn)
    works = [
        asyncio.create_task(notifications.run()),
        asyncio.create_task(lead(Projector(projection, store=store, notifications=notifications), dsn)),
    ]
    try:
        yield store
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        await store.close()


async def parked(dsn: str) -> list[UUID]:
    return [
        row[0]
        for row in await query(
            dsn, "SELECT DISTINCT stream_id FROM parked_events WHERE follower = %s ORDER BY stream_id", FOLLOWER
        )
    ]


async def is_parked(dsn: str) -> None:
    async def found() -> bool:
        return await parked(dsn) == [REGISTRATION]

    await eventually(found)


@pytest.fixture
def parked_streams(dsn: str, command: Command) -> Command:
    master_key = secrets.token_hex(32)
    asyncio.run(keep_root_secret(dsn, master_key))
    return lambda *words: command("projections", "parked", *words, DATABASE_URL=dsn, MASTER_KEY=master_key)


async def park(dsn: str, *facts: Fact) -> None:
    """A follower has parked one registration, with these events, and is gone."""
    async with following(dsn, Refusing()) as store:
        events = stream(REGISTRATION, registered(), *facts)
        for event in events:
            await append(store, EventCodec().encode(event))

        async def are_parked() -> bool:
            return await query(dsn, "SELECT count(*) FROM parked_events") == [(len(events),)]

        await eventually(are_parked)


def test_a_parked_stream_is_shown_with_its_event_and_the_code_that_refused_it(
    dsn: str, parked_streams: Command
) -> None:
    asyncio.run(park(dsn))

    code, out, _ = parked_streams("list", "--json")
    [found] = json.loads(out)
    assert code == 0
    assert (found["follower"], found["stream_id"], found["events"]) == (FOLLOWER, str(REGISTRATION), 1)
    assert found["error"] == "DivisionByZero"
    assert found["code"].startswith("infrastructure/followers/projector.py:")
    assert found["code"].endswith("(22012)")

    code, out, _ = parked_streams("show", str(REGISTRATION))
    assert code == 0
    for shown in ("DivisionByZero", "infrastructure/followers/projector.py:", "registration.user_registered"):
        assert shown in out
    assert "personal_data=hidden" in out
    assert "sealed" not in out
    assert "example" not in out

    [event] = json.loads(parked_streams("show", str(REGISTRATION), "--json")[1])
    assert event["event"]["type"] == "registration.user_registered"
    assert event["event"]["data"]["personal_data"] == "hidden"


def test_what_is_not_parked_is_said_in_one_line(parked_streams: Command) -> None:
    assert parked_streams("list")[:2] == (
        0,
        "stream  follower  error  position  events  refused by  parked at  tried at\n",
    )
    code, out, err = parked_streams("show", str(OTHER))
    assert (code, out, err.count("\n")) == (1, "", 1)
    code, out, err = parked_streams("retry", str(OTHER))
    assert (code, "not parked" in out) == (1, True)
    code, out, err = parked_streams("retry", "--all")
    assert (code, out, err) == (0, "", "Nothing is parked.\n")
    assert parked_streams("retry")[0] == 2
    for words in (("list",), ("retry", "--all")):
        code, out, err = parked_streams(*words, "--follower", "nobody")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "'nobody' is no follower; there are registrations" in err


def test_an_event_without_fields_is_not_taken_for_an_unreadable_one(dsn: str, parked_streams: Command) -> None:
    asyncio.run(park(dsn, account_activated()))

    code, out, _ = parked_streams("show", str(REGISTRATION))

    assert code == 0
    assert "data         -" in out.splitlines()


def test_a_retry_while_nobody_follows_is_recorded_and_waits(
    dsn: str, parked_streams: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(park(dsn))
    monkeypatch.setattr("entrypoints.cli.parked._PATIENCE", 0.0)

    code, out, _ = parked_streams("retry", str(REGISTRATION), "--json")

    assert code == 1
    assert [one["outcome"] for one in json.loads(out)] == ["not tried yet"]
    acts = asyncio.run(query(dsn, "SELECT topic, actor FROM events ORDER BY notification_id DESC LIMIT 1"))
    assert acts == [("parked_retry.asked", "operator")]


OF_COPIES = ("accounts__old", "accounts__next", "accounts_2__old", "accounts__at_7")


def park_as(dsn: str, *followers: str, streams: int = 1) -> None:
    """Rows as these followers have parked them, one event of each stream."""
    asyncio.run(
        query(
            dsn,
            "INSERT INTO parked_events (follower, stream_id, position, error)"
            " SELECT f, lpad(n::text, 32, '0')::uuid, n, 'DivisionByZero'"
            " FROM unnest(%s::text[]) AS f, generate_series(1, %s) AS n",
            list(followers),
            streams,
        )
    )


def test_what_copies_of_read_models_have_parked_is_neither_shown_nor_tried(dsn: str, parked_streams: Command) -> None:
    park_as(dsn, *OF_COPIES)
    stream_id = str(UUID(int=1))

    assert parked_streams("list", "--json")[:2] == (0, "[]\n")
    assert parked_streams("show", stream_id)[0] == 1
    code, out, _ = parked_streams("retry", stream_id, "--json")
    assert (code, [one["outcome"] for one in json.loads(out)]) == (1, ["not parked"])
    assert parked_streams("retry", "--all") == (0, "", "Nothing is parked.\n")
    assert asyncio.run(query(dsn, "SELECT FROM events WHERE topic = 'parked_retry.asked'")) == []


def test_another_version_of_a_read_model_is_a_follower_too(
    dsn: str, parked_streams: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrypoints.cli.parked._PATIENCE", 0.0)
    park_as(dsn, "registrations_2", "accounts__old")

    assert [one["follower"] for one in json.loads(parked_streams("list", "--json")[1])] == ["registrations_2"]
    code, out, _ = parked_streams("retry", "--all", "--json")
    assert (code, [one["follower"] for one in json.loads(out)]) == (1, ["registrations_2"])


def test_all_parked_streams_are_asked_for_before_any_is_waited_for(
    dsn: str, parked_streams: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrypoints.cli.parked._PATIENCE", 0.0)
    monkeypatch.setattr("entrypoints.queries.parked.LONGEST_LIST", 7)
    park_as(dsn, "accounts", "audit", "accounts__old", streams=10)

    code, out, _ = parked_streams("retry", "--all", "--json")

    assert code == 1
    expected = {(follower, str(UUID(int=int(str(n), 16)))) for follower in ("accounts", "audit") for n in range(1, 11)}
    assert {(one["follower"], one["stream_id"]) for one in json.loads(out)} == expected
    assert {one["outcome"] for one in json.loads(out)} == {"not tried yet"}
    acts = asyncio.run(query(dsn, "SELECT count(*) FROM events WHERE topic = 'parked_retry.asked'"))
    assert acts == [(20,)]


async def test_what_a_leader_makes_of_it_is_waited_for_and_told(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "PARKED_RETRY_INTERVAL", timedelta(days=1))
    master_key = secrets.token_hex(32)
    await keep_root_secret(dsn, master_key)
    projection = Refusing()

    async def retry_all() -> tuple[int | None, list[str]]:
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).with_name("registrar"), "projections", "parked", "retry", "--all", "--json"),
            env=clean_environment(DATABASE_URL=dsn, MASTER_KEY=master_key),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        return process.returncode, [one["outcome"] for one in json.loads(out)]

    async with following(dsn, projection) as store:
        await append(store, EventCodec().encode(stream(REGISTRATION, registered())[0]))
        await is_parked(dsn)

        assert await retry_all() == (1, ["still parked"])
        projection.mended = True
        assert await retry_all() == (0, ["applied"])

    about = "SELECT convert_from(state, 'UTF8')::jsonb ->> 'registration_id' FROM events WHERE topic = 'operator.acted'"
    assert await query(dsn, about) == [(str(REGISTRATION),)] * 2


async def ask(store: EventStore, follower: str = FOLLOWER) -> None:
    """As another process does."""
    nobody: Any = None  # this command needs no secrets
    handlers = Handlers(log=store, clock=DatabaseClock(), secrets=nobody, hasher=nobody, policy=Policy())
    retry = RetryParkedStream(retry_id=uuid4(), follower=follower, stream_id=REGISTRATION)
    await handlers.handle(retry, Context("operator", uuid4()))


async def test_an_operators_retry_in_another_process_is_tried_at_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "PARKED_RETRY_INTERVAL", timedelta(days=1))
    projection = Refusing()
    elsewhere = EventStore(dsn, codec=EventCodec(), clock=DatabaseClock())
    await elsewhere.open()
    async with following(dsn, projection) as store:
        await append(store, EventCodec().encode(stream(REGISTRATION, registered())[0]))
        await is_parked(dsn)

        await ask(elsewhere)

        async def was_tried() -> bool:
            return await query(dsn, "SELECT tried_at IS NOT NULL FROM parked_events") == [(True,)]

        await eventually(was_tried)  # and is refused again
        projection.mended = True
        await ask(elsewhere, follower="audit")  # not meant for this one
        await ask(elsewhere)

        async def is_applied() -> bool:
            return await parked(dsn) == []

        await eventually(is_applied)
        # The others went on meanwhile, and so does it.
        await append(store, EventCodec().encode(stream(OTHER, registered())[0]))
        head = await store.head()

        async def has_caught_up() -> bool:
            rows = await query(dsn, "SELECT position FROM followers WHERE name = %s", FOLLOWER)
            return rows == [(head,)]

        await eventually(has_caught_up)
        assert await parked(dsn) == []
    await elsewhere.close()


class _Counted:
    """The log, and how often it was read."""

    def __init__(self, store: EventStore) -> None:
        self.reads = 0
        self._store = store
        self.decode = store.decode
        self.stretch = store.stretch

    async def read(
        self, after: Position, limit: int, topics: Sequence[str] | None = None
    ) -> tuple[list[RecordedRow], Position]:
        self.reads += 1
        return await self._store.read(after, limit, topics)


@pytest.fixture
async def put_aside(dsn: str, store: EventStore) -> AsyncIterator[tuple[Connection, parking.ParkedStreams, _Counted]]:
    """What a leader knows that begins far behind, with one parked stream, which it has tried again just now."""
    log = _Counted(store)
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        await parking.ParkedStreams(FOLLOWER, log).add(connection, REGISTRATION, 1, "LookupError")
        streams = parking.ParkedStreams(FOLLOWER, log)
        await streams.load(connection, 0)
        assert await streams.next_to_try(connection) == (REGISTRATION, [1])
        log.reads = 0
        yield connection, streams, log


async def test_a_follower_far_behind_reads_what_operators_ask_for_in_small_parts(
    store: EventStore,
    put_aside: tuple[Connection, parking.ParkedStreams, _Counted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parking, "_ASKS_EACH", 3)
    connection, streams, log = put_aside
    for _ in range(9):
        await ask(store, follower="audit")
    await ask(store)

    for reads in (1, 2, 3):
        assert await streams.next_to_try(connection) is None
        assert (log.reads, streams.look_in) == (reads, timedelta(0)), "the next part soon, after a batch"
    assert await streams.next_to_try(connection) == (REGISTRATION, [1])
    assert (log.reads, streams.look_in) == (4, parking.RETRY_LOOK)


async def test_what_an_operator_has_asked_a_newer_release_for_holds_nobody_up(
    store: EventStore, put_aside: tuple[Connection, parking.ParkedStreams, _Counted]
) -> None:
    connection, streams, _ = put_aside
    topic = "parked_retry.asked"
    unreadable = await append(store, happened(topic=topic, state=b"of a newer release"))
    await append(store, happened(topic=topic, state=b'{"follower":"accounts","parked_stream":"all of them"}'))
    await ask(store)

    with capture_logs() as logs:
        assert await streams.next_to_try(connection) == (REGISTRATION, [1])

    assert [(line["event"], line["log_level"], line["position"]) for line in logs] == [
        ("follower.unreadable_retry", "warning", unreadable),
        ("follower.unreadable_retry", "warning", unreadable + 1),
    ]
    assert "newer release" not in str([line["error"] for line in logs])


# --- Over HTTP ----------------------------------------------------------------------------------


async def test_parked_streams_are_listed_and_shown_over_http_and_stay_sealed(dsn: str) -> None:
    await park(dsn)
    async with open_api(dsn, follows=False) as api:
        of = "/v1/admin/projections/parked"
        listed = await api.http.get(of, headers=ADMIN)
        assert listed.status_code == 200
        TypeAdapter(responses.ParkedStreams).validate_python(listed.json())
        [found] = listed.json()["items"]
        assert (found["follower"], found["stream_id"], found["events"]) == (FOLLOWER, str(REGISTRATION), 1)
        assert (found["error"], found["tried_at"]) == ("DivisionByZero", None)
        assert found["code"].startswith("infrastructure/followers/projector.py:")

        for follower, count in ((FOLLOWER, 1), ("audit", 0)):
            filtered = await api.http.get(of, params={"follower": follower}, headers=ADMIN)
            assert len(filtered.json()["items"]) == count
        assert problem_of(await api.http.get(of, params={"stream": FOLLOWER}, headers=ADMIN)) == "invalid-request"

        shown = await api.http.get(f"{of}/{REGISTRATION}", headers=ADMIN)
        assert shown.status_code == 200
        TypeAdapter(responses.ParkedEvents).validate_python(shown.json())
        [one] = shown.json()["items"]
        assert (one["parked"]["follower"], one["parked"]["error"]) == (FOLLOWER, "DivisionByZero")
        assert one["event"]["type"] == "registration.user_registered"
        assert one["event"]["data"]["personal_data"] == "hidden"
        assert "example" not in shown.text + listed.text


async def test_a_parked_stream_that_an_operator_has_retried_over_http_is_applied_at_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "PARKED_RETRY_INTERVAL", timedelta(days=1))
    projection = Refusing()
    async with following(dsn, projection) as store, open_api(dsn, follows=False) as api:
        await append(store, EventCodec().encode(stream(REGISTRATION, registered())[0]))
        await is_parked(dsn)
        projection.mended = True

        answer = await api.http.post(f"/v1/admin/projections/parked/{REGISTRATION}/retry", headers=ADMIN)

        assert answer.status_code == 200
        TypeAdapter(responses.ParkedRetried).validate_python(answer.json())
        assert answer.json() == {"stream_id": str(REGISTRATION), "followers": [FOLLOWER]}

        async def is_applied() -> bool:
            return await parked(dsn) == []

        await eventually(is_applied)
        listed = await api.http.get("/v1/admin/projections/parked", headers=ADMIN)
        assert listed.json() == {"items": []}
        act = await query(dsn, "SELECT notification_id, topic, actor FROM events ORDER BY notification_id DESC LIMIT 1")
        assert act == [(int(answer.headers["registrar-position"]), "parked_retry.asked", "operator")]


async def test_what_copies_of_read_models_have_parked_is_unknown_over_http(dsn: str) -> None:
    of = "/v1/admin/projections/parked"
    await query(
        dsn,
        "INSERT INTO parked_events (follower, stream_id, position, error)"
        " SELECT f, %s, 1, 'DivisionByZero' FROM unnest(%s::text[]) AS f",
        *(OTHER, list(OF_COPIES)),
    )
    async with open_api(dsn, follows=False) as api:
        assert (await api.http.get(of, headers=ADMIN)).json() == {"items": []}
        for method, path in (("GET", f"{of}/{OTHER}"), ("POST", f"{of}/{OTHER}/retry")):
            answer = await api.http.request(method, path, headers=ADMIN)
            assert (answer.status_code, problem_of(answer)) == (404, "unknown-registration")
        assert await query(dsn, "SELECT FROM events WHERE topic = 'parked_retry.asked'") == []


async def test_what_is_not_parked_is_unknown_over_http_and_only_operators_may_ask(dsn: str) -> None:
    of = "/v1/admin/projections/parked"
    async with open_api(dsn, follows=False) as api:
        for method, path in (("GET", f"{of}/{OTHER}"), ("POST", f"{of}/{OTHER}/retry")):
            answer = await api.http.request(method, path, headers=ADMIN)
            assert (answer.status_code, problem_of(answer)) == (404, "unknown-registration")
        for method, path in (("GET", of), ("GET", f"{of}/{OTHER}"), ("POST", f"{of}/{OTHER}/retry")):
            assert problem_of(await api.http.request(method, path)) == "unauthorized"
        assert await query(dsn, "SELECT FROM events WHERE topic = 'parked_retry.asked'") == []
        unreadable = await api.http.post(f"{of}/not-an-id/retry", headers=ADMIN)
        assert problem_of(unreadable) == "invalid-request"
