"""The command line on real services: what runs and stops, what an operator reads, and what goes wrong in one line."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from psycopg import sql

from application.ports import Context, entries_of
from domain.mail_saga import MailSaga
from domain.recorded import AnyEvent
from entrypoints.cli.main import run
from entrypoints.queries.followers import followers_with
from infrastructure.embedded.postgres import EmbeddedPostgres
from infrastructure.event_store.codec import EventCodec
from infrastructure.event_store.store import EventStore
from infrastructure.postgres.clock import DatabaseClock
from infrastructure.postgres.connection import connect
from infrastructure.settings.settings import Settings
from projections import PROJECTIONS
from tests.support.commands import PATIENCE, Done, clean_environment, ran, started, stop
from tests.support.facts import (
    CLAIM,
    CLIENT,
    DIGEST,
    REGISTRATION,
    STRAY,
    email_claimed,
    email_dispatch_failed,
    mail_requested,
    mailbox_unknown,
    otp_issued,
    otp_revoked,
    registered,
    registration_cancelled,
    saga_started,
    stray_kept,
    stream,
)
from tests.support.log import keep_root_secret
from tests.support.postgres import in_memory

REGISTRAR = Path(sys.executable).with_name("registrar")
NOBODY = "0198c0de-0000-7000-8000-000000000000"


def command(*arguments: str | Path, **settings: str) -> Done:
    """A command in a process of its own."""
    return ran(*arguments, environment=clean_environment(**settings))


def running(
    *arguments: str | Path, until: str, **settings: str
) -> AbstractContextManager[tuple[subprocess.Popen[str], list[str]]]:
    """A command that stays, and what it printed up to a line that contains `until`."""
    return started(REGISTRAR, *arguments, until=until, environment=clean_environment(**settings))


@pytest.fixture(scope="module")
def directories() -> Iterator[Callable[[], Path]]:
    """Makes directories that the database's user can pass, which pytest's are not."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="registrar-cli-", dir=in_memory())))
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path)


@dataclass(frozen=True)
class Up:
    directory: Path
    url: str
    screen: dict[str, str]
    registration_id: str


@pytest.fixture(scope="module")
def up(directories: Callable[[], Path]) -> Iterator[Up]:
    """A running `up` with one registration whose mail is sent."""
    directory = directories()
    with running("up", "--port", "0", "--data-dir", directory, until="log follows") as (_, printed):
        screen = dict(line.split(maxsplit=1) for line in printed if line and line[0].isupper() and " " in line)
        with httpx.Client(base_url=screen["API"]) as client:
            answer = client.post("/v1/registrations", json={"email": "ada@example.com", "name": "Ada Lovelace"})
            assert answer.status_code == 202
            deadline = time.monotonic() + PATIENCE
            while not client.get("/mailbox/messages").json():
                assert time.monotonic() < deadline
        yield Up(directory, screen["API"], screen, answer.json()["registration_id"])


# --- up, serve, process -----------------------------------------------------------------------


def test_up_shows_where_everything_is(up: Up) -> None:
    token = (up.directory / "admin.token").read_text().strip()
    assert {label: up.screen[label] for label in up.screen if label not in {"Registrar", "A", "Ctrl-C"}} == {
        "Start": f"{up.url}/",
        "API": up.url,
        "Docs": f"{up.url}/docs",
        "Mailbox": f"{up.url}/mailbox",
        "Health": f"{up.url}/health/ready",
        "Metrics": f"{up.url}/metrics",
        "Data": str(up.directory),
        "Admin": f"Authorization: Bearer {token}",
    }
    for what in ("Start", "Docs", "Mailbox", "Health", "Metrics"):
        assert httpx.get(up.screen[what]).status_code == 200


@pytest.mark.slow
def test_the_first_registration_on_the_screen_works_as_it_stands(directories: Callable[[], Path]) -> None:
    with running("up", "--port", "0", "--data-dir", directories(), until="log follows") as (_, printed):
        (curl,) = [line for line in printed if line.startswith("curl ")]
        done = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True)  # noqa: S602 - ours
    assert "202 Accepted" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_up_stops_in_order_when_told_to(how: signal.Signals, directories: Callable[[], Path]) -> None:
    directory = directories()
    with running("up", "--port", "0", "--data-dir", directory, until="log follows") as (process, _):
        assert EmbeddedPostgres(directory).pid is not None
        code, said = stop(process, how)
    assert (code, said.splitlines()[-1]) == (0, "stopped")
    assert EmbeddedPostgres(directory).pid is None


