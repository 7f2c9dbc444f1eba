"""What a process loads before it has anything to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LATER = ("faststream", "aio_pika", "opentelemetry.exporter", "fastapi", "uvicorn")
"""Half of a start together (our measurement), and only needed where a broker or a collector is set, or HTTP is served."""


@pytest.mark.parametrize("module", ["entrypoints.cli.run", "entrypoints.cli.events", "entrypoints.cli.mail"])
def test_what_only_some_processes_use_is_not_loaded_by_all(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {LATER} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
