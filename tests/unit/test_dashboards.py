"""The dashboards are those that are described, in a form that Grafana takes, and show what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.prometheus import demand, promtool

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
METRIC = re.compile(r"\b(?:registrar|process)_[a-z_]+\b")


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in FILES]


def expressions() -> list[str]:
    return [target["expr"] for one in dashboards() for panel in one["panels"] for target in panel["targets"]]


def rules() -> dict[str, str]:
    """The expressions of all rules, by what they record or are called."""
    found = {}
    for file in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yaml"):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                found[rule.get("record") or rule["alert"] + rule["labels"]["severity"]] = rule["expr"]
    return found


def exposed() -> set[str]:
    """What a running service shows (`tests/integration/test_metrics.py` compares the two)."""
    listed = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8").partition("## Metrics\n")[2]
    return set(re.findall(r"`((?:registrar|process)_\w+)", listed.partition("\n## ")[0]))


def named_in(*texts: str) -> set[str]:
    """Metrics by the names that a service shows them under."""
    found = set()
    for text in texts:
        for name in METRIC.findall(text):
            found.add(name if name in exposed() else re.sub(r"_(bucket|count|sum)$", "", name))
    return found


def test_they_are_those_that_are_described() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "dashboards.py", "--check"], check=False)
    assert done.returncode == 0, "run `make monitoring`, and look at what it changed"


def test_grafana_knows_each_by_a_uid_of_its_own_and_finds_its_data() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    (uid,) = [one["uid"] for one in source["datasources"]]
    found = dashboards()
    assert len({one["uid"] for one in found}) == len(found) == 9
    for one in found:
        assert {"apiVersion", "kind", "spec", "id"} & set(one) == set()  # the newer form, or a database's
        assert one["schemaVersion"] == 39
        assert [panel["id"] for panel in one["panels"]] == [*range(1, len(one["panels"]) + 1)]
        for panel in one["panels"]:
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {uid}


def test_no_two_panels_are_in_the_same_place() -> None:
    for one in dashboards():
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in one["panels"]]
        assert len(set(places)) == len(places)
        assert {panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in one["panels"]} <= {12, 24}


def test_prometheus_understands_each_expression(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    demand(pytestconfig)
    records = [
        {"record": f"panel:number{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": records}]}))

    assert f"{len(records)} rules found" in promtool("check", "rules", file)


def test_every_metric_in_a_rule_a_panel_or_the_runbook_is_one_that_a_service_shows() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    found = named_in(*rules().values(), *expressions(), runbook)
    prefixes = {name for name in found if name.endswith("_")}  # as in a `grep`
    assert len(found) > 40
    assert found - prefixes - exposed() == set()
    assert [name for name in prefixes if not any(one.startswith(name) for one in exposed())] == []


def test_every_recorded_series_on_a_panel_is_recorded() -> None:
    used = set(re.findall(r"registrar:\w+:\w+", "\n".join(expressions())))
    assert used
    assert used - set(rules()) == set()


def test_every_metric_is_on_a_panel_or_in_the_list_of_those_that_are_not() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8").partition("## Not on a panel\n")[2]
    left_out = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert named_in(*expressions()) | left_out == exposed()
    assert named_in(*expressions()) & left_out == set()
