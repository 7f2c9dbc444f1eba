"""Standard streams as shells give them: closed, full, without a reader; and a terminal of 80 columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import tempfile
import termios
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from tests.integration.test_cli import REGISTRAR, _Desk
from tests.integration.test_cli import desk as desk  # noqa: PLC0414 - a fixture
from tests.support.commands import PATIENCE, clean_environment, started, stop
from tests.support.facts import REGISTRATION, STRAY, stray_kept, stream
from tests.support.preforked import fork

READ_ONLY = ("<&-", "2>&-", "2>/dev/full", "<&- 2>&-")
"""Redirections with which what a command prints can be printed."""
PRINTS_NOTHING = (">&-", ">/dev/full", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1")


def shell(script: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run with `registrar` as `$R`; its output is thrown away unless redirected."""
    return subprocess.run(
        ["bash", "-c", script],
        env=clean_environment(**settings) | {"R": str(REGISTRAR)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def settings_of_the_test() -> dict[str, str]:
    return {name: os.environ[f"REGISTRAR_{name}"] for name in ("DATABASE_URL", "MASTER_KEY")}


@pytest.mark.parametrize(
    ("command", "readable", "unprintable"),
    [
        ("--help", READ_ONLY, PRINTS_NOTHING),
        ("nope", READ_ONLY, PRINTS_NOTHING),
        ("work", ("<&- 2>&-",), (">&-", ">/dev/full 2>&1")),  # these take a second to begin
        ("doctor --json", ("<&- 2>&-",), (">&-", ">/dev/full 2>&1")),
    ],
)
def test_a_closed_or_full_stream_is_an_exit_code_and_at_most_one_line(
    command: str, readable: Sequence[str], unprintable: Sequence[str], tmp_path: Path
) -> None:
    directory = {"DATA_DIR": str(tmp_path)}
    usual = shell(f"$R {command}", **directory).returncode
    for redirection in readable:
        done = shell(f"$R {command} {redirection}", **directory)
        assert done.returncode == usual, redirection
        assert len(done.stderr.splitlines()) <= (usual != 0), redirection
    for redirection in unprintable:
        done = shell(f"$R {command} {redirection}", **directory)
        assert done.returncode == (usual or 1), redirection
        said = done.stderr.splitlines()
        assert len(said) == ("2>" not in redirection), redirection
        assert usual or all("Cannot write to standard output" in line for line in said), redirection


def test_a_log_that_cannot_be_printed_is_said_in_one_line(desk: _Desk) -> None:
    assert desk("events", "list").code == 0
    for line in (
        "events list >&-",
        "events list >/dev/full",
        "events list --json >/dev/full",
        "mail list >/dev/full",
        "projections list >&-",
        "events list --follow >/dev/full",
    ):
        done = shell(f"$R {line}", **settings_of_the_test())
        assert done.returncode == 1, line
        assert done.stderr.startswith("registrar: Cannot write to standard output"), line
        assert done.stderr.count("\n") == 1, line


def test_a_reader_that_has_seen_enough_is_no_failure(desk: _Desk) -> None:
    for command in ("events list", "events list --follow", "mail list --json", "--help"):
        done = shell(f"$R {command} | true; exit ${{PIPESTATUS[0]}}", **settings_of_the_test())
        assert (done.returncode, done.stderr) == (0, ""), command
    refused = shell(
        f"$R mail retry {'0' * 8}-0000-4000-8000-{'0' * 12} | true; exit ${{PIPESTATUS[0]}}", **settings_of_the_test()
    )
    assert refused.returncode == 1  # as without the pipe


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_a_service_that_cannot_say_where_it_is_ends_in_one_line(desk: _Desk, redirection: str) -> None:
    done = shell(f"$R serve --port 0 {redirection}", **settings_of_the_test())
    assert done.returncode == 1
    assert [line[:48] for line in done.stderr.splitlines() if not line.startswith("{")] == [
        "registrar: Cannot write to standard output: " + done.stderr.partition("output: ")[2][:4]
    ]


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&-"])
def test_a_service_whose_log_cannot_be_written_serves(desk: _Desk, redirection: str) -> None:
    command = f"exec {shlex.quote(str(REGISTRAR))} serve --port 0 {redirection}"
    environment = clean_environment(**settings_of_the_test())
    with started("bash", "-c", command, until="API", environment=environment) as (process, printed):
        assert httpx.get(printed[-1].split()[-1] + "/health/live").status_code == 200
        assert stop(process) == (0, "stopped\n")


def on_a_terminal(columns: int, *arguments: str) -> list[str]:
    """The lines that a command prints on a terminal this wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in clean_environment().items() if name not in {"COLUMNS", "LINES"}}
    environment |= {f"REGISTRAR_{name}": value for name, value in settings_of_the_test().items()}
    with tempfile.TemporaryFile() as printed, os.fdopen(ours, "rb", buffering=0) as screen:
        with os.fdopen(theirs, "wb", buffering=0) as terminal, Path(os.devnull).open("wb") as nowhere:
            process = fork(*arguments, environment=environment, stdout=terminal, stderr=nowhere)
        while True:
            try:
                chunk = screen.read(65536)
            except OSError:  # EIO: its last user has closed it
                break
            if not chunk:
                break
            printed.write(chunk)
        assert process.wait(PATIENCE) == 0
        printed.seek(0)
        without_styles = re.sub(r"\x1b\[[0-9;]*m", "", printed.read().decode().replace("\r\n", "\n"))
        return [line.rstrip() for line in without_styles.splitlines()]


@pytest.mark.parametrize(
    "command",
    [
        ["events", "list"],
        ["events", "show", str(REGISTRATION)],
        ["mail", "list", "--state", "all"],
        ["mail", "list", "--state", "stray"],
        ["projections", "list"],
    ],
)
def test_a_table_fits_80_columns_and_shows_all_of_them_when_asked(desk: _Desk, command: list[str]) -> None:
    desk.happened(*stream(STRAY, stray_kept()))

    narrow, wide = on_a_terminal(80, *command), on_a_terminal(80, *command, "--wide")

    assert max(map(len, narrow)) <= 80
    assert max(map(len, wide)) > 80
    assert len(narrow) == len(wide)
    piped = desk(*command).out.splitlines()
    assert [line.split()[:1] for line in wide] == [line.split()[:1] for line in piped]
    assert [len(line.split()) for line in wide] == [len(line.split()) for line in piped]
    assert len(desk(*command, "--wide").out) == len(desk(*command).out)
    assert on_a_terminal(400, *command)[-1].split()[:3] == narrow[-1].split()[:3]
