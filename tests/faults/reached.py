"""Which crash points the tests have reached: one that no test reaches fails the suite, like code that nobody calls.

Every worker of a test run, and every process it starts, notes in one directory what it reached; at the end of a run of
the whole suite the directory is compared with the registry.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from application.crash_points import CrashPoint

DIRECTORY = pytest.StashKey[Path]()
_FOR_WORKERS = "reached_crash_points"


def note(directory: Path, point: CrashPoint) -> None:
    """A test has come to this point; may be told any number of times, by any process."""
    directory.joinpath(point).touch()


def unreached(registered: Collection[str], directory: Path) -> list[str]:
    """The registered points that nobody has noted, in order."""
    return sorted(set(registered) - {file.name for file in directory.iterdir()})


def directory_of(config: pytest.Config) -> Path:
    """Where this run notes what it reached: the same for all its workers."""
    given = getattr(config, "workerinput", {}).get(_FOR_WORKERS)
    return Path(given) if given is not None else config.stash[DIRECTORY]


def hand_to_worker(node: object, directory: Path) -> None:
    """Let a worker of pytest-xdist know the directory."""
    node.workerinput[_FOR_WORKERS] = str(directory)  # type: ignore[attr-defined]


def is_whole_suite(config: pytest.Config) -> bool:
    """Was nothing left out: no path, no `-k`, no `-m`, no server gone without, nothing deselected or only collected?"""
    option = config.option
    narrowed = (
        option.keyword,
        option.markexpr,
        option.deselect,
        option.ignore,
        option.ignore_glob,
        option.collectonly,
        getattr(option, "without", None),  # what needs RabbitMQ is skipped then, and its crash points with it
        getattr(option, "lf", False),
        getattr(option, "stepwise", False),
    )
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not any(narrowed)
