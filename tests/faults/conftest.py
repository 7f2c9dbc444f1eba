"""What tests of faults stand on: a fleet, a mail server, a journal of all that clients did."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from application.crash_points import CrashPoint, armed
from infrastructure.embedded.postgres import EmbeddedPostgres
from tests.faults.armed import at
from tests.faults.fleet import AT_ONCE, ROOT, Fleet
from tests.faults.reached import note
from tests.faults.scene import Scene
from tests.faults.shell import Shell
from tests.support.postgres import SURVIVES_KILLS, server
from tests.support.releases import FORMER, former_code, run_from
from tests.support.smtp_stub import SmtpStub


class Arm(Protocol):
    def __call__(self, point: CrashPoint, act: Callable[[], object], *, passing: int = 1) -> None: ...


@pytest.fixture
def arm(reached_directory: Path) -> Iterator[Arm]:
    """Arm a crash point in this very process: at that passing `act` is called, which raises or cancels something."""
    with ExitStack() as stack:

        def arm(point: CrashPoint, act: Callable[[], object], *, passing: int = 1) -> None:
            def then() -> None:
                note(reached_directory, point)
                act()

            stack.enter_context(armed(at(point, passing, then)))

        yield arm


@pytest.fixture
def shell(dsn: str, reached_directory: Path) -> Shell:
    """Where an operator types commands of replay, on the test's database."""
    return Shell(dsn, reached_directory)


@pytest.fixture
async def sink() -> AsyncIterator[SmtpStub]:
    """The mail server; well-behaved until told otherwise."""
    async with SmtpStub() as sink:
        yield sink


@pytest.fixture
def former(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Runs a command with the code of the release before, from git's history. In CI a whole clone must have it."""
    code = former_code(tmp_path_factory.mktemp("former"))
    if code is None:
        command = ["git", "rev-parse", "--is-shallow-repository"]
        whole = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() == "false"
        give_up = pytest.fail if whole and os.environ.get("CI", "").lower() in {"1", "true"} else pytest.skip
        give_up(f"git's history with commit {FORMER} is not here; fetch all of it")
    return run_from(code, unknown=["REGISTRAR_LIMITS"])


@pytest.fixture
async def scene(dsn: str, sink: SmtpStub, tmp_path: Path, reached_directory: Path) -> AsyncIterator[Scene]:
    """A fleet without nodes on a fresh database of the shared server, with everything that is recorded of it."""
    async with Scene.on(
        Fleet(dsn, sink.port, directory=tmp_path, reached=reached_directory, stop_delay=AT_ONCE), sink
    ) as scene:
        yield scene


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server for this test alone, which keeps what it acknowledged however it is killed. `start()` revives it."""
    with server(SURVIVES_KILLS) as postgres:
        yield postgres


@pytest.fixture
async def scene_with_own_postgres(
    own_postgres: EmbeddedPostgres, sink: SmtpStub, tmp_path: Path, reached_directory: Path
) -> AsyncIterator[Scene]:
    """As `scene`, on a server that may be killed."""
    fleet = Fleet(own_postgres.dsn, sink.port, directory=tmp_path, reached=reached_directory, stop_delay=AT_ONCE)
    async with Scene.on(fleet, sink) as scene:
        yield scene


@pytest.fixture
async def scene_over_broker(
    dsn: str, broker_url: str, sink: SmtpStub, tmp_path: Path, reached_directory: Path
) -> AsyncIterator[Scene]:
    """As `scene`, with mail over RabbitMQ: a virtual host of the shared node."""
    fleet = Fleet(
        dsn, sink.port, directory=tmp_path, reached=reached_directory, broker_url=broker_url, stop_delay=AT_ONCE
    )
    async with Scene.on(fleet, sink) as scene:
        yield scene
