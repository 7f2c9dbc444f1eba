"""The processes of a measurement: the real service, what it is compared with, the load, and what each of them costs."""

# ruff: noqa: S603 - every program is this interpreter, called with lists of arguments
from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
import psycopg

ROOT = Path(__file__).resolve().parent.parent
MASTER_KEY = "00112233445566778899aabbccddeeff" * 2
_START_DEADLINE = 30.0
_NOTHING: Mapping[str, str] = {}
_REGISTRAR = str(Path(sys.executable).with_name("registrar"))


class Process:
    """A process that was started for a measurement.

    Attributes:
        port: where it listens, 0 if it does not.
    """

    def __init__(self, popen: subprocess.Popen[str], port: int) -> None:
        self.popen = popen
        self.port = port

    @property
    def pid(self) -> int:
        return self.popen.pid

    def ask(self, question: str = "") -> Any:
        """Send a line, and answer the JSON line that comes back."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(question + "\n")
        self.popen.stdin.flush()
        return json.loads(self.popen.stdout.readline())


@contextmanager
def running(
    arguments: list[str], ready: str, environment: dict[str, str] | None = None, tree: Path = ROOT
) -> Iterator[Process]:
    """Run until the end of the block. It is up when it prints a line that begins with `ready`; a URL in it is its
    address."""
    popen = subprocess.Popen(
        arguments,
        cwd=tree,
        env=_environment() | (environment or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Process(popen, _port(_line(popen, ready)))
    finally:
        popen.send_signal(signal.SIGTERM)
        try:
            popen.wait(30)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def _environment() -> dict[str, str]:
    """Ours, without settings of a service, and without unbuffered output: that one cuts off long answers."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("REGISTRAR_") and name != "PYTHONUNBUFFERED"
    }


def _line(popen: subprocess.Popen[str], begins: str) -> str:
    assert popen.stdout is not None
    deadline = time.monotonic() + _START_DEADLINE
    while time.monotonic() < deadline and popen.poll() is None:
        if select.select([popen.stdout], [], [], 0.1)[0]:
            line = popen.stdout.readline()
            if line.startswith(begins):
                return line
    raise RuntimeError(f"{popen.args!r} did not come up")


def _port(line: str) -> int:
    words = [word for word in line.split() if word.startswith("http://") or word.isdigit()]
    return 0 if not words else int(words[0]) if words[0].isdigit() else urlsplit(words[0]).port or 0


def _settings(dsn: str) -> dict[str, str]:
    return {"REGISTRAR_DATABASE_URL": dsn, "REGISTRAR_MASTER_KEY": MASTER_KEY, "REGISTRAR_LOG_FORMAT": "json"}


@contextmanager
def registrar_serve(dsn: str, settings: Mapping[str, str] = _NOTHING) -> Iterator[Process]:
    """`registrar serve`, as an operator would start it, on a free port."""
    with running([_REGISTRAR, "serve", "--port", "0"], "API", _settings(dsn) | dict(settings)) as process:
        yield process


@contextmanager
def serve_hashing_least(dsn: str, settings: Mapping[str, str] = _NOTHING) -> Iterator[Process]:
    """`registrar serve`, to which a password is hardly any work. See `bench.least_hashing`."""
    arguments = [sys.executable, "-m", "bench.least_hashing", "serve", "--port", "0"]
    with running(arguments, "API", _settings(dsn) | dict(settings)) as process:
        yield process


@contextmanager
def registrar_process(dsn: str, smtp_port: int, settings: Mapping[str, str] = _NOTHING) -> Iterator[Process]:
    """`registrar process`, with the sink as its mail server."""
    with running([_REGISTRAR, "process"], "Following", mailing(dsn, smtp_port) | dict(settings)) as process:
        until_it_leads(dsn)
        yield process


@contextmanager
def registrar_work(dsn: str, smtp_port: int, settings: Mapping[str, str]) -> Iterator[Process]:
    """`registrar work`, with the sink as its mail server; `settings` names the broker."""
    with running([_REGISTRAR, "work"], "Taking", mailing(dsn, smtp_port) | dict(settings)) as process:
        yield process


@contextmanager
def of_build(tree: Path | None, *words: str, ready: str, settings: Mapping[str, str]) -> Iterator[Process]:
    """A command of a build: of the checkout there, with the libraries in its `.venv`, or of this one."""
    program = _REGISTRAR if tree is None else str(tree / ".venv" / "bin" / "registrar")
    ours = {"REGISTRAR_MASTER_KEY": MASTER_KEY, "REGISTRAR_LOG_FORMAT": "json"}
    with running([program, *words], ready, ours | dict(settings), tree=tree or ROOT) as process:
        yield process


