"""An nginx of the tests' own, with the configuration of `deploy/`."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support.proxied import configuration, kept_ports

_PROGRAM: Final = shutil.which("nginx") or "/usr/sbin/nginx"


def demand(config: pytest.Config) -> None:
    """Let a test that needs nginx fail without it, or be skipped where that was asked for."""
    if "nginx" in config.getoption("--without"):
        pytest.skip("told to go without nginx")
    if not Path(_PROGRAM).exists():
        pytest.fail("nginx is missing: `scripts/services` installs it, `--without nginx` goes without")


class PrivateNginx:
    """See `tests.support.proxied.Proxy`."""

    name = "nginx"

    def __init__(self, directory: Path) -> None:
        (self.port,) = kept_ports(1)
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    async def use(self, backends: Sequence[int], *change: tuple[str, str]) -> None:
        self.end()
        file = self._directory / "nginx.conf"
        file.write_text(configuration(self.name, self.port, backends, change, run=str(self._directory)))
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([_PROGRAM, "-p", self._directory, "-c", file], stdout=log, stderr=log)  # noqa: ASYNC220

    def end(self) -> None:
        """Repeatable."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
            self._process = None
