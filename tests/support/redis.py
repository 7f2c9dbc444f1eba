"""A Redis of the tests' own: on a port and in a directory that are nobody else's."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as CannotConnect
from redis.exceptions import RedisError

from tests.support.rabbitmq import free_ports

START_DEADLINE: Final = 30.0


def demand(config: pytest.Config) -> None:
    """Let a test that needs Redis fail without it, or be skipped where that was asked for."""
    if "redis" in config.getoption("--without"):
        pytest.skip("told to go without Redis")
    if not Path(PrivateRedis.program).exists():
        pytest.fail("redis-server is missing: `scripts/services` installs it, `--without redis` goes without")


class PrivateRedis:
    """One server, which keeps nothing on disk: what is started again is empty.

    Attributes:
        program: that all of them run; Valkey's will do.
        port: TCP, on loopback.
    """

    program: ClassVar[str] = shutil.which("redis-server") or "/usr/bin/redis-server"

    def __init__(self, directory: Path, *options: str) -> None:
        """
        Args:
            options: of `redis-server`, on top of ours.
        """
        (self.port,) = free_ports(1)
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self.program, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory)),
                    *("--save", "", "--appendonly", "no", *self._options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                with self.client() as client:
                    client.ping()
                    return
            except CannotConnect:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    said = (self._directory / "log").read_text(errors="replace")[-2000:]
                    raise AssertionError(f"Redis did not start: {said}") from None
                time.sleep(0.02)
            except RedisError:  # it wants a password: it answers
                return

    def client(self) -> Redis:
        """For the test's own hands."""
        return Redis(port=self.port, socket_timeout=10)

    def ask(self, *words: Any) -> Any:
        """One command."""
        with self.client() as client:
            return client.execute_command(*words)

    def pause(self) -> None:
        """It hangs, with its port open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Repeatable."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, what: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(what)


@contextmanager
def server(*options: str) -> Iterator[PrivateRedis]:
    """A running server, gone at the end of the block whatever was done to it."""
    with tempfile.TemporaryDirectory(prefix="registrar-redis-") as directory:
        redis = PrivateRedis(Path(directory), *options)
        try:
            redis.start()
            yield redis
        finally:
            redis.kill()
