"""Every row of the fault matrix that was asked for has a test, and `docs/reliability.md` names it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.faults.reached import is_whole_suite
from tests.faults.rows import ASKED_FOR, TESTS, marked


def documented() -> dict[str, list[str]]:
    """Tests by the rows of the document's tables: a line each, the row first, every test as `file::name`."""
    tests: dict[str, list[str]] = {}
    for line in (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines():
        row = re.match(r"\| ([A-HX]\d+) \|", line)  # I: the invariants
        if row:
            assert row[1] not in tests
            tests[row[1]] = sorted(re.findall(r"`([\w/]+\.py::\w+)`", line))
    return tests


def test_every_row_has_a_test_and_the_document_names_the_tests_of_every_row(request: pytest.FixtureRequest) -> None:
    if is_whole_suite(request.config):
        found = marked(request.session.items)
    else:
        # Collects all tests, which takes as much CPU as a hundred of them.
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.rows"], cwd=TESTS.parent, capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)

    assert ASKED_FOR - found.keys() == set()
    assert documented() == found