def mailing(dsn: str, smtp_port: int) -> dict[str, str]:
    """Settings of a process that follows the log or sends mails."""
    # As many mails as there are: measured is how fast they can be sent, not how fast they may.
    smtp_url = f"smtp://127.0.0.1:{smtp_port}?starttls=never"
    return _settings(dsn) | {"REGISTRAR_SMTP_URLS": smtp_url, "REGISTRAR_LIMITS": "mails=off"}


@contextmanager
def sink() -> Iterator[Process]:
    """A mail server that takes everything at once."""
    with running([sys.executable, "-m", "bench.sink"], "listening") as process:
        yield process


@contextmanager
def empty_endpoint() -> Iterator[Process]:
    """The same framework and server with nothing behind it."""
    with running([sys.executable, "-m", "bench.empty_endpoint"], "listening") as process:
        yield process


@contextmanager
def refusing(tree: Path, *options: str) -> Iterator[Process]:
    """A server that refuses everything, of the checkout there; on the first core. See `bench.refusing`."""
    arguments = [sys.executable, str(ROOT / "bench" / "refusing.py"), *options]
    with running(arguments, "listening", tree=tree) as process, pinned(process.pid, SERVICE):
        yield process


SERVICE, REST = 0, 1
"""Cores of the service, and of the load and the database, where their CPU is kept apart."""


@contextmanager
def pinned(pid: int, core: int) -> Iterator[None]:
    """Keep a process, and those that it has started or starts, on one core; with fewer cores they stay as they are."""
    _keep_on(pid, [core])
    try:
        yield
    finally:
        _keep_on(pid, None)


def _keep_on(pid: int, cores: list[int] | None) -> None:
    every = list(range(os.cpu_count() or 1))
    if cores is None or set(cores) <= set(every):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.cpu_affinity(cores or every)


@contextmanager
def beside(module: str, *arguments: str) -> Iterator[Process]:
    """A module of the benchmark that goes on in a process of its own, from the first line that it prints on."""
    with running([sys.executable, "-m", module, *arguments], "") as process:
        yield process


def run_job(module: str, job: dict[str, Any], environment: Mapping[str, str] = _NOTHING) -> Any:
    """Run a module of the benchmark in a process of its own: arguments in and outcome out as JSON.

    Args:
        environment: beside ours.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(job)],
        cwd=ROOT,
        env=_environment() | dict(environment),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def command(dsn: str, *words: str, settings: Mapping[str, str] = _NOTHING) -> float:
    """Run a command of the command line to its end; answers seconds."""
    started = time.perf_counter()
    environment = _environment() | _settings(dsn) | dict(settings)
    subprocess.run([_REGISTRAR, *words], env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def load(process: Process, **job: Any) -> Any:
    """Put load on a process; answers the outcome as `tests.support.load` prints it."""
    return run_job("tests.support.load", job | {"port": process.port})


def with_warm_up(seconds: float) -> float:
    """The closed loop works for a second more than it counts: by how much the CPU has to be shared out."""
    return (seconds + 1.0) / seconds


def load_apart(process: Process, **job: Any) -> Any:
    """`load`, from a core of its own."""
    return load(process, core=REST, **job)


def until_it_leads(dsn: str) -> None:
    """All followers have a leader: the first mail need not wait for that."""
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = hashtext('registrar follower')::oid AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    deadline = time.monotonic() + _START_DEADLINE
    with psycopg.connect(dsn, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(query).fetchone()
            if row is not None and row[0] >= 8:  # six read models, the saga, the relay
                return
            time.sleep(0.05)
    raise RuntimeError("the followers did not come up")


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used, all its threads together."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def cpu_of_postgres(postmaster: int, dsn: str) -> dict[str, float]:
    """CPU seconds of the server's processes by what they do: whom a backend serves, or the background work's name."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        names: dict[int, str] = dict(
            connection.execute(
                "SELECT pid, coalesce(nullif(application_name, ''), backend_type) FROM pg_stat_activity"
            ).fetchall()
        )
    found: dict[str, float] = {}
    for child in psutil.Process(postmaster).children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        name = names.get(child.pid, "other")
        found[name] = found.get(name, 0.0) + times.user + times.system
    return found
