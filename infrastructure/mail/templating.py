"""The environment that templates are rendered in: ours, and those of somebody's own, which come first.

Kept apart from the rest because the process that tries somebody's own templates out has nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jinja2 import BaseLoader, ChoiceLoader, FileSystemLoader, PrefixLoader, StrictUndefined, select_autoescape
from jinja2.sandbox import ImmutableSandboxedEnvironment

OURS: Final = Path(__file__).parent / "templates"
PARTS: Final = ("subject.txt", "txt", "html")
"""The ends of the names of a mail's templates, `<kind>.<language>.<part>`, in the order they are rendered in."""
PREFIX: Final = "registrar"
"""`{% extends "registrar/code.fr.html" %}`: ours, also where somebody has one of the same name."""


def environment(own: BaseLoader | None = None) -> ImmutableSandboxedEnvironment:
    ours = FileSystemLoader(OURS)
    return ImmutableSandboxedEnvironment(
        loader=ours if own is None else ChoiceLoader([own, ours, PrefixLoader({PREFIX: ours})]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
