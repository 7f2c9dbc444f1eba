"""Commands of Registrar in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.leaks import must_not_tell
from tests.support.preforked import fork

PATIENCE = 60.0


class Done(NamedTuple):
    """A command that has ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's environment, with these settings and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRAR_")}
    return inherited | {f"REGISTRAR_{name}": value for name, value in settings.items()}


def ran(*arguments: str | Path, environment: Mapping[str, str]) -> Done:
    """How `registrar` with these arguments ended, in a process of its own that was forked after its imports."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = fork(*map(str, arguments), environment=environment, stdout=out, stderr=err).wait(PATIENCE)
        for written in (out, err):
            written.seek(0)
        done = Done(code, out.read(), err.read())
        must_not_tell(done.err)
        return done


@contextmanager
def heeding_ctrl_c() -> Iterator[None]:
    """What is started in the block heeds SIGINT as in the foreground of a terminal. A shell without job control has
    what it starts with `&` ignore it: where the tests run like that, their commands would inherit it."""
    as_it_was = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, as_it_was)


@contextmanager
def started(
    *command: str | Path, until: str, environment: dict[str, str], directory: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A command that stays, and what it printed up to a line that contains `until`."""
    with tempfile.TemporaryFile("w+") as errors:
        with heeding_ctrl_c():
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=directory
            )
        try:
            assert process.stdout
            printed: list[str] = []
            for line in process.stdout:  # ends with the process; pytest-timeout guards a process that hangs
                printed.append(line.rstrip("\n"))
                if until in line:
                    break
            else:
                errors.seek(0)
                pytest.fail(f"ended early: {errors.read()}")
            yield process, printed
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=PATIENCE)
        errors.seek(0)
        must_not_tell(errors.read())


def stop(process: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    """Its exit code, and what it still printed."""
    process.send_signal(how)
    out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out