@pytest.mark.slow
def test_what_was_registered_is_there_after_a_restart(directories: Callable[[], Path]) -> None:
    directory = directories()
    for times in (1, 2):
        with running("up", "--port", "0", "--data-dir", directory, until="log follows") as (process, printed):
            url = next(line.split()[1] for line in printed if line.startswith("API"))
            answer = httpx.post(f"{url}/v1/registrations", json={"email": f"ada{times}@example.com", "name": "Ada"})
            assert answer.status_code == 202
            assert stop(process)[0] == 0
    listed = command("events", "list", "--type", "registration.user_registered", "--json", "--data-dir", directory)
    assert len(listed.json) == 2


def test_a_second_up_on_the_same_directory_is_refused(up: Up) -> None:
    done = command("up", "--port", "0", "--data-dir", up.directory)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "in use by another `registrar up`" in done.err


@pytest.mark.slow
def test_a_port_in_use_is_said_in_one_line_and_the_database_is_stopped_again(directories: Callable[[], Path]) -> None:
    directory = directories()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("up", "--port", str(port), "--data-dir", directory)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"127.0.0.1:{port}" in done.err
    assert "--port" in done.err
    assert EmbeddedPostgres(directory).pid is None


def test_with_a_listener_for_operators_the_main_one_has_nothing_of_theirs(dsn: str) -> None:
    settings = {"DATABASE_URL": dsn, "MASTER_KEY": "ab" * 32, "ADMIN_LISTEN": "127.0.0.1:0", "ADMIN_TOKEN": "t"}
    with tempfile.TemporaryDirectory() as directory:
        arguments = ("up", "--port", "0", "--data-dir", directory)
        with running(*arguments, until="log follows", **settings) as (process, printed):
            screen = dict(line.split(maxsplit=1) for line in printed if line.startswith(("API", "Docs")))
            assert httpx.get(screen["Docs"]).status_code == 200
            assert httpx.get(f"{screen['API']}/docs").status_code == 404
            assert not any("Bearer" in line for line in printed)
            assert stop(process)[0] == 0


def test_both_listeners_stop_at_the_same_time(dsn: str) -> None:
    settings = {"DATABASE_URL": dsn, "MASTER_KEY": "ab" * 32, "ADMIN_LISTEN": "127.0.0.1:0", "STOP_DELAY": "60"}
    with (
        tempfile.TemporaryDirectory() as directory,
        running("up", "--port", "0", "--data-dir", directory, until="log follows", **settings) as (process, printed),
    ):
        urls = [line.split()[1].removesuffix("/metrics") for line in printed if line.startswith(("API", "Metrics"))]
        process.send_signal(signal.SIGTERM)

        deadline = time.monotonic() + PATIENCE
        while [httpx.get(f"{url}/health/ready").status_code for url in urls] != [503, 503]:
            assert time.monotonic() < deadline
        assert stop(process)[0] == 130  # told so once more: at once


