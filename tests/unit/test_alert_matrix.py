"""The matrix of faults and alerts is whole, and is the one that the operator reads."""

from __future__ import annotations

import re
from pathlib import Path

from tests.alerts.faults import FAULTS
from tests.unit.test_runbook import SECTIONS

MONITORING = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")


def test_every_alert_is_fired_by_a_real_fault() -> None:
    assert set().union(*(fault.fires | fault.then for fault in FAULTS.values())) == set(SECTIONS)


def test_the_documented_matrix_is_the_one_that_is_tried() -> None:
    written = dict(re.findall(r"^\| ([^|]+) \| (`Registrar\w+`(?:, `Registrar\w+`)*) \|$", MONITORING, re.MULTILINE))
    assert {name: frozenset(re.findall(r"Registrar\w+", alerts)) for name, alerts in written.items()} == {
        name: fault.fires | fault.then for name, fault in FAULTS.items()
    }
