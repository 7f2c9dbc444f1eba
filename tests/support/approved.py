"""Approval tests: what a test finds out about the product against what was approved under `tests/golden/names/`.

A test that fails here says that a name changed which somebody outside of the code relies on: an operator, a client, a
running process of another version, or the database. If that is what an issue asks for, approve it, and look at what
`git diff` then shows:

    APPROVE=1 .venv/bin/pytest tests/unit/test_names_that_stay.py tests/integration/test_names_that_stay.py
"""

from __future__ import annotations

import ast
import difflib
import gc
import importlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("domain", "application", "projections", "infrastructure", "entrypoints")
APPROVED: Final = ROOT / "tests" / "golden" / "names"

_HOW: Final = "If an issue asks for this change, approve it as tests/support/approved.py says."


def same_as_approved(subject: str, found: Any, *, how: str = _HOW, file: Path | None = None) -> None:
    """Compare what was found with the approved file of this subject; lists and objects, one entry a line.

    Args:
        how: what to do where they differ.
        file: by default that of the subject under `tests/golden/names/`.

    Raises:
        AssertionError: they differ; the message shows the lines that do.
    """
    file = file or APPROVED / f"{subject}.json"
    text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if os.environ.get("APPROVE") == "1":
        file.write_text(text, encoding="utf-8")
        return
    approved = file.read_text(encoding="utf-8") if file.exists() else ""
    if text != approved:
        lines = difflib.unified_diff(approved.splitlines(), text.splitlines(), "approved", "found", n=2, lineterm="")
        raise AssertionError("\n".join((f"{subject}: names that stay have changed. {how}", *lines)))


# --- The product, wherever its modules are ------------------------------------------------------


def sources(suffix: str = ".py") -> Iterator[Path]:
    """Every file of the product with this suffix."""
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob(f"*{suffix}"))


@cache
def syntax(file: Path) -> ast.Module:
    # Python 3.11 fails if the collector runs a finalizer while it makes the tree ("recursion depth mismatch").
    gc.disable()
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def nodes() -> Iterator[ast.AST]:
    """Every node of every module of the product."""
    for file in sources():
        yield from ast.walk(syntax(file))


@cache
def modules() -> tuple[ModuleType, ...]:
    """Every module of the product, imported."""
    return tuple(
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for file in sources()
        if file.stem != "__main__"
    )


def the(name: str) -> Any:
    """The one object that the product has under this name, in whichever module.

    Raises:
        LookupError: there is none, or two different ones.
    """
    found = [vars(module)[name] for module in modules() if name in vars(module)]
    if not found:
        raise LookupError(f"nothing in the product is called {name}; if it was renamed, rename it in the test")
    if any(other is not found[0] and other != found[0] for other in found):
        raise LookupError(f"different things in the product are called {name}")
    return found[0]
