"""The wheel, installed where the checkout cannot be seen, has everything that `registrar up` needs.

The running Python does it in every run, with the libraries of the tests. `make test-wheel` does it with every Python
that pyproject.toml names, each with the locked libraries in a new environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

from tests.support.commands import PATIENCE, clean_environment, started, stop

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
PROMISED = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def succeed(*command: str | Path, cwd: Path) -> str:
    """What the command printed; a failure shows all of it."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources() -> set[str]:
    """The files of the five packages, as the checkout has them."""
    listed = succeed("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGES, cwd=ROOT)
    return {name for name in listed.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def away() -> Iterator[Path]:
    """A directory outside of the checkout that the database's user can pass, which pytest's are not."""
    path = Path(tempfile.mkdtemp(prefix="registrar-wheel-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def wheel(away: Path) -> Path:
    """Built from a copy, as the build writes beside the sources; fetches nothing."""
    for name in ("pyproject.toml", "README.md", "LICENSE", *sources()):
        copy = away / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    alone = ("--no-deps", "--no-build-isolation", "--no-index")
    succeed(*PIP, "wheel", *alone, "--wheel-dir", away / "wheel", away / "source", cwd=away)
    (built,) = (away / "wheel").iterdir()
    return built


def interpreter(version: str) -> Path | None:
    """A Python of this version: the running one, one on the path, or one of pyenv's."""
    if version == RUNNING:
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
    asked = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:  # pyenv puts programs on the path that only say which versions there are
        done = subprocess.run([candidate, "-c", asked], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return candidate
    return None


def installed(wheel: Path, python: Path, environment: Path, *, locked: bool) -> Path:
    """The `python` of a new environment with the wheel, and with the locked libraries or those of the tests."""
    succeed(python, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    inside = environment / "bin/python"
    pip = (*PIP, "--python", inside, "install", "--quiet")
    if locked:
        succeed(*pip, "--require-hashes", "--requirement", ROOT / "requirements.lock", cwd=wheel.parent)
    else:
        # Only the folder: what leads from it to the checkout is a .pth file, and those count in an environment's own.
        (site,) = environment.glob("lib/python*/site-packages")
        folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (site / "borrowed.pth").write_text("".join(f"{folder}\n" for folder in sorted(folders)))
    succeed(*pip, "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    return inside


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {Path(name).suffix for name in files} == {
        ".py",
        ".sql",
        ".html",
        ".css",
        ".js",
        ".ico",
        ".txt",
        ".lua",
        ".gz",
    }
    assert files == sources()


@pytest.mark.slow
@pytest.mark.timeout(900)  # the locked libraries take a minute to install, more on a busy machine
@pytest.mark.parametrize("version", [RUNNING, *(version for version in PROMISED if version != RUNNING)])
def test_the_installed_wheel_takes_a_registration_to_its_end(
    version: str, wheel: Path, away: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = bool(pytestconfig.getoption("every_python"))
    if version != RUNNING and not every:
        pytest.skip(f"`make test-wheel` does it with Python {version}")
    base = interpreter(version)
    if base is None:
        pytest.skip(f"no Python {version} here: install it (python{version} on Debian and Ubuntu, or with pyenv)")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    environment = away / version
    python = installed(wheel, base, environment, locked=every)

    assert all(package.is_relative_to(environment) for package in imported(python, away))
    with (
        started(
            *(python.with_name("registrar"), "up", "--port", "0", "--data-dir", away / f"data-{version}"),
            until="log follows",
            environment=clean_environment(),
            directory=away,
        ) as (process, printed),
        httpx.Client(base_url=next(line.split()[1] for line in printed if line.startswith("API"))) as client,
    ):
        pages = {page: client.get(page, timeout=PATIENCE).status_code for page in ("/mailbox", "/docs", "/metrics")}
        verified = register_and_verify(client)
        code, _ = stop(process)

    assert pages == dict.fromkeys(pages, 200)
    assert verified.status_code == 200
    assert code == 0


def imported(python: Path, directory: Path) -> list[Path]:
    """Where this Python finds the five packages."""
    ask = "import importlib, sys; print(*(importlib.import_module(name).__file__ for name in sys.argv[1:]), sep='\\n')"
    places = succeed(python, "-c", ask, *PACKAGES, cwd=directory).splitlines()
    assert len(places) == len(PACKAGES)
    return [Path(place) for place in places]


def register_and_verify(client: httpx.Client) -> httpx.Response:
    """Register, wait for the mail, and offer the code in it."""
    person = {"email": "ada@example.com", "name": "Ada Lovelace"}
    accepted = client.post("/v1/registrations", json=person, timeout=PATIENCE).raise_for_status().json()
    deadline = time.monotonic() + PATIENCE
    while not (messages := client.get("/mailbox/messages", timeout=PATIENCE).json()):
        assert time.monotonic() < deadline
    code = re.search(r"^\s*(\d{6})\s*$", messages[0]["text"], re.MULTILINE)
    assert code
    route = f"/v1/registrations/{accepted['registration_id']}/verification"
    return client.post(route, json={"code": code[1]}, timeout=PATIENCE)
