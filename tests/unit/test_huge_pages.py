"""A command that hashes passwords begins once more, as the same process, to have huge pages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not (os.confstr_names.get("CS_GNU_LIBC_VERSION") and os.confstr("CS_GNU_LIBC_VERSION")), reason="glibc only"
)

_PROGRAM = """
import os, sys
from pathlib import Path
from entrypoints.cli import huge_pages

huge_pages._MODE = Path(sys.argv[1])
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), flush=True)
{before}
huge_pages.begin_with_huge_pages(sys.argv[2:])
print(sorted(name for name in os.environ if "TUNABLES" in name), os.environ.get("GLIBC_TUNABLES"))
"""


@pytest.fixture
def on_request(tmp_path: Path) -> Path:
    mode = tmp_path / "enabled"
    mode.write_text("always [madvise] never\n")
    return mode


def run(mode: Path, *arguments: str, before: str = "", tunables: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    program = [sys.executable, "-c", _PROGRAM.format(before=before), str(mode), *arguments]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("command", ["serve", "up"])
def test_the_same_process_begins_again_with_huge_pages_which_what_it_starts_does_not_inherit(
    on_request: Path, command: str
) -> None:
    first, again, inherited = lines(run(on_request, command, "--port", "0"))

    pid = first.removesuffix(" None")
    assert again == f"{pid} glibc.malloc.hugetlb=1"
    assert inherited == "[] None"


def test_an_operators_own_tunables_stay_and_are_inherited(on_request: Path) -> None:
    _, again, inherited = lines(run(on_request, "serve", tunables="glibc.malloc.arena_max=4"))

    assert again.endswith(" glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1")
    assert inherited == "['GLIBC_TUNABLES'] glibc.malloc.arena_max=4"


def test_who_has_chosen_already_is_left_alone(on_request: Path) -> None:
    found = lines(run(on_request, "serve", tunables="glibc.malloc.hugetlb=0"))

    assert found[1:] == ["['GLIBC_TUNABLES'] glibc.malloc.hugetlb=0"]


@pytest.mark.parametrize("arguments", [["process"], ["serve", "--help"], []])
def test_a_command_that_hashes_nothing_does_not_begin_again(on_request: Path, arguments: list[str]) -> None:
    assert lines(run(on_request, *arguments))[1:] == ["[] None"]


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]"])
def test_a_kernel_that_gives_huge_pages_to_all_or_nobody_is_not_asked(on_request: Path, mode: str) -> None:
    on_request.write_text(mode)

    assert lines(run(on_request, "serve"))[1:] == ["[] None"]


def test_a_kernel_without_huge_pages_is_not_asked(tmp_path: Path) -> None:
    assert lines(run(tmp_path / "missing", "serve"))[1:] == ["[] None"]


def test_a_signal_to_end_that_comes_on_the_way_is_kept(on_request: Path) -> None:
    stop = "os.execve = lambda *a, e=os.execve: (os.kill(os.getpid(), 15), e(*a))"

    assert run(on_request, "serve", before=stop).returncode == -signal.SIGTERM


def test_what_cannot_begin_again_goes_on(on_request: Path) -> None:
    assert lines(run(on_request, "serve", before="sys.executable = '/nowhere'"))[1:] == ["[] None"]
