"""Replay over HTTP: jobs in processes of their own, one at a time, which outlive a request and can be gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, get_args

import httpx
import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from pydantic import TypeAdapter

from application.what_if import FIGURES
from entrypoints.api import replay
from entrypoints.api.app import create_app
from infrastructure.archive.reading import ExportedLog
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.connection import connect
from infrastructure.replay.comparison import MASKED
from projections import PROJECTIONS
from tests.support.facts import eventually
from tests.support.http import ADMIN, MASTER_KEY, Api, client_of, open_api, problem_of
from tests.support.log import query
from tests.support.read_models import follow_all, recorded_history

ROOT = "/v1/admin"
JOB = f"{ROOT}/jobs/019cab10-0000-7000-8000-00000000dead"


class Operator:
    """Somebody with the token, and what they say."""

    def __init__(self, api: Api) -> None:
        self._http = api.http

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self._http.get(f"{ROOT}{path}", params=query, headers=ADMIN)

    async def ask(self, path: str, **body: Any) -> httpx.Response:
        return await self._http.post(f"{ROOT}{path}", headers=ADMIN, json=body or None)

    async def begin(self, path: str, **body: Any) -> str:
        """Begin a job; returns its address."""
        begun = await self.ask(path, **body)
        assert begun.status_code == 202, begun.text
        TypeAdapter(replay.JobState).validate_python(begun.json())
        location: str = begun.headers["location"]
        return location

    async def ended(self, location: str) -> dict[str, Any]:
        """What has become of a job."""

        async def over() -> dict[str, Any] | None:
            found = (await self._http.get(location, headers=ADMIN)).json()
            return found if found["state"] != "running" else None

        job: dict[str, Any] = await eventually(over, every=0.1)
        TypeAdapter(replay.JobState).validate_python(job)
        return job

    async def done(self, path: str, **body: Any) -> dict[str, Any]:
        """The result of a job that is done."""
        job = await self.ended(await self.begin(path, **body))
        assert (job["state"], job["says"]) == ("done", None)
        result: dict[str, Any] = job["result"]
        return result


@pytest.fixture
async def log_of(dsn: str, store: EventStore) -> None:
    """A log, and every read model at its end."""
    await recorded_history(store, registrations=25)
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        await follow_all(store, connection)


@pytest.fixture
async def longer(dsn: str, store: EventStore) -> None:
    """A log that takes a while at a limited speed."""
    await recorded_history(store, registrations=150)
    async with await connect(dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
        await follow_all(store, connection)


@asynccontextmanager
async def serving(dsn: str, **more: Any) -> AsyncIterator[Api]:
    async with open_api(dsn, follows=False, verify_interval="0", **more) as api:
        yield api


@pytest.fixture
async def operator(dsn: str, log_of: None) -> AsyncIterator[Operator]:
    async with serving(dsn) as api:
        yield Operator(api)


async def rebuild_is(operator: Operator, name: str, **expected: Any) -> dict[str, Any]:
    async def shown() -> dict[str, Any] | None:
        answer = await operator.get(f"/projections/{name}/rebuild")
        if answer.status_code == 404:
            return None
        state: dict[str, Any] = answer.json()
        assert {key: state[key] for key in expected} == expected
        return state

    found: dict[str, Any] = await eventually(shown, every=0.1)
    return found


# --- Rebuilds and verifications -----------------------------------------------------------------


@pytest.mark.slow
async def test_a_rebuild_runs_as_a_job_and_is_in_the_log(operator: Operator, dsn: str) -> None:
    assert problem_of(await operator.get("/projections/mail/rebuild")) == "not-found"

    result = await operator.done("/projections/mail/rebuild")

    assert (result["read_model"], result["outcome"], result["differences"]) == ("mail", "swapped", 0)
    state = (await operator.get("/projections/mail/rebuild")).json()
    TypeAdapter(replay.RebuildProgress).validate_python(state)
    assert (state["step"], state["runs"], state["decision"]) == ("swapped", False, "equal")
    assert state["position"] == result["position"]
    assert state["found"] == {"items": [], "next_cursor": None}
    acts = await query(dsn, "SELECT topic, actor FROM events ORDER BY notification_id DESC LIMIT 4")
    assert acts[::2] == [("rebuild.swapped", "operator"), ("rebuild.begun", "operator")]
    assert acts[1::2] == [("operator.acted", "operator")] * 2


@pytest.mark.slow
async def test_what_differs_is_paged_and_masked_and_waits_for_a_decision(operator: Operator, dsn: str) -> None:
    planted = await query(dsn, "UPDATE read_accounts.accounts SET sealed = 'ada@example.com' RETURNING 1")
    of = "/projections/accounts"

    assert (await operator.done(f"{of}/rebuild"))["outcome"] == "differs"

    state = (await operator.get(f"{of}/rebuild", limit=2)).json()
    assert (state["step"], state["runs"], state["differences"]) == ("indexed", False, len(planted))
    assert len(state["found"]["items"]) == 2 < len(planted)
    seen = state["found"]["items"]
    while (cursor := state["found"]["next_cursor"]) is not None:
        state = (await operator.get(f"{of}/rebuild", limit=2, cursor=cursor)).json()
        seen += state["found"]["items"]
    assert len({one["row"] for one in seen}) == len(seen) == len(planted)
    assert {(one["column"], one["live"], one["rebuilt"]) for one in seen} == {("sealed", MASKED, MASKED)}
    listed = {one["name"]: one for one in (await operator.get("/projections")).json()["items"]}
    assert (listed["accounts"]["rebuild"], listed["accounts"]["mismatches"]) == ("indexed", len(planted))

    repaired = await operator.done(f"{of}/rebuild", repair=True)
    assert (repaired["outcome"], repaired["resumed"]) == ("swapped", True)
    assert (await operator.get(f"{of}/rebuild")).json()["decision"] == "repaired"
    assert (await operator.done(f"{of}/verify"))["outcome"] == "equal"
    assert (await operator.done(f"{of}/rollback"))["outcome"] == "rolled back"
    assert (await operator.done(f"{of}/verify"))["outcome"] == "differs"
    verification = (await operator.get(f"{of}/verification", limit=1)).json()
    TypeAdapter(replay.VerificationState).validate_python(verification)
    assert verification["last"]["differences"] == len(planted)
    assert len(verification["found"]["items"]) == 1
    assert (await operator.done(f"{of}/abort"))["outcome"] == "nothing to abort"


@pytest.mark.slow
async def test_jobs_run_one_at_a_time_and_without_secrets_in_their_arguments(dsn: str, longer: None) -> None:
    async with serving(dsn) as api:
        await _run_one_at_a_time(Operator(api), dsn)


async def _run_one_at_a_time(operator: Operator, dsn: str) -> None:
    begun = await operator.begin("/projections/mail/rebuild", throttle=10)
    await rebuild_is(operator, "mail", step="filling", runs=True)

    [command] = [one for one in psutil.Process().children() if "projections" in one.cmdline()]
    assert not {MASTER_KEY, dsn} & set(command.cmdline())
    assert not any(secret in word for word in command.cmdline() for secret in (MASTER_KEY, dsn))
    assert command.nice() == 10
    for path, body in (
        ("/projections/audit/rebuild", {}),
        ("/projections/mail/verify", {}),
        ("/projections/mail/diff", {"a": 1, "b": 2}),
        ("/what-if", {}),
    ):
        refused = await operator.ask(path, **body)
        assert (refused.status_code, problem_of(refused)) == (409, "replay-under-way")

    assert (await operator.done("/projections/mail/abort"))["outcome"] == "aborted"
    job = await operator.ended(begun)
    assert job["state"] == "failed"
    assert "The database ended it" in job["says"]
    assert "\n" not in job["says"]
    assert (await operator.get("/projections/mail/rebuild")).json()["step"] == "aborted"


async def test_an_operators_command_is_not_disturbed(operator: Operator, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True, application_name="registrar rebuild mail") as other:
        other.execute("SELECT pg_advisory_lock(hashtext('registrar replay'), 0)")
        assert problem_of(await operator.ask("/projections/audit/rebuild")) == "replay-under-way"


@pytest.mark.slow
async def test_a_process_that_ends_ends_its_job_which_another_goes_on_with(dsn: str, longer: None) -> None:
    async with serving(dsn) as api:
        operator = Operator(api)
        begun = await operator.begin("/projections/audit/rebuild", throttle=400)
        reached = "SELECT 1 FROM followers WHERE name = 'audit__next' AND position > 0"
        await eventually(lambda: query(dsn, reached))
        [command] = [one for one in psutil.Process().children() if "projections" in one.cmdline()]
    assert not command.is_running()

    async with serving(dsn) as api:
        operator = Operator(api)
        job = await operator.ended(begun)
        assert (job["state"], job["says"]) == ("interrupted", job["says"])
        assert "goes on" in job["says"]
        result = await operator.done("/projections/audit/rebuild")
        assert (result["outcome"], result["resumed"]) == ("swapped", True)


@pytest.mark.slow
async def test_a_job_whose_process_is_gone_is_interrupted_and_in_nobodys_way(operator: Operator, dsn: str) -> None:
    job_id = "019cab10-0000-7000-8000-0000000000aa"
    await query(
        dsn,
        "INSERT INTO replay_jobs (job_id, kind, read_model, asked, seen_at) VALUES"
        f" ('{job_id}', 'verify', 'mail', '{{}}', clock_timestamp() - interval '31 seconds') RETURNING 1",
    )
    assert (await operator.get(f"/jobs/{job_id}")).json()["state"] == "interrupted"
    assert (await operator.done("/projections/mail/verify"))["outcome"] == "equal"


# --- The past, and what if ----------------------------------------------------------------------


@pytest.mark.slow
async def test_a_read_model_as_it_was_is_built_and_dropped(operator: Operator, dsn: str) -> None:
    built = await operator.done("/projections/registrations/as-of", at=100)
    assert (built["position"], built["schema"]) == (100, "read_registrations__at_100")
    assert await query(dsn, f"SELECT count(*) FROM {built['schema']}.registrations") == [
        (built["tables"]["registrations"],)
    ]

    dropped = await operator.done("/projections/registrations/as-of", at=100, drop=True)
    assert dropped["dropped"] == built["schema"]

    job = await operator.ended(await operator.begin("/projections/registrations/as-of", at=10**6))
    assert job["state"] == "failed"
    assert "The log ends at position" in job["says"]


@pytest.mark.slow
async def test_the_differences_between_two_moments_are_a_jobs_result(operator: Operator) -> None:
    found = await operator.done("/projections/registrations/diff", a=100, b=110)
    assert (found["a"], found["b"]) == (100, 110)
    assert found["differences"] == len(found["found"]) > 0
    same = await operator.done("/projections/registrations/diff", a="2200-01-01T00:00:00Z", b="2200-01-01T00:00:00Z")
    assert same["differences"] == 0


@pytest.mark.slow
async def test_what_the_saga_would_decide_today_is_a_jobs_result(dsn: str, log_of: None) -> None:
    async with serving(dsn) as api:
        operator = Operator(api)
        found = await operator.done("/what-if", set={"OTP_TTL": "30"}, until=200)
        assert found["until"] == 200
        assert found["differences"] == sum(found["kinds"].values()) > 0


# --- The log ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["identity", "zstd"])
async def test_the_log_is_exported_in_lines_that_verify_by_themselves(
    operator: Operator, dsn: str, encoding: str
) -> None:
    exported = await operator._http.get(f"{ROOT}/events/export", headers={**ADMIN, "Accept-Encoding": encoding})

    assert exported.status_code == 200
    assert exported.headers["content-type"] == "application/jsonl"
    assert exported.headers.get("content-encoding", "identity") == encoding
    log = ExportedLog(iter(exported.content.splitlines(keepends=True)))
    for _ in log.blocks():
        pass
    assert [*log.personal_keys()] == []
    assert await query(dsn, "SELECT position FROM head") == [(log.position,)]


@pytest.mark.slow
async def test_an_export_may_take_longer_than_a_request_but_no_piece_of_it(operator: Operator, dsn: str) -> None:
    gone_on = asyncio.Event()

    async with serving(dsn, request_timeout="2") as api:

        async def piece_by_piece() -> Any:
            late = asyncio.Event()
            asyncio.get_running_loop().call_later(2.5, late.set)
            while not late.is_set():
                yield b"another\n"
                await asyncio.sleep(0)
            yield b"the last\n"

        async def never() -> Any:
            yield b"0\n"
            await gone_on.wait()

        app = create_app(replace(api.service.api, export=piece_by_piece))
        async with client_of(app) as http:
            answer = await http.get(f"{ROOT}/events/export", headers=ADMIN)
            assert (answer.status_code, answer.text.endswith("another\nthe last\n")) == (200, True)
        app = create_app(replace(api.service.api, export=never))
        async with client_of(app) as http:
            with pytest.raises(AssertionError):  # the transport's: the response is broken off
                await http.get(f"{ROOT}/events/export", headers=ADMIN)


# --- Who, and how -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/projections/males/rebuild", {}),
        ("/projections/mail/rebuild", {"accept": True, "repair": True}),
        ("/projections/mail/rebuild", {"throttle": 0}),
        ("/projections/mail/rebuild", {"swap": True}),
        ("/projections/mail/rollback", {"accept": True}),
        ("/projections/mail/as-of", {}),
        ("/projections/mail/as-of", {"at": "--drop"}),
        ("/projections/mail/diff", {"a": 1}),
        ("/what-if", {"set": {"SEND_TIMEOUT": "1"}}),
        ("/what-if", {"set": {"OTP_TTL": "--json"}}),
        ("/what-if", {"since": 1, "since_release": True}),
    ],
)
async def test_what_cannot_be_meant_is_refused(dsn: str, path: str, body: dict[str, Any]) -> None:
    async with serving(dsn) as api:
        refused = await Operator(api).ask(path, **body)
        assert (refused.status_code, problem_of(refused)) == (422, "invalid-request")


async def test_only_operators_may(dsn: str) -> None:
    async with serving(dsn) as api:
        for method, path in (
            ("POST", "/projections/mail/rebuild"),
            ("POST", "/projections/mail/abort"),
            ("POST", "/what-if"),
            ("GET", "/projections/mail/rebuild"),
            ("GET", "/projections/mail/verification"),
            ("GET", "/events/export"),
            ("GET", "/jobs/019cab10-0000-7000-8000-00000000dead"),
        ):
            assert problem_of(await api.http.request(method, f"{ROOT}{path}")) == "unauthorized"
        assert problem_of(await api.http.get(JOB, headers=ADMIN)) == "not-found"


def test_the_routes_know_every_read_model_and_every_figure() -> None:
    assert set(get_args(replay.Name)) == {make().name for make in PROJECTIONS}
    names = replay.WhatIf.model_json_schema()["properties"]["set"]["propertyNames"]["enum"]
    assert set(names) == {figure.upper() for figure in FIGURES}
