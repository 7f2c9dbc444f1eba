"""The clients that `make clients` generates are strict under their type checkers, and do what an application needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.running import Running, running

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOOLS = ROOT / "build" / "clients"

CAME = {
    "register": [202, "PENDING"],
    "the same key again": [True, "true"],
    "no address": [422, "invalid-request", "email"],
    "look": ["PENDING", 5, True],
    "a wrong code": [422, "wrong-code", 4],
    "the code": [200, True],
    "in the end": ["ACTIVE", True],
    "an unknown id": [404, "unknown-registration"],
    "no operator": [401, "unauthorized"],
    "an operator": [[True, "Ada Lovelace", "ACTIVE"]],
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def succeed(*command: str | Path, cwd: Path, **environment: str) -> str:
    path = f"{TOOLS / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | {"PATH": path} | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def generated(full_size: bool) -> Path:
    if not full_size:
        pytest.skip("needs tools of npm: make test-clients")
    succeed(ROOT / "scripts" / "clients", cwd=ROOT)
    return ROOT / "clients"


@pytest.fixture(scope="module")
def service(generated: Path) -> Iterator[Running]:
    with running() as service:
        yield service


@pytest.fixture(scope="module")
def typescript(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of an application that has the client in it."""
    project = tmp_path_factory.mktemp("typescript")
    for name in ("contract.ts", "tsconfig.json", "package.json"):
        shutil.copy(HERE / "typescript" / name, project)
    shutil.copytree(generated / "typescript", project / "client")
    (project / "node_modules").symlink_to(TOOLS / "node_modules")
    return project


def test_the_python_client_takes_a_registration_to_its_end(generated: Path, service: Running) -> None:
    said = succeed(
        *(TOOLS / "bin" / "python", HERE / "contract.py", service.url, service.token, "python@example.com"),
        cwd=ROOT,
        PYTHONPATH=str(generated / "python"),
    )
    assert came_of(said) == CAME


def test_the_typescript_client_takes_a_registration_to_its_end(typescript: Path, service: Running) -> None:
    succeed("node_modules/.bin/tsc", cwd=typescript)
    said = succeed(*("node", "dist/contract.js", service.url, service.token, "typescript@example.com"), cwd=typescript)
    assert came_of(said) == CAME


def test_the_python_client_is_strict_under_mypy(generated: Path) -> None:
    checked = ("registrar_client", HERE / "contract.py")
    succeed(TOOLS / "bin" / "mypy", "--strict", *checked, cwd=generated / "python")


def test_a_wrong_use_is_an_error_of_the_type_checkers(typescript: Path, generated: Path) -> None:
    (typescript / "wrong.ts").write_text(
        'import { verifyEmail } from "./client/index.js";\n'
        'await verifyEmail({ path: { registration_id: "x" }, body: { kode: "1" } });\n'
    )
    with pytest.raises(AssertionError, match="kode"):
        succeed("node_modules/.bin/tsc", "--noEmit", "--strict", "--module", "NodeNext", "wrong.ts", cwd=typescript)


def came_of(said: str) -> dict[str, Any]:
    return dict(json.loads(said))
