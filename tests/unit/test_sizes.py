"""How long functions and modules are: what is longer than docs/house-style.md has it says why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("domain", "application", "projections", "infrastructure", "entrypoints")


def unexplained(module: str) -> Iterator[str]:
    """The names of what is too long, and does not say why, in a module's text."""
    tree = ast.parse(module)
    if len(module.splitlines()) > 400 and "Over 400 lines, because" not in (ast.get_docstring(tree) or ""):
        yield "the module"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            body = node.body if docstring is None else node.body[1:]
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > 40 and "Over 40 lines, because" not in (docstring or ""):
                yield node.name


def test_a_long_function_or_module_says_why() -> None:
    modules = [path for wing in PRODUCT for path in (ROOT / wing).rglob("*.py")]
    assert len(modules) > 100
    assert {str(path.relative_to(ROOT)): found for path in modules if (found := [*unexplained(path.read_text())])} == {}


def test_what_is_too_long_is_found_unless_it_says_why() -> None:
    body = "    pass\n" * 41
    assert [*unexplained(f"def long():\n{body}")] == ["long"]
    assert [*unexplained(f"def long():\n    '''Over 40 lines, because.'''\n{body}")] == []
    assert [*unexplained("pass\n" * 401)] == ["the module"]
