"""What came of it, as a table."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario at one server: whether it went as it should, and what was seen."""

    verdict: str
    words: str

    @classmethod
    def of(cls, complaints: Sequence[str], seen: str) -> Self:
        return cls("MISS" if complaints else "ok", "; ".join([*complaints, seen]))

    def __str__(self) -> str:
        return f"{self.verdict}: {self.words}" if self.words else self.verdict


NOT_APPLICABLE: Final = Cell("-", "")


async def guarded(scenario: Awaitable[Cell]) -> Cell:
    """What is an error in a scenario is a miss, and the others go on."""
    try:
        return await scenario
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        return Cell("MISS", f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " "))


Table = Mapping[str, Mapping[str, Cell]]
"""The cells of each server, by the names of server and scenario."""


def misses(table: Table) -> int:
    return sum(cell.verdict == "MISS" for cells in table.values() for cell in cells.values())


def as_markdown(table: Table) -> str:
    """A row for each server, and a column for each scenario that any of them has; servers with the same scenarios stand
    together."""
    groups: dict[tuple[str, ...], dict[str, Mapping[str, Cell]]] = {}
    for server, cells in table.items():
        groups.setdefault(tuple(cells), {})[server] = cells
    return "\n\n".join(_rows(scenarios, servers) for scenarios, servers in groups.items())


def _rows(scenarios: Sequence[str], servers: Table) -> str:
    rows = [["server", *scenarios], ["---"] * (len(scenarios) + 1)]
    rows += [[server, *(str(cell).replace("|", "/") for cell in cells.values())] for server, cells in servers.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
