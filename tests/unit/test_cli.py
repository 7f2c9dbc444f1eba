"""The command line without a service: help, wrong usage, and every error in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import psycopg
import pytest

from application.ports import Conflict, Overloaded, Unavailable, WrongMasterKey
from domain.errors import NotPending, UnknownRegistration
from entrypoints.bootstrap import CannotStart
from entrypoints.cli.main import registrar, run
from entrypoints.cli.session import explain
from infrastructure.settings.environment import BadSettings

Capture = pytest.CaptureFixture[str]
SOME_ID = "0198c0de-0000-7000-8000-000000000000"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


EVERY = sorted(commands(registrar))
LEAVES = [path for path in EVERY if not any(other[:-1] == path for other in EVERY)]
DATA = {
    *(
        "audit",
        "backup",
        "broker",
        "config",
        "database",
        "doctor",
        "erase",
        "events",
        "keys",
        "limits",
        "mail",
        "projections",
        "restore",
        "funnel",
        "import",
        "top",
        "webhooks",
    )
}
PRINTS_DATA = [path for path in LEAVES if path[0] in DATA and path != ("config", "example")]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty directory, with no settings."""
    monkeypatch.chdir(tmp_path)


def test_every_command_of_the_contract_is_there() -> None:
    wanted = (
        "up|serve|process|work|bounces|doctor|events list|events show|events export|events import|projections list"
        "|projections rebuild|projections verify|projections as-of|projections diff|mail list|mail retry|mail discard"
    )
    wanted += "|events replay|projections parked list|projections parked show|projections parked retry"
    wanted += "|audit explain|audit search|audit export"
    wanted += "|erase|keys list|keys rotate"
    wanted += "|webhooks list|webhooks test|webhooks replay|webhooks disable|webhooks enable"
    wanted += "|backup|restore|database roles"
    wanted += "|audit checkpoints list|audit checkpoints rotate-key|audit prove|audit verify"
    wanted += "|limits show|limits simulate|top|funnel|config show|config check"
    wanted += "|mail preview|mail test|mail suppressions|mail allow|import"
    ours = {"broker declare", "projections drop", "config example"}
    assert {" ".join(path) for path in LEAVES} == {*wanted.split("|"), *ours}


@pytest.mark.parametrize("path", [(), *EVERY], ids=" ".join)
def test_the_help_of_every_command_has_an_example(path: tuple[str, ...], capsys: Capture) -> None:
    assert run([*path, "--help"]) == 0
    assert f"registrar {' '.join(path)}".strip() in capsys.readouterr().out.partition("Example:")[2]


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_takes_a_data_directory_and_prints_json_where_it_prints_data(
    path: tuple[str, ...], capsys: Capture
) -> None:
    run([*path, "--help"])
    help_text = capsys.readouterr().out
    assert ("--data-dir" in help_text and "--config" in help_text) or path == ("config", "example")
    assert ("--json" in help_text) == (path in PRINTS_DATA)


def test_help_does_not_wait_for_what_only_a_service_needs() -> None:
    check = "import sys, entrypoints.cli.main; print({'fastapi', 'psycopg', 'pydantic', 'rich'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["evnts"], "events"),
        (["up", "--prot", "1"], "--port"),
        (["up", "--port", "many"], "--port"),
        (["up", "--port", "70000"], "--port"),
        (["serve", "--host", "not a host"], "--host"),
        (["events", "list", "--type", "registration.user_registred"], "registration.user_registered"),
        (["events", "list", "--limit", "0"], "--limit"),
        (["events", "show"], "ID"),
        (["events", "show", "42"], "ID"),
        (["events", "show", SOME_ID, "--at", "yesterday"], "--at"),
        (["events", "show", SOME_ID, "--at", "2026-01-31", "--version", "1"], "--version"),
        (["mail", "list", "--state", "lost"], "--state"),
        (["mail", "retry"], "--all"),
        (["mail", "retry", SOME_ID, "--all"], "--all"),
        (["mail", "retry", "x"], "ID"),
        (["mail", "retry", "--all", "--failure", "expird"], "expired, crashed"),
        (["mail", "discard"], "ID"),
        (["mail", "preview", "code", "--html", "--json"], "--html and --json exclude each other"),
        (["import", "/dev/null", "--invite-rate", "1/min"], "--invite-rate goes with --invite"),
        (["events", "import", "/dev/null", "--check", "--without-keys"], "neither --with-keys nor --without-keys"),
        (["projections", "rebuild", "mail", "--abort", "--throttle", "9"], "--throttle does not go with --abort"),
        (["projections", "list"], "registrar up"),
        (["process"], "REGISTRAR_SMTP_URLS"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], about: str, capsys: Capture) -> None:
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("registrar: ")
    assert printed.err.count("\n") == 1
    assert about in printed.err


