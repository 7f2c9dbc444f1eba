"""A RabbitMQ of the tests' own: on ports, in directories and under a name that are nobody else's."""

# ruff: noqa: S310 - the management API on loopback
from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]
import pytest

PROGRAMS: Final = Path("/usr/lib/rabbitmq/bin")
"""Debian's: the programs behind the wrappers in /usr/sbin, which insist on the system's own node and user."""

_ERL_CALL: Final = "/usr/bin/erl_call"
"""Of erlang-base, which Debian's rabbitmq-server cannot be installed without."""

START_DEADLINE: Final = 120.0
_vhosts = count(1)
_users = count(1)

_REAPER: Final = 'tail --pid="$1" --follow /dev/null; [ -e "$2" ] && kill -9 "$(cat "$2")" 2>&-'
"""Ends a node whose tests were killed before they could; to look once a second takes no processes."""


def is_installed() -> bool:
    return (PROGRAMS / "rabbitmq-server").exists()


def demand(config: pytest.Config) -> None:
    """Let a test that needs RabbitMQ fail without it, or be skipped where that was asked for."""
    if "rabbitmq" in config.getoption("--without"):
        pytest.skip("told to go without RabbitMQ")
    if not is_installed():
        pytest.fail("rabbitmq-server is missing: `scripts/services` installs it, `--without rabbitmq` goes without")


