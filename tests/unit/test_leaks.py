"""The look for persons in what every test leaves behind finds one that was put there."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import clean_environment, started
from tests.support.leaks import leaks_in, must_not_tell

ROOT = Path(__file__).parents[2]
ENTRY = '{{"timestamp": "2026-03-01T12:00:00Z", "level": "info", "event": "mail.sent", "to": "{}"}}'


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY.format("ada@example.com"),
        ENTRY.format("ADA@example.com"),
        ENTRY.format(base64.b64encode(b"<ada@example.com>").decode()),
        ENTRY.format("ada%40example.com"),
        ENTRY.format(b"Ada Lovelace".hex()),
        "2026-03-01 12:00:00 [warning  ] mail.sent    to=ada@example.com",
        "\x1b[2m2026-03-01T12:00:00.1Z\x1b[0m [\x1b[33mwarning\x1b[0m] mail.sent password=correct horse battery",
    ],
)
def test_a_person_in_an_entry_of_a_log_is_found_in_whatever_form(entry: str) -> None:
    assert leaks_in(f"registrar up\n{entry}\n") != []
    with pytest.raises(AssertionError):
        must_not_tell(entry)


def test_what_a_command_prints_may_name_persons() -> None:
    assert leaks_in("registration  ada@example.com  Ada Lovelace\n" + ENTRY.format("a•••@example.com")) == []


def test_a_person_in_a_metric_is_found() -> None:
    with pytest.raises(AssertionError):
        must_not_tell(metrics='registrar_mail_total{to="ada@example.com"} 1.0')


@pytest.mark.parametrize(
    ("told", "code"), [("to='ada@example.com'", 1), ("to='a•••@example.com'", 0), ("name='Ada Lovelace'", 1)]
)
def test_a_test_whose_service_logs_a_person_fails(told: str, code: int, tmp_path: Path) -> None:
    module = tmp_path / "test_it.py"
    module.write_text(f"import structlog\n\ndef test_it():\n    structlog.get_logger().info('mail.sent', {told})\n")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "tests.support.leaks", "-c", os.devnull, str(module))
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == code, done.stdout + done.stderr
    assert ("docs/security.md, S9" in done.stdout) is bool(code)


def test_a_command_that_logs_a_person_is_found() -> None:
    leak = f"echo '{ENTRY.format('ada@example.com')}' >&2; echo ready; exec sleep 60"
    with pytest.raises(AssertionError), started("sh", "-c", leak, until="ready", environment=clean_environment()):
        pass
