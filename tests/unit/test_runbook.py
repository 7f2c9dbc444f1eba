"""Alerts, runbook and objectives keep together."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
SECTIONS: dict[str, str] = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
ORDER = ["What it means", "Who notices", "First", "What to do", "When to wake somebody"]


def alerts() -> Iterator[dict[str, Any]]:
    for file in RULES.glob("*.yaml"):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            yield from (rule for rule in group["rules"] if "alert" in rule)


def test_every_alert_links_its_section_of_the_runbook_and_every_section_is_of_an_alert() -> None:
    linked = {alert["alert"]: alert["annotations"]["runbook"] for alert in alerts()}
    assert linked
    assert linked == {name: f"docs/runbook.md#{name.lower()}" for name in linked}
    assert set(SECTIONS) == set(linked)


def test_the_runbook_begins_with_a_list_of_its_sections_with_their_severities() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| ([\w, ]+) \|", RUNBOOK, re.MULTILINE)
    found: dict[str, list[str]] = {}
    for alert in alerts():
        found.setdefault(alert["alert"], []).append(alert["labels"]["severity"])
    assert [name for name, _, _ in listed] == list(SECTIONS)
    assert sorted(listed) == sorted((name, name.lower(), ", ".join(severities)) for name, severities in found.items())


def test_every_alert_says_in_one_line_what_is_wrong_and_how_much() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert 15 < len(alert["annotations"]["summary"]) < 90
        assert alert["annotations"]["description"].endswith(".")


@pytest.mark.parametrize("alert", SECTIONS)
def test_a_section_begins_with_a_command_and_what_it_printed(alert: str) -> None:
    text = SECTIONS[alert]
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == ORDER
    (block,) = re.findall(r"^### First\n\n```\n(.*?)\n```\n", text, re.MULTILINE | re.DOTALL)
    command, *printed = block.splitlines()
    assert command.startswith("$ ")
    assert printed
    what_to_do = text.partition("### What to do")[2]
    assert "\n1. " in what_to_do
    assert "\nDo not " in what_to_do


def test_every_command_of_registrar_that_the_runbook_types_exists() -> None:
    from tests.support.approved import the

    registrar = the("registrar")
    typed = set(re.findall(r"(?:\$ |`)registrar ([a-z -]*[a-z])", RUNBOOK))
    assert len(typed) > 10
    for words in typed:
        command = registrar
        for word in words.split():
            commands = getattr(command, "commands", None)
            if commands is None or word.startswith("-"):
                break
            assert word in commands, words
            command = commands[word]


def test_the_rules_of_the_objectives_are_those_that_are_described() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "objectives.py", "--check"], check=False)
    assert done.returncode == 0, "run `make monitoring`, and look at what it changed"
