"""What integration tests share: commands of the command line, run in the test's own process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator

import pytest

from entrypoints.cli.main import run
from tests.support.commands import Done

Command = Callable[..., Done]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Runs a command in this process, with these settings and no others."""
    root = logging.getLogger()
    handlers, hook = root.handlers[:], sys.excepthook

    def command(*arguments: str, **settings: str) -> Done:
        for name in [name for name in os.environ if name.startswith("REGISTRAR_")]:
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(f"REGISTRAR_{name}", value)
        capsys.readouterr()
        code = run(arguments)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    yield command
    root.handlers[:], sys.excepthook = handlers, hook
    logging.captureWarnings(capture=False)
