"""`registrar serve` and `registrar process` as programs of their own, for a test that looks at one of them alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import httpx
import psutil  # type: ignore[import-untyped]

from tests.faults.fleet import AT_ONCE
from tests.support.facts import eventually
from tests.support.http import NO_TLS
from tests.support.log import query
from tests.support.preforked import Forked, fork

ROOT = Path(__file__).parents[2]
_UP = re.compile(r"^(?:API +(?P<url>http\S+)|Following the log)", re.MULTILINE)


@dataclass
class Program:
    """A running program.

    Attributes:
        port: where it serves, 0 if it does not.
    """

    popen: subprocess.Popen[bytes] | Forked
    log: Path
    port: int = 0

    @property
    def written(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def runs(self) -> bool:
        return self.popen.poll() is None

    @property
    def resources(self) -> psutil.Process:
        return psutil.Process(self.popen.pid)

    @property
    def peak_memory(self) -> int:
        """Bytes that it had in memory when it had most."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[0]) * 1024

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.popen.pid, number)

    async def ends(self, *, within: float = 60) -> int:
        """Its exit status, once it has ended."""
        await eventually(lambda: not self.runs, within=within)
        return self.popen.wait()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=30, verify=NO_TLS) as http:
            yield http


@asynccontextmanager
async def program(
    dsn: str, *arguments: str, how: dict[str, Any] | None = None, errors: IO[bytes] | None = None, **settings: str
) -> AsyncIterator[Program]:
    """Run `registrar` with these arguments until the end of the block, unless it ends itself.

    Args:
        how: see `tests.faults.launcher`; None: as it should be.
        errors: where standard error goes; None: where the rest of what it prints goes.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRAR_")}
    environment |= {"REGISTRAR_DATABASE_URL": dsn, "REGISTRAR_MASTER_KEY": "7" * 64, "REGISTRAR_LOG_FORMAT": "json"}
    environment |= {f"REGISTRAR_{name.upper()}": value for name, value in ({"stop_delay": AT_ONCE} | settings).items()}
    with tempfile.TemporaryDirectory(prefix="registrar-program-") as directory:
        log = Path(directory) / "log"
        with log.open("ab") as output:
            popen = _begun(arguments, how, environment, output, errors or output)
        running = Program(popen, log)
        try:
            running.port = await _until_up(running)
            yield running
        finally:
            for number in (signal.SIGCONT, signal.SIGTERM):
                if running.runs:
                    running.signal(number)
            try:
                await eventually(lambda: not running.runs, within=60)
            finally:
                if running.runs:
                    popen.kill()
                popen.wait()


def _begun(
    arguments: Sequence[str],
    how: Mapping[str, Any] | None,
    environment: Mapping[str, str],
    output: IO[bytes],
    errors: IO[bytes],
) -> subprocess.Popen[bytes] | Forked:
    """Blocks for the milliseconds of a fork."""
    if how is None:
        return fork(*arguments, environment=environment, stdout=output, stderr=errors)
    command = [sys.executable, "-m", "tests.faults.launcher", json.dumps(how), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors)


async def _until_up(running: Program) -> int:
    def up() -> re.Match[str] | None:
        assert running.runs, running.written
        return _UP.search(running.written)

    found: re.Match[str] = await eventually(up, within=60)
    return urlsplit(found["url"]).port or 0 if found["url"] else 0


def serve(dsn: str, *, how: dict[str, Any] | None = None, **settings: str) -> Any:
    """`registrar serve` on a free port."""
    return program(dsn, "serve", "--port", "0", how=how, errors=None, **settings)


@asynccontextmanager
async def process(
    dsn: str, smtp_port: int, *, how: dict[str, Any] | None = None, leads: bool = True, **settings: str
) -> AsyncIterator[Program]:
    """`registrar process` with this mail server.

    Args:
        leads: wait until it leads in everything.
    """
    settings = {"smtp_urls": f"smtp://127.0.0.1:{smtp_port}?starttls=never"} | settings
    async with program(dsn, "process", how=how, errors=None, **settings) as running:
        if leads:
            await eventually(lambda: _all_led(dsn), within=60)
        yield running


async def _all_led(dsn: str) -> bool:
    """Six read models, the saga and the relay have a leader."""
    (row,) = await query(
        dsn,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = hashtext('registrar follower')::oid"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    return bool(row[0] >= 8)
