"""The crash points themselves: registered, armed by tests only, and each of them reached."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from application.crash_points import CRASH_POINTS, CrashPoint, armed, crash_point
from tests.faults.armed import at, parse
from tests.faults.conftest import Arm
from tests.faults.reached import note, unreached

ROOT = Path(__file__).parents[2]


class CrashedError(Exception):
    pass


def crash() -> None:
    raise CrashedError


def test_every_name_that_may_be_called_is_registered_and_said_where_it_is() -> None:
    assert set(get_args(CrashPoint)) == CRASH_POINTS.keys()
    assert all(CRASH_POINTS.values())


def test_every_registered_point_is_one_line_in_exactly_one_place() -> None:
    production = [
        file.read_text()
        for folder in ("application", "infrastructure", "entrypoints", "projections")
        for file in (ROOT / folder).rglob("*.py")
        if file.name != "crash_points.py"
    ]
    lines = [line for text in production for line in text.splitlines() if "crash_point(" in line]

    assert {point: sum(f'"{point}"' in line for line in lines) for point in CRASH_POINTS} == dict.fromkeys(
        CRASH_POINTS, 1
    )


def test_an_unarmed_point_does_nothing() -> None:
    crash_point("worker.after_claim")


def test_an_armed_point_acts_at_the_passing_asked_for_and_at_no_other_point() -> None:
    with armed(at("worker.after_claim", 2, crash)):
        crash_point("worker.after_claim")
        crash_point("worker.before_claim")
        with pytest.raises(CrashedError):
            crash_point("worker.after_claim")
        crash_point("worker.after_claim")

    crash_point("worker.after_claim")


def test_a_name_that_is_not_registered_cannot_be_armed() -> None:
    with pytest.raises(KeyError):
        parse("worker.after_lunch")


def test_points_cannot_be_armed_twice_at_once() -> None:
    with (
        armed(at("worker.after_claim", 1, crash)),
        pytest.raises(RuntimeError),
        armed(at("projector.mid", 1, crash)),
    ):
        pass


def test_a_point_that_is_armed_in_this_process_is_noted_when_it_acts(arm: Arm, reached_directory: Path) -> None:
    arm("worker.after_claim", crash, passing=2)

    crash_point("worker.after_claim")
    with pytest.raises(CrashedError):
        crash_point("worker.after_claim")

    assert reached_directory.joinpath("worker.after_claim").exists()


def test_a_process_that_gets_to_its_point_notes_that_and_dies_of_sigkill(tmp_path: Path) -> None:
    # given: the launcher's own way to the command line, with a command that passes the point
    program = (
        "import sys, tests.faults.armed as launcher;"
        "from application.crash_points import crash_point;"
        "launcher.run = lambda command: [crash_point('projector.mid') for _ in command] and 0;"
        "launcher.main(sys.argv[1:])"
    )

    def launch(*command: str) -> int:
        arguments = [sys.executable, "-c", program, "projector.mid:2", str(tmp_path), "--", *command]
        return subprocess.run(arguments, cwd=ROOT, check=False).returncode

    # then: passing it a single time was not enough
    assert launch("once") == 0
    assert list(tmp_path.iterdir()) == []
    assert launch("once", "twice") == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == ["projector.mid"]


# --- A point that no test reaches fails the suite ------------------------------------------------


def test_a_point_that_nobody_noted_is_unreached(tmp_path: Path) -> None:
    note(tmp_path, "worker.after_claim")

    assert unreached({"worker.after_claim", "projector.mid"}, tmp_path) == ["projector.mid"]


INNER_CONFTEST = """
import application.crash_points
application.crash_points.CRASH_POINTS = {"worker.after_claim": "here", "projector.mid": "there"}
from tests.conftest import *
"""

INNER_TEST = """
from tests.faults.reached import note

def test_one(reached_directory):
    note(reached_directory, "worker.after_claim")

def test_two(reached_directory):
    OTHER
"""

REACHED_BY_BOTH = INNER_TEST.replace("OTHER", 'note(reached_directory, "projector.mid")')
REACHED_BY_ONE = INNER_TEST.replace("OTHER", "pass")


@pytest.mark.parametrize(
    ("tests", "arguments", "code"),
    [
        (REACHED_BY_BOTH, [], pytest.ExitCode.OK),
        (REACHED_BY_BOTH, ["-n", "2"], pytest.ExitCode.OK),
        (REACHED_BY_ONE, [], pytest.ExitCode.TESTS_FAILED),
        (REACHED_BY_ONE, ["-n", "2"], pytest.ExitCode.TESTS_FAILED),
        (REACHED_BY_ONE, ["-k", "test"], pytest.ExitCode.OK),
        (REACHED_BY_ONE, ["inner"], pytest.ExitCode.OK),
    ],
    ids=["all reached", "all reached, by two workers", "one left", "one left by two workers", "a choice", "a path"],
)
def test_a_run_of_the_whole_suite_fails_if_a_point_was_not_reached_and_names_it(
    tmp_path: Path, tests: str, arguments: list[str], code: int
) -> None:
    # given: a suite of two tests, under the rules of ours
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "conftest.py").write_text(INNER_CONFTEST)
    (inner / "test_inner.py").write_text(tests)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = inner\n")

    # when: without the plugins that two tests have no use for, which take longer to load than they
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "xdist", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    # then
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert ("projector.mid: a test must arm it" in ran.stdout) == (code != pytest.ExitCode.OK)