@pytest.mark.parametrize("number", ["9" * 19, "9" * 5000], ids=len)
@pytest.mark.parametrize(
    "arguments",
    [
        ["events", "list", "--limit"],
        ["events", "replay", "--dry-run", "--since"],
        ["events", "replay", "--dry-run", "--until"],
        ["events", "replay", "--dry-run", "--limit"],
        ["events", "show", SOME_ID, "--at"],
        ["mail", "list", "--limit"],
        ["projections", "as-of", "audit"],
        ["projections", "diff", "audit", "1"],
        ["up", "--port"],
    ],
    ids=" ".join,
)
def test_a_number_of_many_digits_is_wrong_usage(arguments: list[str], number: str, capsys: Capture) -> None:
    assert run([*arguments, number]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert number in printed.err or arguments[-1] in printed.err


def test_an_unknown_setting_names_the_nearest_one(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("REGISTRAR_DATABSE_URL", "secret")
    assert run(["up"]) == 2
    error = capsys.readouterr().err
    assert "REGISTRAR_DATABASE_URL" in error
    assert "secret" not in error
    assert error.count("\n") == 1


def test_looking_at_a_database_that_is_not_there_does_not_make_one(capsys: Capture) -> None:
    assert run(["events", "list"]) == 2
    assert not list(Path.cwd().iterdir())
    assert "There is no database in .registrar" in capsys.readouterr().err


def test_without_a_broker_there_is_no_work(capsys: Capture) -> None:
    assert run(["work"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "says", "code"),
    [
        (BadSettings("REGISTRAR_PORT is refused."), "REGISTRAR_PORT is refused.", 2),
        (CannotStart("Something is missing."), "Something is missing.", 2),
        (WrongMasterKey("the master key is another"), "The master key is another; put that key back", 2),
        (PermissionError(13, "Permission denied", "/data"), "Permission denied: /data.", 2),
        (UnknownRegistration(), "(unknown-registration)", 1),
        (NotPending(), "(not-pending)", 1),
        (Conflict("versions"), "try again", 1),
        (Unavailable("the database is away"), "The database is away", 1),
        (Overloaded("too much"), "Too much", 1),
        (psycopg.OperationalError("consuming input failed"), "The database does not respond", 1),
        (psycopg.InterfaceError("the connection is closed"), "The database does not respond", 1),
        (psycopg.errors.TransactionTimeout(), "The database does not respond", 1),
        (psycopg.errors.IdleInTransactionSessionTimeout(), "The database does not respond", 1),
        (psycopg.errors.ReadOnlySqlTransaction(), "The database does not respond", 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_can_be_expected_to_go_wrong_is_explained(error: Exception, says: str, code: int) -> None:
    message, exit_code = explain(error)
    assert says in message
    assert exit_code == code


def stumble() -> None:
    raise RuntimeError("ada@example.com")


def test_a_bug_is_called_one_and_its_place_is_logged_without_values(capsys: Capture) -> None:
    with pytest.raises(RuntimeError) as caught:
        stumble()
    message, code = explain(caught.value)
    assert "This is a bug (RuntimeError)" in message
    assert code == 1
    logged = capsys.readouterr().err
    assert "stumble" in logged
    assert "ada@example.com" not in logged + message
