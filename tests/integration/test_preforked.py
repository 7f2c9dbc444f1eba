"""What is forked after its imports does what the command does."""

from __future__ import annotations

import subprocess

import pytest

from tests.faults.fleet import REGISTRAR
from tests.support.commands import Done, clean_environment, ran


def started(*arguments: str, **settings: str) -> Done:
    done = subprocess.run(
        [REGISTRAR, *arguments], capture_output=True, text=True, check=False, env=clean_environment(**settings)
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--version"], {}),
        (["serve", "--prot", "1"], {}),
        (["serve"], {"PROT": "1"}),
        (["events", "list"], {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}),
    ],
    ids=["done", "wrong usage", "a wrong setting", "no database"],
)
def test_a_forked_command_prints_and_ends_as_one_that_was_started(
    arguments: list[str], settings: dict[str, str]
) -> None:
    assert ran(*arguments, environment=clean_environment(**settings)) == started(*arguments, **settings)
