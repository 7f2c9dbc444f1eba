"""What we depend on: audited against a database of vulnerabilities, and listed in a bill of materials."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


# --- The audit ----------------------------------------------------------------------------------


def vulnerability(*fixed: str) -> dict[str, Any]:
    """An entry as the database of OSV has it, and the versions that do not have it."""
    events = [{"introduced": "0"}, *({"fixed": version} for version in fixed)]
    affected = {"package": {"ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    return {"id": "GHSA-xxxx-test", "schema_version": "1.0.0", "affected": [affected]}


@contextmanager
def database(**known: dict[str, Any]) -> Iterator[str]:
    """A database of vulnerabilities, by the names of packages, that answers as OSV's."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            entry = known.get(name)
            if entry is not None:
                entry["affected"][0]["package"]["name"] = name
            body = json.dumps({"vulns": [entry]} if entry is not None else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/audit-deps", "--vulnerability-service=osv", f"--osv-url={url}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_everything_that_is_locked_is_audited() -> None:
    locked = re.findall(r"^[a-z0-9-]+==", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE)
    with database() as url:
        done = audit(url)

    assert done.returncode == 0, done.stderr
    audited, found = map(int, re.findall(r"(\d+) of (\d+) packages audited", done.stdout)[0])
    assert audited == found
    # All but what another system or Python would need.
    assert len(locked) - 6 <= found <= len(locked)


def test_a_vulnerability_that_can_be_fixed_fails_the_audit() -> None:
    with database(cryptography=vulnerability("999.1"), pytest=vulnerability()) as url:
        done = audit(url)

    assert done.returncode == 1
    assert re.search(r"cryptography \S+ \(what runs\): GHSA-xxxx-test, fixed in 999\.1", done.stdout)
    assert re.search(r"pytest \S+ \(tools only\): GHSA-xxxx-test, not fixed yet", done.stdout)


def test_a_vulnerability_that_nobody_can_fix_yet_is_shown() -> None:
    with database(pytest=vulnerability()) as url:
        done = audit(url)

    assert (done.returncode, "not fixed yet" in done.stdout) == (0, True)


def test_a_database_that_cannot_be_asked_is_no_pass() -> None:
    done = audit("http://127.0.0.1:9/")

    assert done.returncode == 2
    assert "NOTHING WAS AUDITED" in done.stderr


def test_a_package_that_the_database_does_not_know_is_no_pass() -> None:
    program = "import runpy; audit = runpy.run_path('scripts/audit-deps'); "
    program += "exit(audit['report']([{'name': 'a', 'version': '1', 'vulns': []}, {'name': 'b', 'skip_reason': 'x'}]))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, "NOT AUDITED: 1 packages" in done.stderr) == (2, True)


# --- The bill of materials ------------------------------------------------------------------------


def bill(lock: str, to: Path) -> str:
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    command = ["scripts/bill-of-materials", lock, str(to)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return to.read_text()


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The bill of a lock file, made once: that takes seconds."""
    return cache(lambda lock: bill(lock, tmp_path_factory.mktemp("bills") / "bom.json"))


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-image.lock"])
def test_the_bill_of_materials_lists_what_is_locked_with_its_hashes(lock: str, bills: Callable[[str], str]) -> None:
    # Here and not above: each worker would load them at its start, which takes a second or two.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = bills(lock)

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    assert document["metadata"]["component"]["name"] == "registrar"
    listed = {
        f"{one['name']}=={one['version']}": {
            each["content"] for reference in one["externalReferences"] for each in reference["hashes"]
        }
        for one in document["components"]
    }
    assert listed == locked_in(lock)
    assert str(ROOT) not in text


def locked_in(lock: str) -> dict[str, set[str]]:
    """The hashes of each version."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if named := re.match(r"([a-z0-9-]+)(?:\[[a-z,]+\])?==([^ ;]+)", line):
            hashes = found.setdefault(f"{named[1]}=={named[2]}", set())
        hashes |= set(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
    return found


def test_the_same_lock_file_gives_the_same_bill(tmp_path: Path, bills: Callable[[str], str]) -> None:
    assert bill("requirements.lock", tmp_path / "other.json") == bills("requirements.lock")
