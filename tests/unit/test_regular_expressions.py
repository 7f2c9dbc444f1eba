"""Every regular expression of ours takes time in proportion to the text, whatever the text is (docs/security.md, S18).

Whether it does is counted in steps of a matcher that backtracks as Python's does, over texts that are made of the
pattern itself.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from infrastructure.settings import environment
from tests.support.backtracking import Steps, is_linear

ROOT = Path(__file__).parents[2]
PACKAGES = ("domain", "application", "projections", "infrastructure", "entrypoints")
CALLS = {"compile", "search", "match", "fullmatch", "sub", "subn", "findall", "finditer", "split"}
ANCHORED = {"match", "fullmatch"}

BOUNDED: Final = {environment._LINK.pattern: "names of variables, which who starts the process has set"}
"""Patterns that take more, and why the text that they see is short."""


class Found(NamedTuple):
    where: str
    pattern: str | bytes
    flags: int
    searches: bool


def expressions() -> Iterator[Found]:
    """Every pattern that our code gives to `re`, also those that are put together of constants."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    texts = {path: path.read_text() for path in paths}
    nodes_of = {
        path: list(ast.walk(ast.parse(text)))
        for path, text in texts.items()
        if any(f".{call}" in text for call in CALLS)  # to parse them all takes each worker of the tests a second
    }
    searching = {
        node.func.value.id if isinstance(node.func.value, ast.Name) else node.func.value.attr
        for nodes in nodes_of.values()
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name | ast.Attribute)
        and node.func.attr in CALLS - ANCHORED
    }
    for path, nodes in nodes_of.items():
        names = {
            id(node.value): target.id
            for node in nodes
            for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name)
        }
        for node in nodes:
            if is_of_re(node):
                module = vars(importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)))
                name = names.get(id(node))
                how = node.func.attr  # type: ignore[attr-defined]
                searches = how not in ANCHORED if how != "compile" else name is None or name in searching
                where = f"{path.relative_to(ROOT)}:{node.lineno}"  # type: ignore[attr-defined]
                yield Found(where, *pattern_of(node, module, where), searches)


def is_of_re(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.func.attr in CALLS
    )


def pattern_of(call: Any, module: dict[str, Any], where: str) -> tuple[str | bytes, int]:
    """The pattern and the flags of a call, evaluated among the names of its module."""
    flags = [one for one in [*call.args[1:], *(word.value for word in call.keywords)] if "re." in ast.unparse(one)]
    try:
        pattern = evaluated(call.args[0], module)
        return pattern, int(evaluated(flags[0], module)) if flags else 0
    except NameError as error:
        pytest.fail(f"{where}: {error}: make the pattern of constants of its module, so that it can be checked")


def evaluated(expression: ast.expr, module: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(expression), "pattern", "eval"), module)  # noqa: S307 - our own source


FOUND = list(expressions())


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found.where)
def test_every_expression_takes_time_in_proportion_to_the_text(found: Found) -> None:
    culprit = is_linear(found.pattern, found.flags, searches=found.searches)

    if str(found.pattern) in BOUNDED:
        assert culprit is not None, "it needs no exception any more"
    else:
        assert culprit is None, f"{found.pattern!r} takes more than linear time for {culprit!r}"


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a|a)*b",
        r"(?:\w+_)?(?:PORT|HOST(?:_\w+)?)",
        "a*a*b",
        "(.*),(.*),(.*)x",
        r"\d+\d+$",
        r"([\w.-]+)+@",
        "(a?){100}a*b",
    ],
)
def test_what_backtracks_is_found(pattern: str) -> None:
    assert is_linear(pattern, searches=False) is not None


@pytest.mark.parametrize("pattern", [r"\s+$", "a+b", "[a-z]*,"])
def test_what_begins_again_at_every_place_is_found(pattern: str) -> None:
    assert is_linear(pattern, searches=False) is None
    assert is_linear(pattern, searches=True) is not None


@pytest.mark.parametrize(
    ("pattern", "flags"),
    [("a+", 0), (r"(a|b)*?c\Z", 0), ("^x.y$", re.MULTILINE), ("(?=a)[^b]{2,3}(?<=c)", 0), ('("?)k\\1', re.IGNORECASE)],
)
def test_the_matcher_finds_what_the_library_finds(pattern: str, flags: int) -> None:
    steps = Steps(pattern, flags)
    for text in ("", "a", "aa", "abc", "abac", "z\nxcy\nz", "acc", "ac", '"K"', '"k', "k", "aab"):
        assert steps.search(text) is bool(re.search(pattern, text, flags)), text
        assert steps.fullmatch(text) is bool(re.fullmatch(pattern, text, flags)), text