class PrivateRabbit:
    """One node. Everything of it is in `directory`; what was confirmed there outlives a kill of the node.

    Attributes:
        port: AMQP, on loopback.
    """

    def __init__(self, directory: Path, *, config: str = "", ports: Sequence[int] | None = None) -> None:
        """
        Args:
            directory: existing, and empty at the first start.
            config: lines of rabbitmq.conf on top of ours.
            ports: of a node that somebody else has started there; free ones if None.
        """
        self.directory = directory
        self.ports = list(ports or free_ports(4))
        self.port, self._management, self._distribution, self._epmd = self.ports
        self._name = f"registrar{self.port}@localhost"
        if ports is not None:
            return
        (directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self._management}\n"
            "disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.relative = 0.6\n"
            "log.file.level = warning\nloopback_users = none\n" + config
        )
        (directory / "enabled_plugins").write_text("[rabbitmq_management].\n")

    def url(self, vhost: str = "/") -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    @property
    def pid(self) -> int | None:
        """Of the node's latest life; None while it is starting, or before its first."""
        pid = self.directory / "pid"
        written = pid.read_text().strip() if pid.exists() else ""
        return int(written) if written else None

    def start(self) -> None:
        """Start the node and wait until it serves clients."""
        (self.directory / "pid").unlink(missing_ok=True)
        with (self.directory / "node.log").open("ab") as log:
            # In a session of its own, and no child of ours: it outlives the worker of the tests that has started it.
            subprocess.run(
                ["setsid", "--fork", PROGRAMS / "rabbitmq-server"],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                check=True,
            )
        subprocess.run(
            ["setsid", "--fork", "sh", "-c", _REAPER, "reaper", str(_owner()), "pid"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            check=True,
        )
        deadline = time.monotonic() + START_DEADLINE
        while not self._serves():
            if time.monotonic() > deadline:
                said = (self.directory / "node.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"RabbitMQ did not start: {said}")
            time.sleep(0.1)

    @property
    def is_running(self) -> bool:
        return bool(self._processes())

    @property
    def log(self) -> str:
        """What it wrote of warnings and worse."""
        return "".join(file.read_text(errors="replace") for file in (self.directory / "log").glob("*.log"))

    def stop(self) -> None:
        """End the node and the name server that it brought up; repeatable.

        Nobody wants what it kept, and an orderly end waits five seconds for the management of statistics.
        """
        self.kill()
        subprocess.run(
            ["/usr/bin/epmd", "-port", str(self._epmd), "-kill"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=30,
        )

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the node's processes, and see them gone."""
        processes = self._processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        alive = _those_alive(processes, within=30)
        for process in alive:
            process.kill()
        alive = _those_alive(alive, within=30)
        assert not alive, f"{len(alive)} processes of the node outlive it"

    def _processes(self) -> list[psutil.Process]:
        """Those of the session that the node was started in, and have not ended."""
        session = _session_of(self.pid) if self.pid is not None else 0
        those = [one for one in psutil.process_iter() if session and _session_of(one.pid) == session]
        return [one for one in those if not _has_ended(one)]

    def forget(self) -> None:
        """Remove all that the stopped node kept."""
        shutil.rmtree(self.directory / "mnesia", ignore_errors=True)

    def pause(self) -> None:
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        for process in self._processes():
            process.resume()

    def vhost(self) -> str:
        """URL of a new virtual host, empty and for one test alone."""
        name = f"test-{os.getpid()}-{next(_vhosts)}"
        self.ask("PUT", f"vhosts/{name}")
        self.ask("PUT", f"permissions/{name}/guest", {"configure": ".*", "write": ".*", "read": ".*"})
        return self.url(name)

    def user(self, url: str, rights: tuple[str, str, str] | None) -> str:
        """URL of a new user on this virtual host.

        Args:
            rights: to configure, write and read what has a name that matches; None: not even to the virtual host.
        """
        name, vhost = f"user-{os.getpid()}-{next(_users)}", url.rpartition("/")[2]
        self.ask("PUT", f"users/{name}", {"password": "secret", "tags": ""})
        if rights is not None:
            allowed = dict(zip(("configure", "write", "read"), rights, strict=True))
            self.ask("PUT", f"permissions/{vhost}/{name}", allowed)
        return f"amqp://{name}:secret@127.0.0.1:{self.port}/{vhost}"

    def drop(self, url: str) -> None:
        self.ask("DELETE", f"vhosts/{url.rpartition('/')[2]}")

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """A call of the management API: https://rawcdn.githack.com/rabbitmq/rabbitmq-server/v3.10.x/deps/rabbitmq_management/priv/www/api/index.html."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._management}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            told = answer.read()
        return json.loads(told) if told else None

    def control(self, *arguments: str) -> str:
        """`rabbitmqctl`; a second each."""
        done = subprocess.run(
            [PROGRAMS / "rabbitmqctl", *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def evaluate(self, expressions: str) -> str:
        """What Erlang expressions give in the node: `rabbitmqctl eval` in milliseconds, and without the second of
        CPU."""
        done = subprocess.run(
            [_ERL_CALL, "-sname", self._name, "-e"],
            env=self._environment(),
            input=f"{expressions}.\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stdout.startswith("{ok, "), done.stdout + done.stderr
        return done.stdout.removeprefix("{ok, ").rstrip().removesuffix("}")

    def _serves(self) -> bool:
        with suppress(OSError):
            self.ask("GET", "overview")
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        return False

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.directory),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }


class SharedRabbit:
    """One node for all workers of a test run: the first that needs it starts it, whoever ran the tests ends it."""

    def __init__(self, directory: Path) -> None:
        """
        Args:
            directory: the same for all workers, existing.
        """
        self._address = directory / "rabbitmq.json"
        self._lock = directory / "rabbitmq.lock"
        self._home = directory / "rabbitmq"

    def joined(self) -> PrivateRabbit:
        """The node, started if nobody has yet."""
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._address.exists():
                return PrivateRabbit(self._home, ports=json.loads(self._address.read_text()))
            self._home.mkdir()
            rabbit = PrivateRabbit(self._home)
            rabbit.start()
            self._address.write_text(json.dumps(rabbit.ports))
            return rabbit

    def end(self) -> None:
        """Stop the node if there is one."""
        if self._address.exists():
            PrivateRabbit(self._home, ports=json.loads(self._address.read_text())).stop()


@contextmanager
def node(*, config: str = "", prefix: str = "registrar-rabbitmq-") -> Iterator[PrivateRabbit]:
    """A running node, gone at the end of the block whatever was done to it."""
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as directory:
        rabbit = PrivateRabbit(Path(directory), config=config)
        try:
            rabbit.start()
            yield rabbit
        finally:
            rabbit.stop()


def _owner() -> int:
    """Process that runs the tests: what it has started is to be gone when it is."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def _those_alive(processes: Sequence[psutil.Process], *, within: float) -> list[psutil.Process]:
    """Who is left once all have ended or the seconds are over."""
    deadline = time.monotonic() + within
    alive = list(processes)
    while (alive := [one for one in alive if not _has_ended(one)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def _has_ended(process: psutil.Process) -> bool:
    """With all its threads. They are no children of ours, and process 1 of a container may take seconds to reap one."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.NoSuchProcess:
        return True


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now; RabbitMQ takes none of its own choice."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
