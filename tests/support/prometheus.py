"""A Prometheus of the tests' own, and the tool that comes with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.rabbitmq import free_ports

PROGRAM: Final = shutil.which("prometheus") or "/usr/bin/prometheus"
PROMTOOL: Final = shutil.which("promtool") or "/usr/bin/promtool"
START_DEADLINE: Final = 60.0


def demand(config: pytest.Config) -> None:
    """Let a test that needs Prometheus fail without it, or be skipped where that was asked for."""
    if "prometheus" in config.getoption("--without"):
        pytest.skip("told to go without Prometheus")
    if not Path(PROMTOOL).exists():
        pytest.fail("prometheus is missing: `scripts/services` installs it, `--without prometheus` goes without")


def promtool(*arguments: str | Path, said: str | None = None) -> str:
    """What `promtool` prints, if it finds no fault.

    Args:
        said: on its standard input.
    """
    # It takes a sixth less CPU if it collects its garbage rarely, and then 100 MB.
    environment = {**os.environ, "GOGC": "800"}
    done = subprocess.run(
        [PROMTOOL, *arguments], input=said, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class PrivatePrometheus:
    """One server, with the configuration that is in its directory.

    Attributes:
        url: of its API, on loopback.
    """

    def __init__(self, directory: Path) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    PROGRAM,
                    f"--config.file={self._directory / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_DEADLINE
        while not self._is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError((self._directory / "log").read_text(errors="replace")[-3000:])
            time.sleep(0.05)

    def ask(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=query, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def firing(self) -> dict[str, set[str]]:
        """The severities of the alerts that fire, by name."""
        found: dict[str, set[str]] = {}
        for alert in self.ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], set()).add(alert["labels"]["severity"])
        return found

    def end(self) -> None:
        """Repeatable."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def server(directory: Path) -> Iterator[PrivatePrometheus]:
    """A running server, gone at the end of the block."""
    prometheus = PrivatePrometheus(directory)
    try:
        prometheus.start()
        yield prometheus
    finally:
        prometheus.end()
