"""The known name that a wrong one may be meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def nearest_of(name: str, known: Iterable[str]) -> str:
    """The most similar one."""
    import difflib  # noqa: PLC0415 - a start without mistakes does not need it

    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]