@pytest.mark.slow
def test_serve_and_process_share_a_database(dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {"DATABASE_URL": dsn, "MASTER_KEY": "ab" * 32}
        server = f"smtp://127.0.0.1:{silent.getsockname()[1]}"
        with (
            running("serve", "--port", "0", until="API", **settings) as (serve, printed),
            running("process", until="Following", SMTP_URLS=server, SEND_TIMEOUT="0.1", **settings) as (process, _),
        ):
            url = printed[-1].split()[1]
            answer = httpx.post(f"{url}/v1/registrations", json={"email": "ada@example.com", "name": "Ada"})
            query = {"min_position": answer.headers["Registrar-Position"], "wait": "10000"}
            assert httpx.get(url + answer.headers["Location"], params=query, timeout=PATIENCE).status_code == 200
            assert stop(process)[0] == 0
            assert stop(serve)[0] == 0


# --- Starting badly ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"DATABASE_URL": "postgresql://u:hush@127.0.0.1:1/x", "MASTER_KEY": "ab" * 32}, "cannot be reached"),
        ({"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, "REGISTRAR_MASTER_KEY"),
        ({"DATABSE_URL": "postgresql://127.0.0.1:1/x"}, "REGISTRAR_DATABASE_URL"),
        ({"LIMITS": "nettwork=1/1m"}, "network is the nearest"),
        ({"BROKER_URL": "http://127.0.0.1"}, "REGISTRAR_BROKER_URL"),
    ],
)
def test_a_service_that_cannot_start_says_why_in_one_line(settings: dict[str, str], says: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        done = command("up", "--port", "0", "--data-dir", directory, **settings)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert says in done.err
    assert "hush" not in done.err


def test_a_data_directory_that_cannot_be_one_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command("up", "--port", "0", "--data-dir", tmp_path / "file")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "is a file" in done.err


def test_another_master_key_is_refused(dsn: str) -> None:
    asyncio.run(keep_root_secret(dsn, "ab" * 32))
    done = command("mail", "retry", NOBODY, DATABASE_URL=dsn, MASTER_KEY="cd" * 32)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "master key" in done.err


# --- doctor -----------------------------------------------------------------------------------


def states(done: Done) -> dict[str, str]:
    return {one["check"]: one["state"] for one in done.json["checks"]}


def test_the_doctor_finds_a_running_service_well(up: Up) -> None:
    done = command("doctor", "--json", "--data-dir", up.directory)
    assert (done.code, done.err) == (0, "")
    found = states(done)
    assert set(found.values()) <= {"ok", "warn"}
    assert {"settings", "python", "data directory", "database", "clock", "schema"} < set(found)
    assert {found[one] for one in ("database", "master key", "followers", "parked streams", "mail")} == {"ok"}


def test_the_doctor_makes_and_starts_nothing(directories: Callable[[], Path]) -> None:
    directory = directories()
    assert command("doctor", "--data-dir", directory / "none").code == 0
    assert not list(directory.iterdir())

    (directory / "postgres").mkdir()
    done = command("doctor", "--json", "--data-dir", directory)
    assert states(done)["database"] == "warn"
    assert "not running" in done.out
    assert "`registrar up`" in done.out
    assert [one.name for one in directory.iterdir()] == ["postgres"]


def test_the_doctor_says_what_is_wrong_and_what_to_do(dsn: str) -> None:
    asyncio.run(keep_root_secret(dsn, "ab" * 32))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    settings = {
        "DATABASE_URL": dsn,
        "MASTER_KEY": "cd" * 32,
        "SMTP_URLS": f"smtp://127.0.0.1:{port}",
        "ALERT_URL": f"http://127.0.0.1:{port}/canary",
    }
    done = command("doctor", "--json", **settings)
    assert done.code == 1
    failed = [one for one in done.json["checks"] if one["state"] == "fail"]
    # The tests' server is told to forget in a crash, which no real one should be.
    assert [one["check"] for one in failed] == ["database", "master key", "mail", "alerts"]
    assert "canary" not in done.out
    assert all(one["advice"] for one in failed)
    assert "→" in command("doctor", **settings).out


def test_the_doctor_says_that_the_settings_are_wrong() -> None:
    done = command("doctor", "--json", PORT="many")
    assert done.code == 1
    assert states(done)["settings"] == "fail"


# --- The log and the desk ---------------------------------------------------------------------


class _Desk:
    """A database with a registration whose mail failed, and commands on it, in this process."""

    def __init__(self, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._dsn = dsn
        self._capsys = capsys
        asyncio.run(self._fill())

    def __call__(self, *arguments: str) -> Done:
        self._capsys.readouterr()
        code = run(arguments)
        printed = self._capsys.readouterr()
        return Done(code, printed.out, printed.err)

    def project(self) -> None:
        asyncio.run(self._project())

    def happened(self, *events: AnyEvent) -> None:
        """These events, too, are in the log, and the read models have followed."""

        async def append() -> None:
            store = EventStore(self._dsn, codec=EventCodec(), clock=DatabaseClock())
            await store.open()
            await store.append(entries_of(events, Context("dead-letter-consumer", UUID(NOBODY))))
            await store.close()
            await self._project()

        asyncio.run(append())

    async def _fill(self) -> None:
        store = EventStore(self._dsn, codec=EventCodec(), clock=DatabaseClock())
        await store.open()
        saga = MailSaga.stream_id(REGISTRATION)
        await store.append(
            entries_of(
                [
                    *stream(REGISTRATION, registered(personal_data="CANARY", fingerprint="CANARY"), otp_issued()),
                    *stream(CLAIM, email_claimed()),
                ],
                CLIENT,
            ),
        )
        await store.append(
            entries_of(stream(saga, saga_started(), mail_requested()), Context("mail-saga", UUID(NOBODY)))
        )
        await store.append(
            entries_of(stream(REGISTRATION, email_dispatch_failed(), after=2), Context("mail-worker", UUID(NOBODY)))
        )
        await store.close()
        await self._project()

    async def _project(self) -> None:
        """What the followers do, once, from the beginning."""
        store = EventStore(self._dsn, codec=EventCodec(), clock=DatabaseClock())
        await store.open()
        rows, head = await store.read(0, 1000)
        for kind in PROJECTIONS:
            projection = kind()
            async with await connect(self._dsn, name="test", statement_timeout=timedelta(seconds=10)) as connection:
                schema = sql.Identifier(projection.schema)
                await connection.execute(sql.SQL("SET search_path = {}, public").format(schema))
                position = await (
                    await connection.execute("SELECT position FROM followers WHERE name = %s", (projection.name,))
                ).fetchone()
                since = 0 if position is None else position[0]
                wanted = [
                    store.decode(row)
                    for row in rows
                    if row.position > since and (projection.topics is None or row.topic in projection.topics)
                ]
                await projection.apply(connection, wanted)
                await connection.execute(
                    "INSERT INTO followers (name, position) VALUES (%s, %s)"
                    " ON CONFLICT (name) DO UPDATE SET position = excluded.position",
                    (projection.name, head),
                )
        await store.close()


@pytest.fixture
def desk(dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> _Desk:
    for name in [name for name in os.environ if name.startswith("REGISTRAR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REGISTRAR_DATABASE_URL", dsn)
    master_key = secrets.token_hex(32)
    monkeypatch.setenv("REGISTRAR_MASTER_KEY", master_key)
    asyncio.run(keep_root_secret(dsn, master_key))
    return _Desk(dsn, capsys)


def test_the_log_is_listed_in_order_and_shows_nothing_personal(desk: _Desk) -> None:
    done = desk("events", "list", "--json")
    assert done.code == 0
    assert [one["position"] for one in done.json] == [1, 2, 3, 4, 5, 6]
    assert done.json[0] | {"recorded_at": ""} == {
        "position": 1,
        "recorded_at": "",
        "type": "registration.user_registered",
        "stream_id": str(REGISTRATION),
        "version": 1,
        "actor": "client",
        "correlation_id": str(CLIENT.correlation_id),
        "causation_position": None,
        "trace": None,
        "data": {
            "claim_id": str(CLAIM),
            "fingerprint": "hidden",
            "personal_data": "hidden",
            "locale": "en",
            "duplicate_of": None,
        },
    }
    table = desk("events", "list")
    assert table.out.count("\n") == 7
    assert "CANARY" not in done.out + table.out


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        (["--limit", "2"], [5, 6]),
        (["--after", "0", "--limit", "2"], [1, 2]),
        (["--after", "6"], []),
        (["--type", "registration.otp_issued", "--type", "email_claim.email_claimed"], [2, 3]),
        (["--registration", str(REGISTRATION)], [1, 2, 3, 4, 5, 6]),
        (["--registration", str(REGISTRATION), "--type", "mail_saga.started"], [4]),
    ],
    ids=str,
)
def test_the_log_is_listed_as_far_as_wanted(desk: _Desk, options: list[str], positions: list[int]) -> None:
    assert [one["position"] for one in desk("events", "list", "--json", *options).json] == positions


def test_a_registration_is_shown_as_it_is_and_as_it_was(desk: _Desk) -> None:
    now = desk("events", "show", str(REGISTRATION), "--json").json
    assert (now["status"], now["version"], now["personal_data"], now["code"]["serial"]) == ("PENDING", 3, "sealed", 1)
    assert [one["type"].partition(".")[2] for one in now["events"]] == [
        "user_registered",
        "otp_issued",
        "email_dispatch_failed",
    ]

    first = desk("events", "show", str(REGISTRATION), "--version", "1", "--json").json
    assert (first["version"], first["code"]["serial"], len(first["events"])) == (1, 0, 1)
    # Both were recorded in one commit.
    then = desk("events", "show", str(REGISTRATION), "--at", first["created_at"], "--json").json
    assert then["version"] == 2

    shown = desk("events", "show", str(REGISTRATION))
    assert "PENDING" in shown.out
    assert "CANARY" not in shown.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["events", "show", NOBODY], "unknown-registration"),
        (["events", "show", str(CLAIM)], "unknown-registration"),
        (["events", "list", "--registration", NOBODY], "unknown-registration"),
        (["events", "show", str(REGISTRATION), "--version", "4"], "only 3 events"),
        (["events", "show", str(REGISTRATION), "--at", "2020-01-01T00:00:00Z"], "started later"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_in_the_log_is_said_in_one_line(desk: _Desk, arguments: list[str], says: str) -> None:
    done = desk(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert says in done.err


@pytest.fixture
def in_the_background() -> Iterator[None]:
    """These tests run as a shell without job control runs them behind `&`: they ignore Ctrl-C."""
    as_it_was = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, as_it_was)


@pytest.mark.usefixtures("in_the_background")
def test_new_events_are_followed_until_ctrl_c(desk: _Desk) -> None:
    settings = {name: os.environ[f"REGISTRAR_{name}"] for name in ("DATABASE_URL", "MASTER_KEY")}
    with running("events", "list", "--follow", "--json", until='"position":6,', **settings) as (process, _):
        assert desk("mail", "retry", str(REGISTRATION)).code == 0
        assert process.stdout
        printed = [json.loads(process.stdout.readline())["type"] for _ in range(2)]
        assert printed == ["operator.acted", "registration.email_retry_requested"]
        assert stop(process, signal.SIGINT) == (130, "")


def test_a_reader_that_goes_away_is_no_error(desk: _Desk) -> None:
    settings = {name: os.environ[f"REGISTRAR_{name}"] for name in ("DATABASE_URL", "MASTER_KEY")}
    process = subprocess.Popen(
        [REGISTRAR, "events", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(**settings),
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(PATIENCE)


def test_every_follower_is_listed_with_its_lag(desk: _Desk) -> None:
    listed = {one["name"]: one for one in desk("projections", "list", "--json").json}
    assert set(listed) == set(followers_with(Settings.from_environment(os.environ)))
    assert (listed["relay"]["status"], listed["relay"]["updated_at"]) == ("degraded", None)
    assert (listed["mail"]["position"], listed["mail"]["head"], listed["mail"]["lag_events"]) == (6, 6, 0)
    assert desk("mail", "retry", str(REGISTRATION)).code == 0
    assert desk("projections", "list", "--json").json[0]["lag_events"] == 2
    assert "by 2" in desk("mail", "list").err


def test_mails_are_listed_by_state(desk: _Desk) -> None:
    (mail,) = desk("mail", "list", "--state", "retrying", "--json").json
    assert (mail["registration_id"], mail["failure"], mail["state"]) == (str(REGISTRATION), "greylisted", "RETRYING")
    assert desk("mail", "list", "--state", "failed", "--json").json == []
    assert str(REGISTRATION) in desk("mail", "list", "--state", "all").out


def test_the_list_is_of_the_mails_that_an_operator_can_still_do_something_about(desk: _Desk) -> None:
    undone = UUID("019cab10-0000-7000-8000-000000000002")
    refused = mailbox_unknown(), otp_revoked(), registration_cancelled("undeliverable")
    desk.happened(
        *stream(REGISTRATION, mailbox_unknown(), after=3), *stream(undone, registered(), otp_issued(), *refused)
    )

    (waits,) = desk("mail", "list", "--json").json
    assert (waits["registration_id"], waits["state"], waits["settled"]) == (str(REGISTRATION), "FAILED", False)
    failed = desk("mail", "list", "--state", "failed", "--json").json
    assert {one["registration_id"]: one["settled"] for one in failed} == {str(undone): True, str(REGISTRATION): False}
    (nothing,) = desk("mail", "discard", str(undone), "--json").json
    assert nothing["outcome"] == "nothing to do"

    (done,) = desk("mail", "discard", str(REGISTRATION), "--json").json
    assert done["outcome"] == "done"
    desk.project()
    assert desk("mail", "list", "--json").json == []


def test_the_list_of_what_waits_mentions_foreign_messages(desk: _Desk) -> None:
    assert "Foreign messages" not in desk("mail", "list").err
    desk.happened(*stream(STRAY, stray_kept()))
    assert "Foreign messages wait, too: 1" in desk("mail", "list").err


def test_a_retry_is_an_event_of_the_operator_and_reported_for_each(desk: _Desk) -> None:
    done = desk("mail", "retry", str(REGISTRATION), NOBODY, "--reason", "ticket 4711", "--json")
    assert done.code == 1
    assert done.json == [
        {"registration_id": str(REGISTRATION), "outcome": "done", "reason": None},
        {"registration_id": NOBODY, "outcome": "refused", "reason": "unknown-registration"},
    ]
    act, event = desk("events", "list", "--after", "6", "--json").json
    assert (act["type"], act["actor"]) == ("operator.acted", "operator")
    assert act["data"] == {"act": "retry-mail", "registration_id": str(REGISTRATION), "reason": "ticket 4711"}
    assert (event["type"], event["actor"]) == ("registration.email_retry_requested", "operator")


def test_all_mails_that_wait_are_retried(desk: _Desk) -> None:
    done = desk("mail", "retry", "--all", "--yes", "--json")
    assert (done.code, [one["outcome"] for one in done.json]) == (0, ["done"])


def test_nothing_is_retried_if_the_operator_thinks_better_of_it(desk: _Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    assert desk("mail", "retry", "--all").code == 1
    assert desk("events", "list", "--after", "6", "--json").json == []


def test_a_discarded_mail_is_an_event_of_the_operator(desk: _Desk) -> None:
    assert desk("mail", "discard", str(REGISTRATION)).code == 0
    desk.project()
    (mail,) = desk("mail", "list", "--state", "discarded", "--json").json
    assert mail["registration_id"] == str(REGISTRATION)
    assert desk("mail", "retry", "--all", "--yes", "--json").json == []


def test_mails_are_retried_by_their_last_failure(desk: _Desk) -> None:
    other = UUID("019cab10-0000-7000-8000-000000000002")
    desk.happened(*stream(other, registered(), otp_issued(), email_dispatch_failed(failure="expired")))

    def retried(*failures: str) -> list[str]:
        options = [option for failure in failures for option in ("--failure", failure)]
        done = desk("mail", "retry", "--all", "--yes", "--json", *options)
        assert (done.code, {one["outcome"] for one in done.json}) in [(0, {"done"}), (0, set())]
        return [one["registration_id"] for one in done.json]

    assert retried("expired") == [str(other)]
    assert retried("greylisted") == [str(REGISTRATION)]
    assert retried("greylisted", "expired") == retried() == [str(REGISTRATION), str(other)]
    assert retried("timeout") == []


def test_a_mail_whose_code_was_replaced_is_not_retried_for_what_its_mail_once_failed_of(desk: _Desk) -> None:
    desk.happened(
        *stream(
            *(REGISTRATION, email_dispatch_failed(permanent=True, failure="content"), otp_issued(2, "requested")),
            after=3,
        )
    )
    assert desk("mail", "retry", "--all", "--yes", "--failure", "content", "--json").json == []


def test_a_cause_goes_with_all_mails_only(desk: _Desk) -> None:
    done = desk("mail", "retry", str(REGISTRATION), "--failure", "expired")
    assert (done.code, done.out) == (2, "")
    assert "--all" in done.err


def test_stray_messages_are_listed_and_discarded(desk: _Desk) -> None:
    assert desk("mail", "list", "--state", "stray", "--json").json == []
    desk.happened(*stream(STRAY, stray_kept()))

    (stray,) = desk("mail", "list", "--state", "stray", "--json").json
    assert stray | {"kept_at": ""} == {
        "id": str(STRAY),
        "digest": DIGEST,
        "reason": "not-a-mail-request",
        "died_of": "rejected",
        "size": 42,
        "content_type": "application/json",
        "fields": "kind,serial",
        "other_fields": 3,
        "kept_at": "",
        "position": 7,
        "discarded": False,
    }
    table = desk("mail", "list", "--state", "stray")
    assert str(STRAY) in table.out
    assert str(STRAY) not in desk("mail", "list").out

    done = desk("mail", "discard", str(STRAY), str(REGISTRATION), NOBODY, "--json")
    assert done.code == 1
    assert done.json == [
        {"registration_id": str(STRAY), "outcome": "done", "reason": None},
        {"registration_id": str(REGISTRATION), "outcome": "done", "reason": None},
        {"registration_id": NOBODY, "outcome": "refused", "reason": "unknown-registration"},
    ]
    _, discarded, _, given_up = desk("events", "list", "--after", "7", "--json").json
    assert (discarded["type"], discarded["actor"]) == ("stray_message.discarded", "operator")
    assert given_up["type"] == "registration.email_discarded"
    desk.project()
    assert desk("mail", "list", "--state", "stray", "--json").json == []
    (again,) = desk("mail", "discard", str(STRAY), "--json").json
    assert again["outcome"] == "nothing to do"


def test_a_stray_message_is_not_retried(desk: _Desk) -> None:
    desk.happened(*stream(STRAY, stray_kept()))
    (report,) = desk("mail", "retry", str(STRAY), "--json").json
    assert (report["outcome"], report["reason"]) == ("refused", "unknown-registration")
