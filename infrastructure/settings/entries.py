"""The entries of a setting that has several: whatever is wrong with any of them is said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def each(entries: Iterable[str], parse: Callable[[str], T], *, numbered: bool = True) -> list[T]:
    """Every entry, parsed.

    Args:
        parse: of one entry; its ValueError goes on from the entry, or, where they are not numbered, from the setting.
        numbered: whether the message calls an entry by its number.

    Raises:
        ValueError: for all entries that cannot be; the message goes on from the name of the setting.
    """
    found, faults = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            found.append(parse(entry))
        except ValueError as error:
            faults.append(f"entry {number} {error}" if numbered else str(error))
    refuse(faults)
    return found


def refuse(faults: Iterable[str]) -> None:
    """
    Raises:
        ValueError: there are any; each once, as one sentence goes on.
    """
    if said := ", and ".join(dict.fromkeys(faults)):
        raise ValueError(said)
