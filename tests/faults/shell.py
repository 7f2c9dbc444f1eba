"""`registrar projections …` as an operator runs it: a process of its own, that dies where it is told to."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple

from tests.faults.fleet import Fleet
from tests.support.commands import clean_environment
from tests.support.preforked import Forked, fork

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


class Running(NamedTuple):
    """A command that has been started, and the files that it writes to."""

    process: Forked
    out: IO[str]
    err: IO[str]

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


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

    def begin(self, *words: str, dies_at: str | None = None) -> Running:
        """Start `registrar projections …`.

        Args:
            dies_at: crash point at which it kills itself: `"rebuild.mid_batch:3"`.
        """
        return self._begin("projections", *words, dies_at=dies_at)

    def run(self, *words: str) -> Ran:
        """`registrar …`, whatever the command, to its end."""
        return ended(self._begin(*words))

    def _begin(self, *words: str, dies_at: str | None = None) -> Running:
        armed = None
        if dies_at is not None:
            assert self._reached is not None
            armed = (dies_at, self._reached)
        # Closed by `ended`.
        out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        return Running(fork(*words, environment=self._environment, stdout=out, stderr=err, armed=armed), out, err)

    def projections(self, *words: str, dies_at: str | None = None) -> Ran:
        """`begin`, and wait for its end."""
        return ended(self.begin(*words, dies_at=dies_at))

    def rebuild(self, *words: str, dies_at: str | None = None) -> Ran:
        """`projections rebuild … --json`."""
        return self.projections("rebuild", *words, "--json", dies_at=dies_at)


def ended(running: Running) -> Ran:
    """How it ended, once it has."""
    with running.out, running.err:
        try:
            code = running.process.wait(PATIENCE)
        finally:
            running.process.kill()
        return Ran(code, _all_of(running.out), _all_of(running.err))


def _all_of(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
