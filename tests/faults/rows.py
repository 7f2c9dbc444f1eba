"""Which tests inject which rows of the fault matrix: `python -m tests.faults.rows` prints it as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]

ASKED_FOR: Final = frozenset(
    {
        *(f"A{n}" for n in range(1, 26)),
        *(f"B{n}" for n in (*range(1, 6), *range(8, 15), *range(18, 22), *range(23, 27))),
        *(f"C{n}" for n in (*range(1, 7), *range(8, 17), 18)),
        *(f"D{n}" for n in (*range(1, 6), *range(7, 12))),
        *(f"E{n}" for n in (*range(1, 24), 26)),
        *("F1", "F2", "F3", "F4", "F6", "F7", "F8", "F10", "F12", "F13"),
        *("G1", "G3", "G4", "H1", "H2", "H3", "X5", "X6", "X7", "X9"),
    }
)
"""More may be tested."""


def marked(items: Iterable[pytest.Item]) -> dict[str, list[str]]:
    """Tests by row, as `file::name`: read off their marks."""
    tests: dict[str, set[str]] = {}
    for item in items:
        name = f"{item.path.relative_to(TESTS).as_posix()}::{item.name.partition('[')[0]}"
        for mark in item.iter_markers("fault"):
            for row in mark.args:
                tests.setdefault(row, set()).add(name)
    return {row: sorted(names) for row, names in sorted(tests.items())}


class _Collector:
    """Keeps what pytest collects."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items


def _main() -> None:
    collector = _Collector()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", str(TESTS)], plugins=[collector])
    json.dump(marked(collector.items), sys.stdout, indent=1)


if __name__ == "__main__":
    _main()
