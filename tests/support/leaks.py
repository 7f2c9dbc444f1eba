"""Nothing of a person in what the suite writes: its services' logs and metrics, whichever test they ran for.

The tests of faults look further, at dumps of the database and at what is published to the broker (I10). Here is looked
at what every test leaves: the log of this process, of commands and of services that were started, and metrics.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, Final

import pytest

from tests.faults.canaries import occurs

PERSONS: Final = ("ada@example.com", "bob@example.com", "eve@example.com", "Ada Lovelace", "correct horse battery")
"""Whom the tests register, and with which password."""

_ENTRY: Final = re.compile(r'\{.*"event": ?"|(?:\x1b\[[0-9;]*m)*\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S* +\S*\[')
"""Begins an entry of a log, as JSON or for a terminal. Other lines are what a command prints, to people who may see
whom it is about."""


def leaks_in(text: str) -> list[str]:
    """What of a person is in the entries of a log among other text."""
    entries = "\n".join(line for line in text.splitlines() if _ENTRY.match(line))
    return occurs(entries, PERSONS) if entries else []


def must_not_tell(log: str = "", *, metrics: str = "") -> None:
    """
    Raises:
        AssertionError: a person is in a log or in metrics.
    """
    assert leaks_in(log) == [], "a log names a person (docs/security.md, S9)"
    assert occurs(metrics, PERSONS) == [], "a metric names a person (docs/security.md, S9)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Fails a test in which this process logged a person; pytest has captured it."""
    report: pytest.TestReport = yield
    if report.when == "teardown" and report.passed:
        leaked = leaks_in("\n".join(text for _, text in report.sections))
        if leaked:
            report.outcome = "failed"
            report.longrepr = f"the test's log names {leaked} (docs/security.md, S9)"
    return report
