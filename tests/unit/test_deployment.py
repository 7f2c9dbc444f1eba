"""What runs the service for real (compose.yaml, Dockerfile, deploy/, README.md) agrees with the service."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from entrypoints.api.http_server import KEEP_ALIVE
from entrypoints.api.problems import PREFIX, STATUS_OF
from infrastructure.settings.environment import PREFIX as SETTINGS
from infrastructure.settings.settings import Settings

ROOT = Path(__file__).parents[2]
DEFAULTS = Settings()


def text(name: str) -> str:
    return (ROOT / name).read_text()


def seconds(pattern: str, name: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text(name))]


@pytest.mark.parametrize("name", ["compose.yaml", "Dockerfile", "deploy/registrar@.service", "README.md"])
def test_every_setting_that_is_named_there_exists(name: str) -> None:
    named = set(re.findall(rf"\b{SETTINGS}([A-Z_]*[A-Z])", text(name)))
    assert named
    assert {one.lower() for one in named} <= set(Settings.model_fields)


def test_the_image_holds_every_package() -> None:
    setuptools = tomllib.loads(text("pyproject.toml"))["tool"]["setuptools"]
    packages = [pattern.removesuffix("*") for pattern in setuptools["packages"]["find"]["include"]]
    assert re.findall(r"^COPY (\w+) \1$", text("Dockerfile"), re.MULTILINE) == packages
    assert {f"!{package}" for package in packages} < set(text(".dockerignore").splitlines())


def test_no_secret_gets_into_the_image_or_a_commit() -> None:
    assert text(".dockerignore").splitlines()[1] == "*"
    assert ".env" in text(".gitignore").splitlines()


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("compose.yaml", r"\n  stop_grace_period: (\d+)s"), ("deploy/registrar@.service", r"TimeoutStopSec=(\d+)")],
)
def test_nothing_is_killed_while_it_stops_in_order(name: str, pattern: str) -> None:
    (delay,) = seconds(r'REGISTRAR_STOP_DELAY: "(\d+)"', "compose.yaml")
    listener = delay + DEFAULTS.request_timeout.total_seconds()
    (patience,) = seconds(pattern, name)
    assert patience > listener + DEFAULTS.send_timeout.total_seconds() + 5


def test_the_proxy_waits_longer_than_the_api_and_keeps_connections_shorter() -> None:
    (waits,) = seconds(r"proxy_read_timeout (\d+)s", "deploy/nginx.conf")
    assert waits > DEFAULTS.request_timeout.total_seconds()
    *_, keeps = seconds(r"keepalive_timeout (\d+)s", "deploy/nginx.conf")
    assert keeps < KEEP_ALIVE.total_seconds()


def test_the_proxy_uses_one_that_came_back_before_the_next_one_is_gone() -> None:
    (delay,) = seconds(r'REGISTRAR_STOP_DELAY: "(\d+)"', "compose.yaml")
    assert max(seconds(r"fail_timeout=(\d+)s", "deploy/nginx.conf")) < delay


def test_the_proxy_shows_nothing_but_the_public_routes() -> None:
    passed = re.findall(r"location (.*?) +{ proxy_pass", text("deploy/nginx.conf"))
    assert passed == ["= /v1/registrations", "/v1/registrations/", "= /health/live", "= /health/ready"]


def test_the_proxy_answers_in_the_apis_words() -> None:
    answers = re.findall(r"return (\d+) '(.*)';", text("deploy/nginx.conf"))
    assert len(answers) == 5
    for status, body in answers:
        problem = json.loads(body.replace(r"\'", "'"))
        assert problem["status"] == int(status) == STATUS_OF[problem["type"].removeprefix(PREFIX)]
