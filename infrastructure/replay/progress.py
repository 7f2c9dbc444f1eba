"""What a rebuild or verification is doing, for whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from domain.recorded import Position


@dataclass(frozen=True, slots=True)
class Doing:
    """
    Attributes:
        reached, upto: positions of the log, where it is read; both 0 where it is not.
    """

    read_model: str
    what: Literal["filling", "indexing", "comparing", "folding again", "swapping"]
    reached: Position = 0
    upto: Position = 0


Watch = Callable[[Doing], None]


def nobody_watches(_: Doing) -> None:
    """The default."""
