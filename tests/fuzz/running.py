"""A whole service, as a person runs it, for what strangers do to it; and its log, in which nothing may be a bug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infrastructure.settings.limits import DEFAULTS
from tests.support.commands import clean_environment, started
from tests.support.leaks import must_not_tell
from tests.support.postgres import in_memory

ROOT = Path(__file__).parents[2]
NO_LIMITS = ",".join(f"{limit.name}=off" for limit in DEFAULTS)
"""One machine sends everything here, and the model knows no rate limits."""

BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Running:
    """
    Attributes:
        token: the operators'.
        log: a file.
    """

    url: str
    token: str
    log: Path

    def faults(self) -> list[str]:
        """The lines of its log that say that something went wrong within it."""
        entries = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [json.dumps(entry) for entry in entries if entry["level"] in {"error", "critical"}]


@contextmanager
def running(**settings: str) -> Iterator[Running]:
    """`registrar up` on a data directory and a port of its own."""
    with tempfile.TemporaryDirectory(prefix="registrar-fuzz-", dir=in_memory()) as directory:
        log = Path(directory) / "log"
        up = (BIN / "registrar", "up", "--port", "0", "--data-dir", Path(directory) / "data")
        environment = clean_environment(LOG_FORMAT="json", LIMITS=NO_LIMITS, **settings) | {"LOG": str(log)}
        with started(*("sh", "-c", 'exec "$0" "$@" 2>"$LOG"', *up), until="log follows", environment=environment) as (
            _,
            printed,
        ):
            told = {line.split()[0]: line.split()[-1] for line in printed if line}
            yield Running(told["API"], told["Admin"], log)
        must_not_tell(log.read_text())


def fuzz(service: Running, *options: str) -> subprocess.CompletedProcess[str]:
    """What schemathesis says of the service by its OpenAPI document; options as `schemathesis run --help` has them."""
    command = [
        *(str(BIN / "schemathesis"), "--no-color", "--config-file", str(ROOT / "tests/fuzz/schemathesis.toml"), "run"),
        f"{service.url}/openapi.json",
        *("--header", f"Authorization: Bearer {service.token}", "--header", "X-Reason: fuzzing", *options),
    ]
    # It loads whatever extensions this names.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHEMATHESIS_")}
    with tempfile.TemporaryDirectory() as directory:
        return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
