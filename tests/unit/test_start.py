"""What a process loads before it has anything to do."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LATER = ("faststream", "aio_pika", "redis", "opentelemetry.exporter", "fastapi", "uvicorn")
"""Half of a start together (our measurement), and only needed where a broker, Redis or a collector is set,
or HTTP is served."""


@pytest.mark.parametrize("module", ["entrypoints.cli.run", "entrypoints.cli.events", "entrypoints.cli.mail"])
def test_what_only_some_processes_use_is_not_loaded_by_all(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {LATER} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


SLOW = "import signal\nprint('loading', flush=True)\nwhile True: signal.pause()\n"


def test_a_stop_that_comes_while_the_program_is_loading_is_obeyed(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(SLOW)  # comes before the library, and never finishes
    with subprocess.Popen(
        # As in the first process of a container, SIGTERM does nothing unless there is a handler.
        ["/bin/sh", "-c", 'trap "" TERM; exec "$@"', "sh", Path(sys.executable).with_name("registrar"), "up"],
        env={"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == -signal.SIGTERM
        finally:
            process.kill()


def test_what_is_loaded_before_a_stop_is_obeyed_is_nothing_to_wait_for() -> None:
    program = "import sys; before = set(sys.modules); import entrypoints.cli.start; print(set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert {"entrypoints", "entrypoints.cli", "entrypoints.cli.start"} >= {
        name for name in ast.literal_eval(done.stdout) if name not in {"__future__", "signal"}
    }
