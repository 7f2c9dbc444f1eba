"""`registrar projections …` as an operator runs it: a process of its own, that dies where it is told to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.fleet import REGISTRAR, ROOT, Fleet
from tests.support.commands import clean_environment, heeding_ctrl_c

MASTER_KEY = "ab" * 32
PATIENCE = 300.0


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def reports(self) -> list[dict[str, Any]]:
        """What it printed with --json."""
        found: list[dict[str, Any]] = json.loads(self.out)
        return found

    @property
    def report(self) -> dict[str, Any]:
        """The same, about one read model."""
        [one] = self.reports
        return one


class Shell:
    """
    Args:
        reached: where crash points are noted (fixture `reached_directory`); not needed where none is armed.
        settings: of every command, without prefix.
    """

    def __init__(self, dsn: str, reached: Path | None = None, **settings: str) -> None:
        self._environment = clean_environment(**{"DATABASE_URL": dsn, "MASTER_KEY": MASTER_KEY} | settings)
        self._reached = reached

    @classmethod
    def of(cls, fleet: Fleet) -> Shell:
        """An operator's of a fleet."""
        settings = {name.removeprefix("REGISTRAR_"): value for name, value in fleet.settings().items()}
        return cls(fleet.dsn, None, **settings)

    def begin(self, *words: str, dies_at: str | None = None) -> subprocess.Popen[str]:
        """Start `registrar projections …`.

        Args:
            dies_at: crash point at which it kills itself: `"rebuild.mid_batch:3"`.
        """
        command = [str(REGISTRAR)]
        if dies_at is not None:
            command = [sys.executable, "-m", "tests.faults.armed", dies_at, str(self._reached), "--"]
        with heeding_ctrl_c():
            return subprocess.Popen(
                [*command, "projections", *words],
                cwd=ROOT,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def projections(self, *words: str, dies_at: str | None = None) -> Ran:
        """`begin`, and wait for its end."""
        return ended(self.begin(*words, dies_at=dies_at))

    def rebuild(self, *words: str, dies_at: str | None = None) -> Ran:
        """`projections rebuild … --json`."""
        return self.projections("rebuild", *words, "--json", dies_at=dies_at)


def ended(process: subprocess.Popen[str]) -> Ran:
    """How it ended, once it has."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return Ran(process.returncode, out, err)
